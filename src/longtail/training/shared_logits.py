"""A test set over several processes: batch after batch in turn, the logits on the first one in order, none twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from longtail.ranks import Ranks


def logits_in_turn(
    own: Iterable[Tensor], sizes: Sequence[int], classes: int, ranks: Ranks, device: torch.device
) -> Iterator[Tensor]:
    """Yield the logits ``[size, classes]`` of every batch in order, on the first process; elsewhere its own ones.

    Batch k is computed by process k modulo their number; the last round leaves some without one, and they send nothing
    that counts.

    Args:
        own: logits of this process's batches, in order.
        sizes: of all batches.
        classes: C.
        ranks: who computes.
        device: where logits are.
    """
    mine = iter(own)
    for first in range(0, len(sizes), ranks.world):
        round_sizes = sizes[first : first + ranks.world]
        most = max(round_sizes)
        sent = torch.zeros(most, classes, device=device)
        part: Tensor | None = None
        if ranks.rank < len(round_sizes):
            part = next(mine)
            sent[: len(part)] = part
        places = [torch.empty_like(sent) for _ in range(ranks.world)] if ranks.is_main else None
        dist.gather(sent, places, dst=0)
        if places is not None:
            yield from (place[:size] for place, size in zip(places, round_sizes, strict=False))
        elif part is not None:
            yield part
