"""What is taken for what: the most confused pairs, one group for another, and everything for one class."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from longtail.metrics.groups import GROUP_EDGES, GROUPS, group_index
from longtail.metrics.inputs import checked_class_vector, checked_pair

MOST_PAIRS = 50
ONE_CLASS = 0.9
"""Share of the images of all other classes from which a model is said to call (nearly) everything one class."""


class ConfusedPair(TypedDict):
    """Class ``true`` was taken ``count`` times for class ``predicted`` (indices), of ``of`` test images."""

    true: int
    predicted: int
    count: int
    of: int


OneClass = TypedDict("OneClass", {"class": int, "called": int, "others": int, "others_called": int})
"""``called`` test images were taken for ``class``, among them ``others_called`` of the ``others`` of another class."""


def pair_counts(predictions: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return every wrong pair that occurs, as (true [P], predicted [P], count [P]), in order of class indices.

    At most as many as there are images: a confusion matrix would be C x C.
    """
    predictions, labels = checked_pair(predictions, labels, num_classes)
    wrong = predictions != labels
    pairs, counts = torch.unique(labels[wrong] * num_classes + predictions[wrong], return_counts=True)
    return pairs.div(num_classes, rounding_mode="floor"), pairs % num_classes, counts


def confused_pairs(predictions: Tensor, labels: Tensor, num_classes: int, most: int = MOST_PAIRS) -> list[ConfusedPair]:
    """Return the most frequent confusions, at most `most`; of equal counts the largest share of the class first.

    Args:
        predictions: [N] predicted class indices.
        labels: [N] true class indices.
        num_classes: C.
        most: pairs that are returned at most.
    """
    true, predicted, counts = pair_counts(predictions, labels, num_classes)
    images = torch.bincount(labels.detach().cpu(), minlength=num_classes)[true]
    rows = zip(true.tolist(), predicted.tolist(), counts.tolist(), images.tolist(), strict=True)
    ordered = sorted(rows, key=lambda row: (-row[2], row[3], row[0], row[1]))
    return [{"true": t, "predicted": p, "count": n, "of": of} for t, p, n, of in ordered[:most]]


def called_one_class(predictions: Tensor, labels: Tensor, num_classes: int) -> OneClass | None:
    """Return the class that 90 % or more of all images and of those of other classes are taken for; None if none is.

    Images of other classes decide too: that nine images in ten are called "fox" is no fault where nine in ten are.

    Args:
        predictions: [N] predicted class indices.
        labels: [N] true class indices.
        num_classes: C.
    """
    predictions, labels = checked_pair(predictions, labels, num_classes)
    most = int(torch.bincount(predictions, minlength=num_classes).argmax())
    other, named = labels != most, predictions == most
    others, others_called = int(other.sum()), int((other & named).sum())
    called = int(named.sum())
    if not others or others_called < ONE_CLASS * others or called < ONE_CLASS * len(labels):
        return None
    return {"class": most, "called": called, "others": others, "others_called": others_called}


def group_confusion(
    predictions: Tensor, labels: Tensor, class_counts: Tensor, edges: tuple[int, int] = GROUP_EDGES
) -> dict[str, dict[str, int]]:
    """Return how many test images of each group were taken for each group, right answers apart.

    Args:
        predictions: [N] predicted class indices.
        labels: [N] true class indices.
        class_counts: [C] training images of each class; they set the groups.
        edges: see `group_index`.

    Returns:
        {"many": {"images", "right", "many", "medium", "few"}, "medium": ..., "few": ...}: `images` is the sum of
        the other four, and each group among them counts wrong predictions of a class of that group.
    """
    counts = checked_class_vector(class_counts, class_counts.numel(), "class_counts")
    predictions, labels = checked_pair(predictions, labels, counts.numel())
    group, right = group_index(counts, edges), predictions == labels
    kinds = len(GROUPS) + 1
    # Column 0 holds the right answers, column g + 1 the wrong ones in group g.
    column = torch.where(right, 0, group[predictions] + 1)
    table = torch.bincount(group[labels] * kinds + column, minlength=len(GROUPS) * kinds).view(len(GROUPS), kinds)
    return {
        name: {"images": sum(row), "right": row[0], **dict(zip(GROUPS, row[1:], strict=True))}
        for name, row in zip(GROUPS, table.tolist(), strict=True)
    }
