"""Calibration: does a confidence of 0.8 mean right 8 times in 10?

Expected calibration error as in Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (Eq. 3).
"""

from __future__ import annotations

import math
from typing import TypedDict

import torch
from torch import Tensor

from longtail.metrics.inputs import checked_class_vector, checked_indices, exact_mean, row_blocks

BINS = 15


class ReliabilityBin(TypedDict):
    """One bin (low, high] of confidence; the means are None where the bin is empty."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


def predict_with_confidence(logits: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the predicted class [N] int64 and its probability [N] float64, softmax(logits [N, C] / temperature).

    Of equal logits the first class wins. Raises ValueError for another shape or a logit that is not finite.
    """
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must have the shape [N, C] with C > 0, got {list(logits.shape)}.")
    predictions = torch.empty(len(logits), dtype=torch.long)
    confidence = torch.empty(len(logits), dtype=torch.float64)
    for rows, block in row_blocks(logits):
        predictions[rows] = block.argmax(dim=1)
        # The winner's logit is the row's maximum, so its probability is one over the normaliser.
        confidence[rows] = 1 / ((block - block.amax(dim=1, keepdim=True)) / temperature).exp().sum(dim=1)
    return predictions, confidence


def _checked(confidence: Tensor, correct: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Return (confidence [N] float64, correct [N] float64) on the CPU, or raise ValueError."""
    if confidence.ndim != 1 or confidence.shape != correct.shape:
        raise ValueError(
            f"confidence and correct must both have the shape [N], "
            f"got {list(confidence.shape)} and {list(correct.shape)}."
        )
    if confidence.numel() == 0:
        raise ValueError("confidence is empty: there is no test image to compute a figure on.")
    if correct.dtype != torch.bool:
        raise ValueError(f"correct must be boolean, got {correct.dtype}.")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}.")
    confidence = confidence.detach().cpu().double()
    if not bool(((confidence >= 0) & (confidence <= 1)).all()):
        raise ValueError("confidence must lie in 0..1.")
    return confidence, correct.detach().cpu().double()


def _bin_index(confidence: Tensor, bins: int) -> Tensor:
    """Return the bin [N] of each confidence: bin b is (b / bins, (b + 1) / bins], and 0 is in the first."""
    inner_edges = torch.arange(1, bins, dtype=torch.float64) / bins
    return torch.bucketize(confidence, inner_edges)


def expected_calibration_error(
    confidence: Tensor, correct: Tensor, bins: int = BINS, weights: Tensor | None = None
) -> float:
    """Mean over images of |accuracy - mean confidence| of the image's bin, over equal-width bins.

    Args:
        confidence: [N] probability given to the predicted class, 0..1.
        correct: [N] bool.
        bins: number of bins, each (low, high]; a confidence of 0 is in the first.
        weights: [N] how much each image counts, not negative; default: all alike.
    """
    confidence, hits = _checked(confidence, correct, bins)
    weights = torch.ones(len(hits)) if weights is None else weights
    weights = checked_class_vector(weights, len(hits), "weights")
    gap = torch.bincount(_bin_index(confidence, bins), weights=weights * (hits - confidence), minlength=bins)
    return math.fsum(gap.abs().tolist()) / math.fsum(weights.tolist())


def class_calibration_error(
    confidence: Tensor, correct: Tensor, labels: Tensor, num_classes: int, bins: int = BINS
) -> float:
    """Mean over true classes of the calibration error on that class's images alone.

    Every class that has test images weighs the same, so rare classes are not drowned out. With few images a
    class the bins hold few each, and the figure is large even for a calibrated model: compare it only
    between models on the same test set.

    Args:
        confidence: [N] probability given to the predicted class, 0..1.
        correct: [N] bool.
        labels: [N] true class indices.
        num_classes: C.
        bins: as in `expected_calibration_error`.
    """
    confidence, hits = _checked(confidence, correct, bins)
    labels = checked_indices(labels, num_classes)
    if len(labels) != len(confidence):
        raise ValueError(f"there are {len(confidence)} confidences for {len(labels)} labels.")
    cell = labels * bins + _bin_index(confidence, bins)
    gap = torch.bincount(cell, weights=hits - confidence, minlength=num_classes * bins)
    total = torch.bincount(labels, minlength=num_classes)
    class_gap = gap.view(num_classes, bins).abs().sum(dim=1)
    tested = total > 0
    return exact_mean(class_gap[tested] / total[tested])


def reliability(confidence: Tensor, correct: Tensor, bins: int = BINS) -> list[ReliabilityBin]:
    """Return the table behind a reliability diagram: each bin's images, mean confidence and accuracy.

    Args and bins as in `expected_calibration_error`.
    """
    confidence, hits = _checked(confidence, correct, bins)
    index = _bin_index(confidence, bins)
    counts = torch.bincount(index, minlength=bins).tolist()
    confidences = torch.bincount(index, weights=confidence, minlength=bins).tolist()
    accuracies = torch.bincount(index, weights=hits, minlength=bins).tolist()
    return [
        {
            "low": position / bins,
            "high": (position + 1) / bins,
            "count": count,
            "confidence": confidences[position] / count if count else None,
            "accuracy": accuracies[position] / count if count else None,
        }
        for position, count in enumerate(counts)
    ]
