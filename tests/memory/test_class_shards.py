"""The split of classes over processes against all splits there are."""

from itertools import combinations_with_replacement, pairwise

import pytest
import torch

from longtail.memory.class_shards import class_shards


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("seed", range(6))
def test_no_contiguous_split_has_a_smaller_largest_share(shards, seed):
    lengths = torch.randint(1, 12, (6,), generator=torch.Generator().manual_seed(seed))
    edges = class_shards(lengths, shards)
    assert len(edges) == shards + 1
    assert (edges[0], edges[-1]) == (0, 6)
    assert edges == sorted(edges)

    def largest(cuts):
        ends = [0, *cuts, 6]
        return max(int(lengths[a:b].sum()) for a, b in pairwise(ends))

    best = min(largest(cuts) for cuts in combinations_with_replacement(range(7), shards - 1))
    assert largest(edges[1:-1]) == best
