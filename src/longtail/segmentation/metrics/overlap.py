"""How well predicted and true regions of each class overlap, summed over pixels of many images."""

from __future__ import annotations

import torch
from torch import Tensor

from longtail.segmentation.data.mask_set import IGNORE


def confusion_of(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return how many pixels of each true class (rows) were given each class (columns), int64 ``[C, C]``.

    Args:
        predictions: integers of any shape, 0..C-1.
        labels: of the same shape, 0..C-1 or ``IGNORE``: such pixels count nowhere, whatever was predicted.
        num_classes: C.

    Raises:
        ValueError: shapes differ, or a value is out of range.
    """
    if predictions.shape != labels.shape:
        raise ValueError(f"predictions {list(predictions.shape)} and labels {list(labels.shape)} differ in shape.")
    counted = labels != IGNORE
    true, given = labels[counted].long(), predictions[counted].long()
    if true.numel() and (
        min(int(true.min()), int(given.min())) < 0 or max(int(true.max()), int(given.max())) >= num_classes
    ):
        raise ValueError(f"labels and predictions must lie in 0..{num_classes - 1}.")
    return torch.bincount(true * num_classes + given, minlength=num_classes**2).view(num_classes, num_classes)


def regions_of(confusion: Tensor) -> Tensor:
    """Return (intersection, predicted, true) pixels of each class, int64 ``[3, C]``, of a ``confusion [C, C]``."""
    return torch.stack([confusion.diagonal(), confusion.sum(0), confusion.sum(1)])


def iou_of(regions: Tensor) -> Tensor:
    """Return intersection over union, float64 ``[..., C]``, of ``regions [..., 3, C]``.

    NaN for a class that is neither true nor predicted anywhere: it says nothing, and means leave it out.
    """
    hit, predicted, true = regions.double().unbind(-2)
    union = predicted + true - hit
    return torch.where(union > 0, hit / union.clamp(min=1), torch.nan)


def mean_iou(regions: Tensor, classes: Tensor | None = None) -> Tensor:
    """Return the mean IoU over the classes that occur (true or predicted), float64 ``[...]``; NaN if none does.

    Args:
        regions: ``[..., 3, C]``.
        classes: int64 ``[M]``, those that count; None = all.
    """
    iou = iou_of(regions)
    return (iou if classes is None else iou[..., classes]).nanmean(-1)


def recall_of(regions: Tensor) -> Tensor:
    """Return the share of each class's true pixels that were found, float64 ``[C]``; NaN without true pixels."""
    hit, _, true = regions.double().unbind(-2)
    return torch.where(true > 0, hit / true.clamp(min=1), torch.nan)


def precision_of(regions: Tensor) -> Tensor:
    """Return the share of pixels called a class that are of it, float64 ``[C]``; NaN where none is called so."""
    hit, predicted, _ = regions.double().unbind(-2)
    return torch.where(predicted > 0, hit / predicted.clamp(min=1), torch.nan)


def frequency_weighted_iou(regions: Tensor) -> float:
    """Return the mean IoU with classes weighing as many test pixels as they have (Long et al., CVPR 2015)."""
    true = regions[2].double()
    return float((true * iou_of(regions).nan_to_num()).sum() / true.sum().clamp(min=1))


def pixel_accuracy(regions: Tensor) -> float:
    """Return the share of all counted pixels that are right; NaN where none counts."""
    return float(regions[0].sum().double() / regions[2].sum().double()) if int(regions[2].sum()) else float("nan")
