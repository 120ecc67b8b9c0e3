"""Many, medium and few: accuracy by how often a class was seen in training.

The split is that of Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from longtail.metrics.inputs import checked_class_vector, exact_mean

GROUPS = ("many", "medium", "few")
GROUP_EDGES = (100, 20)


class GroupFigures(TypedDict):
    """One group's row: its accuracy (None if no class of it was tested) and its numbers of classes."""

    accuracy: float | None
    classes: int
    tested_classes: int


def group_index(class_counts: Tensor, edges: tuple[int, int] = GROUP_EDGES) -> Tensor:
    """Return each class's position in `GROUPS`, [C] int64, from its number of training images.

    Args:
        class_counts: [C] training images a class.
        edges: many is above the first, few is below the second, medium is the rest, edges included.

    Raises:
        ValueError: if the second edge is above the first, or the counts are negative or not finite.
    """
    many_above, few_below = edges
    if few_below > many_above:
        raise ValueError(f"group edges must be (many above, few below) with the larger first, got {tuple(edges)}.")
    counts = checked_class_vector(class_counts, class_counts.numel(), "class_counts")
    return 1 - (counts > many_above).long() + (counts < few_below).long()


def group_accuracy(
    recall: Tensor, class_counts: Tensor, edges: tuple[int, int] = GROUP_EDGES
) -> dict[str, GroupFigures]:
    """Return each group's mean class recall.

    Args:
        recall: [C], NaN for a class without test images; such a class is left out of the mean.
        class_counts: [C] training images a class.
        edges: see `group_index`.

    Returns:
        {"many": {"accuracy", "classes", "tested_classes"}, "medium": ..., "few": ...}: `classes` counts the
        group's classes by training images, `tested_classes` those of them with test images. The accuracy
        of a group without a tested class is None, which is not 0.
    """
    if recall.shape != class_counts.shape:
        raise ValueError(
            f"recall and class_counts must both have the shape [C], "
            f"got {list(recall.shape)} and {list(class_counts.shape)}."
        )
    recall = recall.detach().cpu().double()
    index = group_index(class_counts, edges)
    tested = ~torch.isnan(recall)
    figures: dict[str, GroupFigures] = {}
    for position, name in enumerate(GROUPS):
        members = index == position
        values = recall[members & tested]
        figures[name] = {
            "accuracy": exact_mean(values) if len(values) else None,
            "classes": int(members.sum()),
            "tested_classes": len(values),
        }
    return figures
