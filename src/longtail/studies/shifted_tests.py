"""Test sets whose classes come at other rates: long-tailed forward, uniform, backward; from logits, without training.

The test-agnostic protocol (Hong et al., CVPR 2021; Zhang et al., NeurIPS 2022, SADE): a forward test set has its
classes in the training set's order of frequency, a backward one in the converse. Each is had in two ways: sampled from
the test set, as in the protocol, and exactly, by weighting every image of the test set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from longtail.data.counts import long_tailed_indices
from longtail.metrics import class_hits, estimate_prior
from longtail.metrics.at_prior import accuracy_at_prior, finite_shift
from longtail.metrics.inputs import zeros_as_rarest

IMBALANCES = (50, 25, 10, 5, 2)
KNOWLEDGE = ("unknown", "known", "estimated")
"""What is known of the test set's class prior: nothing, the prior itself, or what EM estimates from its images."""


@dataclass(frozen=True)
class TestSet:
    """How often the classes come.

    Attributes:
        name: ``forward 50`` ... ``uniform`` ... ``backward 50``.
        prior: float64 ``[C]``, sum 1.
    """

    name: str
    prior: Tensor


def make_test_sets(class_counts: Tensor) -> list[TestSet]:
    """Return the eleven test sets for classes with ``class_counts [C]`` training images.

    The class of rank r by training images has a share in proportion to imbalance^(-r / (C - 1)); backward, to the
    converse. Classes of as many images keep their order.
    """
    order = class_counts.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    fall = rank.double() / max(len(order) - 1, 1)

    def test_set(name: str, imbalance: float, share: Tensor) -> TestSet:
        weights = torch.pow(torch.tensor(float(imbalance), dtype=torch.float64), -share)
        return TestSet(name, weights / weights.sum())

    return [
        *(test_set(f"forward {level}", level, fall) for level in IMBALANCES),
        test_set("uniform", 1, fall),
        *(test_set(f"backward {level}", level, 1 - fall) for level in reversed(IMBALANCES)),
    ]


def sampled(labels: Tensor, prior: Tensor, seed: int = 0) -> Tensor:
    """Return which images ``[M]`` of a test set with ``labels [N]`` make one with about the class ``prior [C]``.

    As many as there can be: of the class that is scarcest, all; of the others a share, rounded down, at least 1 where
    there is one. Of a balanced test set that is the protocol's n_max * imbalance^(-r / (C - 1)).
    """
    have = torch.bincount(labels, minlength=len(prior))
    tested = have > 0
    most = float((have[tested] / prior[tested]).min())
    counts = (most * prior + 1e-9).long().clamp(min=1).minimum(have)
    return long_tailed_indices(labels, counts.tolist(), seed)


def accuracies(logits: Tensor, labels: Tensor, logit_prior: Tensor, test_set: TestSet) -> dict[str, dict[str, float]]:
    """Return ``{"sampled" or "exact": {knowledge: accuracy}}``, and how far the estimated prior is off (``"off"``).

    Known: log(prior) - log(logit_prior) is added to the logits. Estimated: likewise, with the prior that EM finds in
    the images of the test set (Saerens et al. 2002), without their labels; for the exact way each image weighs as much
    as the test set has of its kind. ``off`` is half the sum of |estimated - true|.

    Args:
        logits: ``[N, C]`` of the whole test set, divided by the temperature if one was fitted.
        labels: ``[N]``.
        logit_prior: ``[C]``, the class prior that the logits imply.
        test_set: what the classes come at.
    """
    chosen = sampled(labels, test_set.prior)
    have = torch.bincount(labels, minlength=len(test_set.prior)).double()
    weights = (test_set.prior / have.clamp(min=1))[labels]
    some, held = logits[chosen], labels[chosen]
    share = torch.bincount(held, minlength=len(have)).double() / len(held)
    by_sample = _shifts(share, estimate_prior(some, logit_prior).prior, logit_prior)
    by_weight = _shifts(test_set.prior, estimate_prior(logits, logit_prior, weights=weights).prior, logit_prior)
    found: dict[str, dict[str, float]] = {"sampled": {}, "exact": {}}
    for knowledge, (shift, off) in by_sample.items():
        found["sampled"][knowledge] = float(((some.double() + shift).argmax(1) == held).double().mean())
        found["sampled"]["off"] = off
    for knowledge, (shift, off) in by_weight.items():
        hits, total = class_hits((logits.double() + shift).argmax(1), labels, len(have))
        found["exact"][knowledge] = accuracy_at_prior(hits, total, test_set.prior, resamples=1)[0].mean
        found["exact"]["off"] = off
    return found


def _shifts(true: Tensor, estimated: Tensor, logit_prior: Tensor) -> Mapping[str, tuple[Tensor, float]]:
    """Return what each knowledge adds to the logits ``[C]``, and how far the estimate is off."""
    base = zeros_as_rarest(logit_prior.double()).log()
    off = float((estimated - true).abs().sum()) / 2
    return {
        "unknown": (torch.zeros_like(base), off),
        "known": (finite_shift(true.log() - base), off),
        "estimated": (finite_shift(estimated.log() - base), off),
    }
