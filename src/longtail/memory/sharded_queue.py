"""A class-wise queue of which each process holds the classes of its share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from longtail.memory.class_queue import ClassQueue
from longtail.memory.class_shards import class_shards
from longtail.memory.ring import arriving, primed, ring_writes, slot_plan


class ShardedClassQueue(ClassQueue):
    """This process's share of a :class:`ClassQueue`: slots of some classes, the rest being other processes'.

    Classes are split contiguously so that the largest share of slots is as small as it can be
    (:func:`longtail.memory.class_shards.class_shards`): about ``capacity / W`` slots each, which is what memory,
    projection and similarities cost. A class that another process holds has length 0 here. Every process
    is given every batch and keeps of it what is its own, so together they hold what one :class:`ClassQueue` would.

    ``state_dict()`` holds the share; :func:`longtail.memory.whole_state` makes of the shares the state of one
    :class:`ClassQueue`, and :func:`longtail.memory.own_share` cuts a share out of that, for any number of processes.

    Args:
        class_counts, capacity, dim, min_per_class: as of :class:`ClassQueue`, of the whole queue.
        group: the processes; None = all of them.

    Attributes:
        whole_lengths: slots of each class in all processes together, int64 ``[C]``.
        edges: classes at which the shares of the processes begin, and C: ``[W + 1]`` whole numbers.
        shares: slots of each process, ``[W]`` whole numbers.
        capacity: slots of this process; the other attributes are those of a queue of so many.

    Raises:
        UserError: see :func:`longtail.memory.queue_lengths`.
        ValueError: no process group is initialised.
    """

    whole_lengths: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[int],
        capacity: int,
        dim: int,
        min_per_class: int = 1,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.group = group
        super().__init__(class_counts, capacity, dim, min_per_class)

    def _own_lengths(self, lengths: Tensor) -> Tensor:
        """Keep the slots of this process's classes."""
        self.rank, self.world = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.edges = class_shards(lengths, self.world)
        ends = [0, *lengths.cumsum(0).tolist()]
        self.slot_edges = [ends[edge] for edge in self.edges]
        self.shares = [b - a for a, b in zip(self.slot_edges, self.slot_edges[1:], strict=False)]
        classes = torch.arange(len(lengths))
        first, last = self.edges[self.rank : self.rank + 2]
        self.whole_lengths = lengths
        return torch.where((classes >= first) & (classes < last), lengths, 0)

    @torch.no_grad()
    def prime(self, labels: Tensor, encode: Callable[[Tensor, Tensor], Tensor], batch_size: int = 256) -> None:
        """Fill every slot from the training images, replacing all content, and keep this process's share of it.

        ``encode`` is called for the images of all slots, alike in every process, so that processes which deal its work
        out among them stay in step. Arguments and errors are those of :meth:`ClassQueue.prime`.
        """
        labels = labels.to(self.labels.device, torch.int64)
        self._check_range(labels)
        indices, rounds = slot_plan(labels, self.whole_lengths.to(labels.device))
        first, last = self.slot_edges[self.rank : self.rank + 2]
        self.features.copy_(primed(self.features, indices, rounds, encode, batch_size, first))
        self.ids.copy_(indices[first:last])
        self.filled.copy_(indices[first:last] >= 0)
        self.pointers.zero_()

    @torch.no_grad()
    def enqueue(self, features: Tensor, labels: Tensor, ids: Tensor | None = None) -> Tensor:
        """Write what belongs to this process's classes of a batch that all processes are given.

        Arguments and errors are those of :meth:`ClassQueue.enqueue`.
        """
        features, labels, ids, present = arriving(self.features, self.num_classes, features, labels, ids)
        if labels.numel() == 0 or self.capacity == 0:
            return labels[:0]
        present &= self.lengths[labels.clamp(0, self.num_classes - 1)] > 0
        group = torch.where(present, labels, self.num_classes)
        # No row is of a class of length 0, so that its divisor is any number but 0.
        slot, source, some, pointers = ring_writes(group, self.offsets, self.lengths.clamp(min=1), self.pointers)
        # If no row is ours, the last class's first slot is named, which may be no slot of ours.
        return self._write(slot.clamp(max=self.capacity - 1), source, some, pointers, features, ids)
