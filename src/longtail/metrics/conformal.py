"""Shortlists that hold the right class as often as asked: split conformal prediction.

A score says how badly a class fits an image; held-out images say which score the right class stays below in the
wanted share of cases; a shortlist holds every class below that threshold.

Sources: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005 (split and Mondrian conformal
prediction); Sadinle, Lei and Wasserman, "Least Ambiguous Set-Valued Classifiers with Bounded Error Levels", JASA 2019
(the score 1 - p, whose sets are smallest; here -p, the same order without its rounding near 1); Podkopaev and
Ramdas, "Distribution-free uncertainty quantification for classification under label shift", UAI 2021 (weights for
another class prior); Ding, Fermanian and Salmon, "Conformal
Prediction for Long-Tailed Classification", ICLR 2026 (prevalence-adjusted softmax, macro-coverage).
"""

from __future__ import annotations

import math
from typing import TypedDict

import torch
from torch import Tensor

from longtail.metrics.inputs import checked_class_vector, checked_indices, exact_mean, zeros_as_rarest

CONFORMAL_KINDS = ("marginal", "class", "prevalence")
_SLACK = 1e-9  # 0.9 / (1 - 0.9) and its like are a rounding error away from a whole number


class SetFigures(TypedDict):
    """What :func:`set_figures` returns; ``weighted_coverage`` is None without a class prior."""

    coverage: float
    macro_coverage: float
    weighted_coverage: float | None
    mean_size: float


def needed_images(coverage: float) -> int:
    """Return the fewest images with which a threshold for ``coverage`` can be finite: 9 for 0.9, 19 for 0.95."""
    _check_coverage(coverage)
    return max(1, math.ceil(coverage / (1 - coverage) - _SLACK))


def conformal_scores(probabilities: Tensor, prevalence: Tensor | None = None) -> Tensor:
    """Return how badly each class fits, float64 ``[N, C]``; lower is better.

    Args:
        probabilities: ``[N, C]``, p(class | image).
        prevalence: ``[C]``, the class prior under which ``probabilities`` hold; None for the score -p. With it the
            score is -p / prevalence (prevalence-adjusted softmax): the sets that are smallest, under that prior, for
            their mean coverage over classes. Zeros: see :func:`~longtail.metrics.inputs.zeros_as_rarest`.
    """
    values = probabilities.detach().cpu().double()
    if values.ndim != 2:
        raise ValueError(f"probabilities must have the shape [N, C], got {list(values.shape)}.")
    if prevalence is None:
        return -values
    known = checked_class_vector(prevalence, values.shape[1], "prevalence")
    return -values / zeros_as_rarest(known, "prevalence")


