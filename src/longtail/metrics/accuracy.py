"""Accuracy, and the averages of it over classes that a long tail calls for.

A class without test images has recall NaN and takes part in no average.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longtail.metrics.inputs import checked_indices, checked_logits, checked_pair, exact_mean, row_blocks

HARMONIC_FLOOR = 0.01


def topk_accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Fraction of images whose label is among the `k` highest scores.

    Equal scores rank by class index, lowest first, so k = 1 agrees with `torch.argmax`.

    Args:
        scores: [N, C], finite; any increasing function of the logits.
        labels: [N] class indices.
        k: 1..C.

    Raises:
        ValueError: for shapes, labels, scores or a `k` out of range.
    """
    labels = checked_logits(scores, labels)
    num_classes = scores.shape[1]
    if not 1 <= k <= num_classes:
        raise ValueError(f"k must lie in 1..{num_classes} (the number of classes), got {k}.")
    columns = torch.arange(num_classes)
    hits = 0
    for rows, block in row_blocks(scores):
        target = labels[rows, None]
        own = block.gather(1, target)
        ahead = (block > own) | ((block == own) & (columns < target))
        hits += int((ahead.sum(dim=1) < k).sum())
    return hits / len(labels)


def class_hits(predictions: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return (correct [C], test images [C]) as int64, from predictions [N] and labels [N]."""
    predictions, labels = checked_pair(predictions, labels, num_classes)
    correct = torch.bincount(labels[predictions == labels], minlength=num_classes)
    return correct, torch.bincount(labels, minlength=num_classes)


def class_recall(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return each class's accuracy [C] in float64: correct / test images, NaN for a class without any."""
    correct, total = class_hits(predictions, labels, num_classes)
    return correct.double() / total.double()


def _tested(recall: Tensor) -> Tensor:
    """Return the recalls that are not NaN, as float64 on the CPU; ValueError if there are none."""
    if recall.ndim != 1:
        raise ValueError(f"recall must have the shape [C], got {list(recall.shape)}.")
    recall = recall.detach().cpu().double()
    recall = recall[~recall.isnan()]
    if recall.numel() == 0:
        raise ValueError("recall is NaN for every class: no class has a test image.")
    return recall


def balanced_accuracy(recall: Tensor) -> float:
    """Mean of recall [C] over the classes that have test images."""
    return exact_mean(_tested(recall))


def worst_class(recall: Tensor) -> tuple[int, float]:
    """Return (class index, recall) of the lowest of recall [C]; of equals, the first."""
    _tested(recall)
    filled = recall.detach().cpu().double().nan_to_num(nan=float("inf"))
    index = int(filled.argmin())
    return index, float(filled[index])


def harmonic_mean(recall: Tensor, floor: float = HARMONIC_FLOOR) -> float:
    """Harmonic mean of recall [C] over the tested classes, each recall raised to `floor` first.

    Without a floor one class at 0 makes the figure 0. With it, such a class weighs 1 / floor, so the floor
    decides the figure as soon as a class has recall 0: report the two together.

    Raises:
        ValueError: if `floor` is not in (0, 1], or no class has a test image.
    """
    if not 0 < floor <= 1:
        raise ValueError(f"floor must lie above 0 and not above 1, got {floor}.")
    return 1 / exact_mean(_tested(recall).clamp(min=floor).reciprocal())


def macro_f1(predictions: Tensor, labels: Tensor, num_classes: int) -> float:
    """Mean over classes of F1 = 2 * correct / (test images + predictions of the class).

    Convention: a class that occurs in neither `labels` [N] nor `predictions` [N] is left out; one that is
    predicted but has no test image counts as 0. This is scikit-learn's `f1_score(average="macro")`.
    """
    correct, total = class_hits(predictions, labels, num_classes)
    predicted = torch.bincount(checked_indices(predictions, num_classes, "predictions"), minlength=num_classes)
    present = (total + predicted) > 0
    f1 = 2 * correct[present].double() / (total + predicted)[present].double()
    return exact_mean(f1)
