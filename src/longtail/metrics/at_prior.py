"""What an accuracy is to be expected where classes come at other rates than among the test images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from longtail.metrics.inputs import checked_class_vector, exact_mean
from longtail.metrics.intervals import LEVEL, RESAMPLES, MeanInterval

# Classes drawn at a time: bounds memory at RESAMPLES x this many integers.
_BLOCK_CLASSES = 1024


def accuracy_at_prior(
    correct: Tensor, total: Tensor, prior: Tensor, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[MeanInterval, float]:
    """Return the accuracy expected where class c has the share prior[c]: sum of prior[c] * recall[c].

    Classes without test images are left out and the others' weights scaled up. The 95 % percentile bootstrap resamples
    test images within their class; its bounds are None where every class that counts is all right or all wrong.

    Args:
        correct: [C] test images of each class that were right.
        total: [C] test images of each class.
        prior: [C] weights, 0 or more.
        resamples: number of bootstrap test sets.
        seed: of this function's own generator.

    Returns:
        The accuracy, and the share of the prior that lies on classes with test images.

    Raises:
        ValueError: no class has both test images and a positive prior.
    """
    num_classes = prior.numel()
    hits = checked_class_vector(correct, num_classes, "correct").double()
    images = checked_class_vector(total, num_classes, "total").double()
    weights = checked_class_vector(prior, num_classes, "prior").double()
    counted = (images > 0) & (weights > 0)
    if not bool(counted.any()):
        raise ValueError("no class has both test images and a positive prior.")
    covered = float(weights[counted].sum() / weights.sum())
    hits, images, weights = hits[counted], images[counted], weights[counted] / weights[counted].sum()
    value = exact_mean(weights * hits / images) * len(weights)
    if not bool(((hits > 0) & (hits < images)).any()):
        return MeanInterval(value, None, None), covered
    generator = np.random.default_rng(seed)
    drawn = np.zeros(resamples)
    for start in range(0, len(weights), _BLOCK_CLASSES):
        block = slice(start, start + _BLOCK_CLASSES)
        n, share = images[block].long().numpy(), (hits / images)[block].numpy()
        draws = generator.binomial(n, share, size=(resamples, len(n)))
        drawn += draws @ (weights[block] / images[block]).numpy()
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return MeanInterval(value, float(low), float(high)), covered


def finite_shift(shift: Tensor) -> Tensor:
    """Return a shift of logits [C] with -inf (a class that never occurs) replaced by a number below all logits.

    Figures are refused for logits that are not finite; the softmax of such a class is 0 all the same.
    """
    return torch.where(torch.isinf(shift), -1e30, shift.double())
