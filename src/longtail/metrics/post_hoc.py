"""Logit adjustment after training: Menon et al., "Long-tail Learning via Logit Adjustment", ICLR 2021 (Eq. 9).

A model whose softmax implies the training prior is made to favour frequent classes less by taking tau times the log
prior off its logits. tau = 1 is Bayes' rule for a uniform test prior; another strength may fit a real model better.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longtail.metrics.accuracy import balanced_accuracy, class_recall
from longtail.metrics.inputs import checked_class_vector, checked_logits, row_blocks, zeros_as_rarest

STRENGTHS = tuple(step / 10 for step in range(21))
"""Strengths that :func:`choose_strength` tries: 0, 0.1, ..., 2."""


def is_uniform(prior: Tensor) -> bool:
    """Return whether ``prior [C]`` is the same for every class, but for rounding to float32."""
    return bool(prior.max() - prior.min() <= 1e-6 * prior.max())


def adjusted_logits(logits: Tensor, prior: Tensor, strength: float) -> Tensor:
    """Return ``logits [N, C] - strength * log(prior [C])``, with :func:`~longtail.metrics.inputs.zeros_as_rarest`.

    Raises:
        ValueError: ``prior`` is no prior of C classes.
    """
    prior = zeros_as_rarest(checked_class_vector(prior, logits.shape[1], "prior"))
    return logits - strength * (prior / prior.sum()).log().to(logits)


def choose_strength(logits: Tensor, labels: Tensor, prior: Tensor) -> float:
    """Return the strength of :data:`STRENGTHS` with the highest balanced accuracy; of equals, the smallest.

    Args:
        logits: [N, C], finite, of held-out images: never those of the test set.
        labels: [N] class indices.
        prior: [C] class prior that softmax(logits) implies.

    Raises:
        ValueError: shapes that differ, an empty set, or labels out of range.
    """
    labels, num_classes = checked_logits(logits, labels), logits.shape[1]
    predictions = torch.empty(len(STRENGTHS), len(labels), dtype=torch.int64)
    for rows, block in row_blocks(logits):
        for place, strength in enumerate(STRENGTHS):
            predictions[place, rows] = adjusted_logits(block, prior, strength).argmax(dim=1)
    figures = [balanced_accuracy(class_recall(of_one, labels, num_classes)) for of_one in predictions]
    return STRENGTHS[figures.index(max(figures))]  # the first of equals
