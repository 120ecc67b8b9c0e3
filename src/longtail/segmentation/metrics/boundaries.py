"""How well outlines are met: the boundary F-score of each class.

Precision and recall of boundary pixels within a tolerance (Csurka et al., "What is a good evaluation measure for
semantic segmentation?", BMVC 2013; Perazzi et al., CVPR 2016, whose tolerance of 0.0075 of the diagonal this is).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.segmentation.data.mask_set import IGNORE

_SHARE = 0.0075


def boundary_tolerance(height: int, width: int) -> int:
    """Return within how many pixels outlines agree: 0.0075 of the diagonal, at least 1."""
    return max(1, round(_SHARE * math.hypot(height, width)))


def boundary_f_scores(predictions: Tensor, labels: Tensor, num_classes: int, tolerance: int) -> Tensor:
    """Return the boundary F-score of each class in one image, float64 ``[C]``.

    NaN for a class that is neither true nor predicted in the image; 0 where only one of both is. The outline of a class
    are its pixels beside a pixel of another class. A neighbour that is ignored, or beyond the edge of the image, makes
    no outline, and pixels that are ignored are of no class, whatever is predicted there.

    Args:
        predictions: int64 ``[H, W]``, 0..C-1.
        labels: ``[H, W]``, 0..C-1 or ``IGNORE``.
        num_classes: C.
        tolerance: pixels (of the larger of the two axes' distances) within which outlines agree.
    """
    predictions = torch.where(labels == IGNORE, IGNORE, predictions.long())
    classes = torch.unique(torch.cat([predictions.flatten(), labels.long().flatten()]))
    scores = torch.full((num_classes,), torch.nan, dtype=torch.float64)
    outlines = _outline(predictions), _outline(labels.long())
    for label in classes[classes != IGNORE].tolist():
        given, true = (
            (outline & (map_ == label)).float()
            for outline, map_ in zip(outlines, (predictions, labels.long()), strict=True)
        )
        whole_given, whole_true = float(given.sum()), float(true.sum())
        if not whole_given and not whole_true:
            # No outline on either side: a class that fills all that counts, or that only one side has.
            both = bool((predictions == label).any()) and bool((labels == label).any())
            scores[label] = 1.0 if both else 0.0
            continue
        rows, columns = _box((given + true) > 0, tolerance)
        given, true = given[rows, columns], true[rows, columns]
        near_given, near_true = _grown(given, tolerance), _grown(true, tolerance)
        precision = float((given * near_true).sum()) / whole_given if whole_given else 0.0
        recall = float((true * near_given).sum()) / whole_true if whole_true else 0.0
        scores[label] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return scores


def _box(points: Tensor, margin: int) -> tuple[slice, slice]:
    """Return the rows and columns that hold all ``points [H, W]``, with a margin: most classes lie in a small part."""
    found = []
    for axis, size in ((1, points.shape[0]), (0, points.shape[1])):
        there = points.any(axis).nonzero()
        first, last = int(there[0]), int(there[-1])
        found.append(slice(max(0, first - margin), min(size, last + margin + 1)))
    return found[0], found[1]


def _outline(labels: Tensor) -> Tensor:
    """Return which pixels have a neighbour (up, down, left, right) of another class, bool ``[H, W]``."""
    edge = torch.zeros_like(labels, dtype=torch.bool)
    for one, other in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        differs = (one != other) & (one != IGNORE) & (other != IGNORE)
        if one.shape[0] < labels.shape[0]:
            edge[1:] |= differs
            edge[:-1] |= differs
        else:
            edge[:, 1:] |= differs
            edge[:, :-1] |= differs
    return edge


def _grown(points: Tensor, radius: int) -> Tensor:
    """Return float ``[H, W]``: 1 within ``radius`` pixels of a point, along rows and columns."""
    rows = F.max_pool2d(points[None, None], (2 * radius + 1, 1), 1, (radius, 0))
    return F.max_pool2d(rows, (1, 2 * radius + 1), 1, (0, radius))[0, 0]
