"""The queue that GML contrasts with, as the options say: of one process or in shares, projected whole or in part."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from longtail.config import TrainConfig, resolved
from longtail.errors import UserError
from longtail.memory import ClassQueue, FifoQueue, FreshKeys, ShardedClassQueue
from longtail.memory.fresh_keys import fresh_slots
from longtail.memory.shard_state import sharded_queues


def build_queue(config: TrainConfig, class_counts: Tensor, dim: int) -> ClassQueue | FifoQueue:
    """Return the queue of features ``[K, dim]`` of ``config.queue``; in shares only where several processes train."""
    options = config.queue
    capacity = resolved(options.capacity)
    if options.kind == "fifo":
        return FifoQueue(class_counts, capacity, dim)
    several = options.sharded and dist.is_initialized() and dist.get_world_size() > 1
    kind = ShardedClassQueue if several else ClassQueue
    return kind(class_counts, capacity, dim, resolved(options.min_per_class))


def build_fresh_keys(config: TrainConfig, queue: ClassQueue | FifoQueue) -> FreshKeys | None:
    """Return what keeps the keys that are not projected anew each step; None where all of them are."""
    fresh = fresh_slots(config.queue.fresh_share, queue.capacity, resolved(config.batch_size))
    if fresh == queue.capacity:
        return None
    return FreshKeys(queue.capacity, resolved(config.queue.projection_dim), fresh)


def check_queue(config: TrainConfig) -> None:
    """Raise :class:`UserError` for options of the queue that exclude each other."""
    options = config.queue
    if options.sharded and options.kind == "fifo":
        raise UserError(
            "--queue.sharded gives each process the slots of some classes, but those of --queue.kind fifo belong to no "
            "class; leave one of them out."
        )
    if options.fresh_share == 1:
        return
    share = f"--queue.fresh_share {options.fresh_share}"
    if options.kind == "fifo":
        raise UserError(f"{share} needs slots that keep their place, which --queue.kind fifo has not; leave one out.")
    if not options.project:
        raise UserError(
            f"{share} spares projections, but --queue.project false makes none; leave --queue.fresh_share out."
        )
    if options.sharded:
        raise UserError(
            f"{share} keeps keys of a whole queue, and --queue.sharded deals the queue out; leave one of them out."
        )


def leave_to_each_process(module: nn.Module) -> None:
    """Tell DistributedDataParallel not to send the first process's share of a queue to the others."""
    names = [prefix + name for prefix, queue in sharded_queues(module) for name, _ in queue.named_buffers()]
    if names:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)  # type: ignore[no-untyped-call]
