"""Which classes each of several processes holds the queue of."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from torch import Tensor


def class_shards(lengths: Tensor, shards: int) -> list[int]:
    """Split classes ``0..C-1`` into contiguous runs whose largest number of slots is as small as it can be.

    Args:
        lengths: slots of each class, int64 ``[C]``, each 1 or more.
        shards: W, 1 or more; with more shards than classes some are empty.

    Returns:
        ``[W + 1]`` class indices that rise from 0 to C: shard r holds classes ``edges[r]`` up to ``edges[r + 1]``.
    """
    ends = [0, *accumulate(lengths.tolist())]

    def cut(most: int) -> list[int]:
        """Fill one shard after the other with ``most`` slots at most."""
        edges = [0]
        for _ in range(shards):
            edges.append(bisect_right(ends, ends[edges[-1]] + most) - 1)
        return edges

    # The smallest "most" that leaves no class over lies between the mean (or the longest class) and all slots.
    low, high = max(-(-ends[-1] // shards), int(lengths.max())), ends[-1]
    while low < high:
        middle = (low + high) // 2
        if cut(middle)[-1] == len(lengths):
            high = middle
        else:
            low = middle + 1
    return cut(low)
