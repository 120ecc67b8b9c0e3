"""What other test images would change: bootstrap over images, each drawn with all its pixels.

Pixels of one image hang together, so an interval over pixels would be far too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from longtail.segmentation.metrics.overlap import mean_iou

_DRAWS, _LEVEL = 1000, 0.95
_AT_ONCE = 50


class Interval(TypedDict):
    """A bootstrap interval; ends are None where there are fewer than two images."""

    low: float | None
    high: float | None
    level: float
    method: str


class PairedDifference(TypedDict):
    """Mean IoU of one run less that of another on the same images, with a bootstrap interval."""

    difference: float
    low: float | None
    high: float | None
    level: float


def bootstrap_miou(
    per_image: Tensor, classes: Sequence[int] | None = None, level: float = _LEVEL, draws: int = _DRAWS, seed: int = 0
) -> Interval:
    """Return the percentile interval of mean IoU when test images are drawn anew with replacement.

    Args:
        per_image: int64 ``[N, 3, C]``: pixels of each class that are right, predicted and true in each image.
        classes: those that the mean is over; None = all.
        level: of the interval.
        draws: how often the images are drawn.
        seed: of the draws.
    """
    values = None if len(per_image) < 2 else _means([per_image], classes, draws, seed)[0]
    low, high = (None, None) if values is None else _ends(values, level)
    return {"low": low, "high": high, "level": level, "method": "bootstrap over images"}


def paired_miou_difference(
    per_image: Tensor,
    other: Tensor,
    classes: Sequence[int] | None = None,
    level: float = _LEVEL,
    draws: int = _DRAWS,
    seed: int = 0,
) -> PairedDifference:
    """Return mean IoU of one run less that of ``other``, with the interval when both see the same drawn images.

    Args:
        per_image, other: int64 ``[N, 3, C]`` of the two runs on the same test images in the same order.
        classes, level, draws, seed: as for :func:`bootstrap_miou`.

    Raises:
        ValueError: shapes or true pixels differ, so the test images are not the same.
    """
    if per_image.shape != other.shape or not torch.equal(per_image[:, 2], other[:, 2]):
        raise ValueError("the two runs were not tested on the same images with the same masks.")
    chosen = None if classes is None else torch.as_tensor(classes)
    whole = float(mean_iou(per_image.sum(0), chosen) - mean_iou(other.sum(0), chosen))
    if len(per_image) < 2:
        return {"difference": whole, "low": None, "high": None, "level": level}
    mine, theirs = _means([per_image, other], classes, draws, seed)
    low, high = _ends(mine - theirs, level)
    return {"difference": whole, "low": low, "high": high, "level": level}


def _means(runs: Sequence[Tensor], classes: Sequence[int] | None, draws: int, seed: int) -> list[Tensor]:
    """Return mean IoU of each run in each draw, float64 ``[draws]`` each; the runs share the drawn images."""
    images, chosen = len(runs[0]), None if classes is None else torch.as_tensor(classes)
    generator = torch.Generator().manual_seed(seed)
    found: list[list[Tensor]] = [[] for _ in runs]
    for start in range(0, draws, _AT_ONCE):
        drawn = torch.randint(images, (min(_AT_ONCE, draws - start), images), generator=generator)
        weights = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(drawn.shape, dtype=torch.float64)
        )
        for values, run in zip(found, runs, strict=True):
            regions = (weights @ run.flatten(1).double()).view(-1, *run.shape[1:])
            values.append(mean_iou(regions, chosen))
    return [torch.cat(values) for values in found]


def _ends(values: Tensor, level: float) -> tuple[float | None, float | None]:
    values = values[~values.isnan()]  # a draw may hold no image with one of the chosen classes
    if not len(values):
        return None, None
    tail = (1 - level) / 2
    low, high = values.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return float(low), float(high)
