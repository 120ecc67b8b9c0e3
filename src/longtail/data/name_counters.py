"""A guess at bursts where no groups are given: files whose names count up (IMG_0412, IMG_0413) and that look alike."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from longtail.data.check_images import Paths
from longtail.data.keyed import keyed_permutation
from longtail.data.near_duplicates import likeness_of

ALIKE = 0.15
"""By how much neighbours must be more alike (median of :func:`likeness_of`) than other pairs of their class."""
FEWEST = 20
"""Pairs of neighbours below which nothing is guessed."""

_COUNTER = re.compile(r"(\d{1,15})(\D*)$")  # the last run of digits of a name
_SAMPLE = 2000


@dataclass(frozen=True)
class NumberedNeighbours:
    """Pairs of one class whose file names count one further.

    Attributes:
        pairs: int64 ``[M, 2]``, positions; the lower number first.
        likeness: median :func:`likeness_of` of the pairs; None with fewer than :data:`FEWEST`.
        usual: the same of other pairs of a class.
    """

    pairs: NDArray[np.int64]
    likeness: float | None
    usual: float | None

    @property
    def bursts(self) -> bool:
        """Whether neighbours are so much alike that the numbers seem to follow the camera."""
        return self.likeness is not None and self.usual is not None and self.likeness - self.usual >= ALIKE


def numbered_neighbours(paths: Paths, labels: NDArray[np.int64], thumbs: NDArray[np.uint8]) -> NumberedNeighbours:
    """Find images whose names differ only in a counter, by one, and compare them with other pairs of their class.

    Folders do not count, as a split puts neighbours into different ones.

    Args:
        paths: N paths.
        labels: ``[N]``.
        thumbs: uint8 ``[N, S, S]``.
    """
    stems: dict[tuple[str, str], int] = {}
    rows = []
    for index in range(len(paths)):
        stem = paths[index].rpartition("/")[2].rpartition(".")[0]
        counter = _COUNTER.search(stem)
        if counter:
            kind = stems.setdefault((stem[: counter.start()], counter.group(2)), len(stems))
            rows.append((int(labels[index]), kind, int(counter.group(1)), index))
    table = np.array(sorted(rows), np.int64).reshape(-1, 4)
    step = np.diff(table, axis=0)
    follows = (step[:, :2] == 0).all(1) & (step[:, 2] == 1)
    pairs = np.stack([table[:-1][follows, 3], table[1:][follows, 3]], 1)
    if len(pairs) < FEWEST:
        return NumberedNeighbours(pairs, None, None)
    some = pairs[keyed_permutation(0, "neighbours", size=len(pairs))[:_SAMPLE].numpy()]
    return NumberedNeighbours(pairs, _median(thumbs, some), _median(thumbs, _other_pairs(table)))


def _other_pairs(table: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return pairs of one class, each of images far apart in the order of names: half of the class's length."""
    pairs = []
    bounds = np.flatnonzero(np.diff(table[:, 0], prepend=-1, append=-1))
    for start, end in pairwise(bounds.tolist()):
        half = (end - start) // 2
        if half > 1:
            pairs.append(np.stack([table[start : start + half, 3], table[start + half : start + 2 * half, 3]], 1))
    if not pairs:
        return np.zeros((0, 2), np.int64)
    joined = np.concatenate(pairs)
    some: NDArray[np.int64] = joined[keyed_permutation(0, "others", size=len(joined))[:_SAMPLE].numpy()]
    return some


def _median(thumbs: NDArray[np.uint8], pairs: NDArray[np.int64]) -> float | None:
    return float(np.median(likeness_of(thumbs, pairs))) if len(pairs) >= FEWEST else None
