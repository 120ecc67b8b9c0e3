"""A step's images with their masks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from longtail.data.loading import Batch


@dataclass
class DenseBatch(Batch):
    """One step's samples; all views of an image show the same crop of it, so that one mask belongs to all.

    Attributes:
        views: view name to float32 ``[B, 3, H, W]``, normalised.
        labels: int64 ``[B, H, W]``, 0..C-1 or ``IGNORE``.
        ids: int64 ``[B]``, positions in the training set.
        keys: int64 ``[B]``, unlike for every (epoch, image): what draws within the image are keyed by.
    """

    keys: Tensor
