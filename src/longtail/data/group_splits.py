"""Chooses whole groups (patients, sites, bursts) to test on: greedy, and a class never loses its last training image.

To divide groups so that every class's share is exact is a packing problem; here each group is looked at a bounded
number of times, so that the work grows with the (group, class) pairs that occur.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longtail.errors import UserError

_SWEEPS = 4
"""How often each group is looked at: once to fill the test set, then to mend what the first look overshot."""
UNTESTED = 1.0
"""What a class without test images weighs: as much as one whose test share is wrong by all of its images."""
_LEAST_GAIN = 1e-9
"""A move must gain more than rounding could feign, or two groups would change places for ever."""


@dataclass(frozen=True)
class GroupTally:
    """Images counted by group and class: only pairs that occur, sorted by group, as a G x C table would not fit.

    Attributes:
        of_image: position of each image's group, 0..G-1, int64 ``[N]``.
        starts: the pairs of group g lie at ``starts[g]:starts[g + 1]``; length G + 1.
        classes, images: class and number of images of each pair.
        order: the groups by their rarest class, rarest first, and in keyed order within a class.
        class_counts: images of each class, length C.
    """

    of_image: Tensor
    starts: list[int]
    classes: list[int]
    images: list[int]
    order: list[int]
    class_counts: list[int]

    @classmethod
    def of(cls, labels: Tensor, groups: Tensor, bits: Tensor) -> GroupTally:
        """Count ``labels [N]`` by ``groups [N]``; ``bits [N]`` are the images' keyed hashes."""
        _, of_image = torch.unique(groups, return_inverse=True)
        size = int(of_image.max()) + 1 if len(groups) else 0
        counts = np.bincount(labels.numpy(), minlength=1)
        pairs, images = np.unique((of_image * len(counts) + labels).numpy(), return_counts=True)
        owner, classes = np.divmod(pairs, len(counts))
        starts = np.searchsorted(owner, np.arange(size + 1))
        # A group is ordered by the least hash of its images: its number changes when other groups come or go.
        least = torch.full((size,), torch.iinfo(torch.int64).max).scatter_reduce(0, of_image, bits, "amin").numpy()
        rank = np.empty_like(counts)
        rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
        rarest = np.minimum.reduceat(rank[classes], starts[:-1]) if size else least
        return cls(
            of_image,
            starts.tolist(),
            classes.tolist(),
            images.tolist(),
            np.lexsort((least, rarest)).tolist(),
            counts.tolist(),
        )

    def pairs(self, group: int) -> range:
        """Return the positions of a group's pairs in ``classes`` and ``images``."""
        return range(self.starts[group], self.starts[group + 1])


def choose_test_groups(tally: GroupTally, target: list[int]) -> Tensor:
    """Return which groups to test on, bool ``[G]``, so that each class has about ``target`` (length C) test images.

    Descends on the sum over classes of |test images - target| / images, so that a rare class weighs as much as a
    frequent one, plus :data:`UNTESTED` for each class without test images.
    """
    division = _Division(tally, target)
    division.sweep(tally.order, untested=0.0)
    # Lightest first: of two groups that could give a class its only test images, the one that disturbs less.
    burden = [sum(tally.images[p] / tally.class_counts[tally.classes[p]] for p in tally.pairs(g)) for g in tally.order]
    lightest = [tally.order[position] for position in np.argsort(burden, kind="stable").tolist()]
    for _ in range(_SWEEPS - 1):
        if not division.sweep(lightest, UNTESTED):
            break
    return torch.tensor(division.is_test, dtype=torch.bool)


class _Division:
    """Which groups test, and how many test images that gives each class."""

    def __init__(self, tally: GroupTally, target: list[int]) -> None:
        self.tally, self.target = tally, target
        self.tested = [0] * len(tally.class_counts)
        self.is_test = [False] * len(tally.order)

    def sweep(self, order: list[int], untested: float) -> bool:
        """Move every group that gains by it, and return whether any did."""
        moved = False
        for group in order:
            if self._gain(group, untested) > _LEAST_GAIN:
                self._move(group)
                moved = True
        return moved

    def _gain(self, group: int, untested: float) -> float:
        """Return by how much a move of ``group`` descends; -inf if it would take a class's last training image."""
        tally, sign, total = self.tally, (-1 if self.is_test[group] else 1), 0.0
        for pair in tally.pairs(group):
            label = tally.classes[pair]
            before, aim, count = self.tested[label], self.target[label], tally.class_counts[label]
            after = before + sign * tally.images[pair]
            if after == count:
                return -math.inf
            total += (abs(aim - before) - abs(aim - after)) / count
            total += untested * ((after > 0) - (before > 0))
        return total

    def _move(self, group: int) -> None:
        sign = -1 if self.is_test[group] else 1
        self.is_test[group] = not self.is_test[group]
        for pair in self.tally.pairs(group):
            self.tested[self.tally.classes[pair]] += sign * self.tally.images[pair]


def choose_folds(tally: GroupTally, folds: int) -> Tensor:
    """Return the fold of each group, int64 ``[G]``: 0..folds-1, or -1 for always training.

    Each group goes where its classes are rarest so far, and of such folds to the smallest. A class must not come to
    lie in one fold as a whole: a group that would bring that about in every fold stays in training.

    Raises:
        UserError: fewer groups than folds can be tested.
    """
    counts = tally.class_counts
    in_fold = [[0] * folds for _ in counts]
    size = [0] * folds
    fold = [-1] * len(tally.order)
    of_all = 1 / max(1, sum(counts)) ** 2
    for group in tally.order:
        members = [(tally.classes[pair], tally.images[pair]) for pair in tally.pairs(group)]
        if any(images == counts[label] for label, images in members):
            continue
        # The change of the sum of squared shares, over classes and of all images.
        weight = of_all * sum(images for _, images in members)
        cost = [weight * held for held in size]
        for label, images in members:
            weight, lone = images / counts[label] ** 2, counts[label] - images
            cost = [
                math.inf if held == lone else at + weight * held for at, held in zip(cost, in_fold[label], strict=True)
            ]
        least = min(cost)
        if least < math.inf:
            fold[group] = best = cost.index(least)
            for label, images in members:
                in_fold[label][best] += images
                size[best] += images
    used = sum(held > 0 for held in size)
    if used < folds:
        raise UserError(
            f"--folds {folds} needs {folds} groups that can be tested without leaving a class untrained, but there are "
            f"{used}; " + (f"choose {used} or fewer." if used > 1 else "give more groups, or none.")
        )
    return torch.tensor(fold, dtype=torch.int64)
