"""Many, medium and few where every pixel has a class: by the pixels of a class, and by the images that hold it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from longtail.metrics import GROUPS

RAREST = 4


class GroupIoU(TypedDict):
    """Mean IoU of a group of classes, None where none of them occurs in the test."""

    iou: float | None
    classes: int


def groups_by_pixels(class_counts: Tensor, edges: Sequence[float]) -> list[str]:
    """Return the group of each class by its share of the training pixels.

    Args:
        class_counts: ``[C]`` training pixels.
        edges: in equal shares 1/C: above the first is "many", below the second "few".
    """
    return _groups(class_counts.double() * len(class_counts) / class_counts.sum().clamp(min=1), edges)


def groups_by_images(image_counts: Tensor, images: int, edges: Sequence[float]) -> list[str]:
    """Return the group of each class by the share of ``images`` training images that hold it (``[C]``)."""
    return _groups(image_counts.double() / max(images, 1), edges)


def _groups(values: Tensor, edges: Sequence[float]) -> list[str]:
    many, few = edges
    return ["many" if value > many else "few" if value < few else "medium" for value in values.tolist()]


def group_iou(iou: Tensor, groups: Sequence[str]) -> dict[str, GroupIoU]:
    """Return the mean IoU of each group, over its classes that occur (``iou [C]``, NaN where one does not)."""
    found: dict[str, GroupIoU] = {}
    for group in GROUPS:
        own = iou[torch.tensor([name == group for name in groups])]
        seen = own[~own.isnan()]
        found[group] = {"iou": float(seen.mean()) if len(seen) else None, "classes": len(own)}
    return found


def rarest_classes(class_counts: Tensor, test_pixels: Tensor, number: int = RAREST) -> list[int]:
    """Return the classes of fewest training pixels, but some, among those that the test holds, rarest first."""
    order = torch.argsort(class_counts, stable=True).tolist()
    return [label for label in order if int(test_pixels[label]) and int(class_counts[label])][:number]
