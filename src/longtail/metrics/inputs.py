"""What every figure does first: check its tensors and bring them to the CPU, a block of rows at a time.

Figures are computed on the CPU in float64, so the same logits give the same figures on any device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# A float64 block of 2^22 numbers takes 32 MiB: [N, C] is never copied whole, whatever C is.
BLOCK_NUMBERS = 2**22


def checked_indices(indices: Tensor, num_classes: int, what: str = "labels") -> Tensor:
    """Return class indices [N] as int64 on the CPU.

    Raises ValueError unless they are a non-empty vector of integers in 0..num_classes-1.
    """
    if indices.ndim != 1:
        raise ValueError(f"{what} must have the shape [N], got {list(indices.shape)}.")
    if indices.dtype == torch.bool or indices.is_floating_point() or indices.is_complex():
        raise ValueError(f"{what} must be integers, got {indices.dtype}.")
    if indices.numel() == 0:
        raise ValueError(f"{what} are empty: there is no test image to compute a figure on.")
    indices = indices.detach().cpu().long()
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise ValueError(f"{what} hold {wrong}, but with {num_classes} classes they lie in 0..{num_classes - 1}.")
    return indices


def checked_pair(predictions: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return predictions [N] and labels [N] as int64 on the CPU, or raise ValueError."""
    labels = checked_indices(labels, num_classes)
    predictions = checked_indices(predictions, num_classes, "predictions")
    if len(predictions) != len(labels):
        raise ValueError(f"there are {len(predictions)} predictions for {len(labels)} labels.")
    return predictions, labels


def checked_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Return labels [N] as int64 on the CPU after checking them against logits [N, C].

    Raises ValueError for a wrong shape, a wrong dtype or labels out of range; `row_blocks` checks the values.
    """
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must have the shape [N, C] with C > 0, got {list(logits.shape)}.")
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating-point numbers, got {logits.dtype}.")
    if labels.ndim == 1 and len(labels) != len(logits):
        raise ValueError(f"there are {len(logits)} rows of logits for {len(labels)} labels.")
    return checked_indices(labels, logits.shape[1])


def checked_class_vector(values: Tensor, num_classes: int, what: str) -> Tensor:
    """Return one number a class, [C], as float64 on the CPU; ValueError unless finite and not negative."""
    if values.ndim != 1 or len(values) != num_classes:
        raise ValueError(f"{what} must have the shape [{num_classes}], got {list(values.shape)}.")
    values = values.detach().cpu().double()
    if not bool(torch.isfinite(values).all()) or bool((values < 0).any()):
        raise ValueError(f"{what} must be finite and not negative.")
    return values


def zeros_as_rarest(prior: Tensor, what: str = "prior") -> Tensor:
    """Return a class prior [C] in which a class of prior 0 has that of the rarest other one.

    Where a prior is divided by, a class that has none would be boosted without end; this is the one place that says
    what it counts as instead. Raises ValueError if every class has 0.
    """
    positive = prior > 0
    if not bool(positive.any()):
        raise ValueError(f"{what} is 0 in every class.")
    return torch.where(positive, prior, prior[positive].min())


def exact_mean(values: Tensor) -> float:
    """Return the mean of values [N], N > 0, summed without rounding: order and thread count change no bit."""
    return math.fsum(values.tolist()) / len(values)


def row_blocks(logits: Tensor, first: int = 0) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, logits[rows] in float64 on the CPU); ValueError for a logit that is not finite.

    With logits that are a part of all, `first` is the number of their first row, and `rows` count from there.
    """
    rows = max(1, BLOCK_NUMBERS // logits.shape[1])
    for start in range(0, len(logits), rows):
        part = slice(first + start, first + min(start + rows, len(logits)))
        block = logits[start : start + rows].detach().cpu().double()
        if not bool(torch.isfinite(block).all()):
            image = part.start + int((~torch.isfinite(block)).any(dim=1).nonzero()[0, 0])
            raise ValueError(f"the logits of test image {image} hold a value that is not finite.")
        yield part, block