def conformal_thresholds(
    scores: Tensor,
    labels: Tensor,
    num_classes: int,
    coverage: float,
    groups: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the highest score with which each class is in a shortlist, float64 ``[C]``.

    Class y's threshold is the smallest score s of the images of its group whose weight, up to s, is at least
    ``coverage`` of the group's weight and the new image's, w_y. With equal weights that is the
    ceil((n + 1) coverage)-th smallest of n scores; infinite (y is in every shortlist) where n is too small.

    If held-out and new images are exchangeable within each class, and a class prior proportional to (weight x held-out
    images) holds for the new ones, the new image's class is in its shortlist with probability ``coverage`` or more:
    overall (no groups), or within each group of classes.

    Args:
        scores: ``[n]``, of each held-out image's own class; n may be 0.
        labels: ``[n]``, its class.
        num_classes: C.
        coverage: the share aimed at, between 0 and 1.
        groups: int64 ``[C]``, a number for each class; classes of a group share a threshold. None = one group.
        weights: ``[C]``, new over held-out frequency of each class; None = 1.
    """
    _check_coverage(coverage)
    scores = scores.detach().cpu().double()
    labels = checked_indices(labels, num_classes) if len(labels) else labels.long()
    if scores.shape != labels.shape or bool(scores.isnan().any()):
        raise ValueError(f"scores must be numbers of the shape {list(labels.shape)}, got {list(scores.shape)}.")
    group = torch.zeros(num_classes, dtype=torch.int64)
    if groups is not None:
        group = torch.unique(groups.cpu(), return_inverse=True)[1]
    weight = torch.ones(num_classes, dtype=torch.float64)
    if weights is not None:
        weight = checked_class_vector(weights, num_classes, "weights")
    # Group by group, each in order of its scores: group g's images are at edges[g]:edges[g + 1].
    order = scores.argsort()
    order = order[group[labels[order]].argsort(stable=True)]
    scores, labels = scores[order], labels[order]
    edges = torch.searchsorted(group[labels], torch.arange(int(group.max()) + 2))
    # A group sees its own weights alone: brought to one size, a rare group's are not lost in the sum of the others.
    largest = weight.new_zeros(int(group.max()) + 1).scatter_reduce(0, group, weight, "amax")[group]
    weight = weight / torch.where(largest > 0, largest, 1.0)
    # One running sum over all groups, which serves any number of them; what came before a group is taken off.
    reached = torch.cat([weight.new_zeros(1), weight[labels].cumsum(0)])
    start, end = edges[group], edges[group + 1]
    before = reached[start]
    total = reached[end] - before + weight
    position = torch.searchsorted(reached[1:], before + (coverage - _SLACK) * total).maximum(start)
    found = position < end
    thresholds = torch.full((num_classes,), math.inf, dtype=torch.float64)
    thresholds[found] = scores[position[found]]
    return thresholds


def rare_together(held_out: Tensor, coverage: float) -> Tensor:
    """Return groups ``[C]`` for :func:`conformal_thresholds`: each class alone, those with too few images together.

    Where even together these have too few, the classes next in number join them until there are enough.

    Args:
        held_out: ``[C]``, held-out images of each class.
        coverage: the share aimed at.
    """
    needed = needed_images(coverage)
    groups = torch.arange(len(held_out))
    order = held_out.argsort(stable=True)
    rare = int((held_out < needed).sum())
    if rare:
        too_few = int((held_out[order].cumsum(0) < needed).sum())  # the rarest classes that together have not enough
        groups[order[: max(rare, too_few + 1)]] = len(held_out)
    return groups


def shortlists(scores: Tensor, thresholds: Tensor, first: Tensor, possible: Tensor | None = None) -> Tensor:
    """Return bool ``[N, C]``: the classes in each image's shortlist.

    Args:
        scores: ``[N, C]`` of :func:`conformal_scores`.
        thresholds: ``[C]`` of :func:`conformal_thresholds`.
        first: ``[N]``, the class predicted: in the shortlist in any case, so that none is empty.
        possible: bool ``[C]``; a class that is not is in no shortlist.
    """
    chosen = scores <= thresholds
    if possible is not None:
        chosen &= possible
    return chosen.scatter(1, first[:, None], True)


def set_figures(
    held: Tensor, sizes: Tensor, labels: Tensor, num_classes: int, prior: Tensor | None = None
) -> SetFigures:
    """Return coverage and mean size of the shortlists of labelled images.

    ``coverage`` is the share of images whose class is in their set, ``macro_coverage`` the mean of that over the
    classes that have images, ``weighted_coverage`` the mean weighted by ``prior``, ``mean_size`` the mean number of
    classes in a set.

    Args:
        held: bool ``[N]``, whether the image's class is in its set.
        sizes: ``[N]``, classes in its set.
        labels: ``[N]``, its class.
        num_classes: C.
        prior: ``[C]``, a class prior (any positive sum), or None.
    """
    hits, _, images = _by_class(held, sizes, labels, num_classes)
    tested = images > 0
    share = hits[tested] / images[tested]
    weighted = None
    if prior is not None:
        weight = checked_class_vector(prior, num_classes, "prior")[tested]
        weighted = float(weight @ share / weight.sum()) if bool(weight.sum() > 0) else None
    return {
        "coverage": float(hits.sum() / images.sum()),
        "macro_coverage": exact_mean(share),
        "weighted_coverage": weighted,
        "mean_size": float(sizes.double().mean()),
    }


def class_set_figures(
    held: Tensor, sizes: Tensor, labels: Tensor, num_classes: int
) -> tuple[list[float | None], list[float | None]]:
    """Return each class's coverage and mean set size, None without images; arguments as in :func:`set_figures`."""
    hits, summed, images = _by_class(held, sizes, labels, num_classes)

    def mean(sums: Tensor) -> list[float | None]:
        pairs = zip(sums.tolist(), images.tolist(), strict=True)
        return [total / count if count else None for total, count in pairs]

    return mean(hits), mean(summed)


def _by_class(held: Tensor, sizes: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return hits, summed sizes and images of each class, float64 ``[C]``."""
    labels = checked_indices(labels, num_classes)
    if not len(labels) == len(held) == len(sizes):
        raise ValueError(f"there are {len(held)} sets and {len(sizes)} sizes for {len(labels)} labels.")
    hits = torch.bincount(labels, weights=held.double(), minlength=num_classes)
    summed = torch.bincount(labels, weights=sizes.double(), minlength=num_classes)
    return hits, summed, torch.bincount(labels, minlength=num_classes).double()


def _check_coverage(coverage: float) -> None:
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}.")
