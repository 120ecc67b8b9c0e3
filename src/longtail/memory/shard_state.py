"""Checkpoints of sharded queues: the same files, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from longtail.errors import UserError
from longtail.memory.sharded_queue import ShardedClassQueue

_BY_SLOT = ("features", "ids", "filled")


def sharded_queues(module: nn.Module) -> Iterator[tuple[str, ShardedClassQueue]]:
    """Yield the sharded queues in ``module`` and what the names of their buffers begin with."""
    for name, child in module.named_modules():
        if isinstance(child, ShardedClassQueue):
            yield (f"{name}." if name else ""), child


@torch.no_grad()
def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Return ``module.state_dict()`` with every sharded queue as one :class:`longtail.memory.ClassQueue` would hold it.

    Every process calls it at the same time. The first one gets the whole queue, on the host, a share at a time; the
    others, which write nothing, get their own share. Without a sharded queue it is ``module.state_dict()``.
    """
    state: dict[str, Tensor] = module.state_dict()
    for prefix, queue in sharded_queues(module):
        parts: dict[str, list[Tensor]] = {name: [] for name in (*_BY_SLOT, "pointers")}
        for rank in range(queue.world):
            for name, part in _part(queue, rank).items():
                parts[name].append(part)
        if queue.rank == 0:
            state.update({prefix + name: torch.cat(found) for name, found in parts.items()})
            state.update({prefix + name: value for name, value in _layout(queue.whole_lengths).items()})
    return state


def own_share(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors``, a state of :func:`whole_state`, with this process's share of every sharded queue.

    Args:
        module: what is to load it, with queues of the number of processes that there are now.
        tensors: by name; those of a :class:`longtail.memory.ClassQueue`, or of any number of shares.

    Raises:
        UserError: the saved queue has another layout.
    """
    own = dict(tensors)
    for prefix, queue in sharded_queues(module):
        lengths = tensors.get(f"{prefix}lengths")
        if lengths is None or not torch.equal(lengths.cpu(), queue.whole_lengths):
            raise UserError(
                f"{prefix}lengths: the saved queue has another layout (it was made for other class_counts, capacity or "
                "min_per_class); build the queue with the same ones to load it."
            )
        slots = slice(*queue.slot_edges[queue.rank : queue.rank + 2])
        own.update({prefix + name: tensors[prefix + name][slots] for name in _BY_SLOT})
        own.update(
            {prefix + name: getattr(queue, name).to(lengths.device) for name in ("lengths", "offsets", "labels")}
        )
        held = (queue.lengths > 0).to(lengths.device)
        own[f"{prefix}pointers"] = torch.where(held, tensors[f"{prefix}pointers"], 0)
    return own


def _part(queue: ShardedClassQueue, rank: int) -> dict[str, Tensor]:
    """Return, in the first process, what process ``rank`` holds; in that process, send it; in others nothing."""
    classes = slice(*queue.edges[rank : rank + 2])
    if queue.rank == rank:
        own = {name: getattr(queue, name) for name in _BY_SLOT} | {"pointers": queue.pointers[classes]}
        if rank == 0:
            return {name: value.detach().cpu() for name, value in own.items()}
        for value in own.values():
            dist.send(_sendable(value), group=queue.group, group_dst=0)
        return {}
    if queue.rank != 0:
        return {}
    received = {}
    for name in (*_BY_SLOT, "pointers"):
        like = getattr(queue, name)
        size = classes.stop - classes.start if name == "pointers" else queue.shares[rank]
        value = _sendable(like.new_empty(size, *like.shape[1:]))
        dist.recv(value, group=queue.group, group_src=rank)
        received[name] = value.cpu().to(like.dtype)
    return received


def _sendable(value: Tensor) -> Tensor:
    """Return ``value`` as bytes if it is bool, which not every backend sends."""
    return value.contiguous().to(torch.uint8) if value.dtype == torch.bool else value.contiguous()


def _layout(lengths: Tensor) -> dict[str, Tensor]:
    """Return the buffers of a whole queue that follow from its lengths."""
    return {
        "lengths": lengths.clone(),
        "offsets": torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
        "labels": torch.arange(len(lengths)).repeat_interleave(lengths),
    }
