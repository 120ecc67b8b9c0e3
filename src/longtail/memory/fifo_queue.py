"""One ring buffer for all classes: the queue that class-wise ones are compared with.

He et al., "Momentum Contrast", CVPR 2020, with the labels kept. A rare class has as many keys as its frequency gives
it, which may be none: it then drops out of a query's sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from longtail.errors import UserError
from longtail.memory.class_queue import QueueContent
from longtail.memory.ring import arriving, check_range, primed, ring_writes


class FifoQueue(nn.Module):
    """Features of past samples with their labels, the newest replacing the oldest of all.

    Takes the calls of :class:`longtail.memory.ClassQueue`. Everything is a buffer, hence in ``state_dict()``.

    Args:
        class_counts: training images in each class, integers ``[C]``; only their number is used.
        capacity: slots, 1 or more.
        dim: width of a feature.

    Attributes:
        features: float32 ``[capacity, dim]``, zero where not filled.
        labels: class of each slot, int64 ``[capacity]``; -1 where not filled.
        ids: sample id in each slot, int64 ``[capacity]``; -1 where there is none or it was not given.
        filled: bool ``[capacity]``.
        pointers: slot that is written next, int64 ``[1]``.

    Raises:
        UserError: the capacity is below 1.

    Example:
        >>> queue = FifoQueue(class_counts=[6, 2], capacity=3, dim=2)
        >>> written = queue.enqueue(torch.eye(2), torch.tensor([1, 0]), ids=torch.tensor([10, 11]))
        >>> queue.content().ids.tolist(), queue.content().offsets.tolist()
        ([11, 10, -1], [0, 1, 3])
    """

    features: Tensor
    labels: Tensor
    ids: Tensor
    filled: Tensor
    pointers: Tensor
    _ring: Tensor

    def __init__(self, class_counts: Tensor | Sequence[int], capacity: int, dim: int) -> None:
        super().__init__()
        if capacity < 1:
            raise UserError(f"a queue capacity of {capacity} holds nothing; give 1 or more.")
        self.num_classes, self.capacity, self.dim = len(class_counts), capacity, dim
        self.register_buffer("features", torch.zeros(capacity, dim))
        self.register_buffer("labels", torch.full((capacity,), -1, dtype=torch.int64))
        self.register_buffer("ids", torch.full((capacity,), -1, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros(capacity, dtype=torch.bool))
        self.register_buffer("pointers", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("_ring", torch.tensor([0, capacity]), persistent=False)

    def content(self) -> QueueContent:
        """Return what the queue holds, sorted by class; empty slots come last and belong to the last class."""
        classes = torch.where(self.filled, self.labels, self.num_classes)
        by_class, order = torch.sort(classes, stable=True)
        offsets = torch.searchsorted(by_class, torch.arange(self.num_classes + 1, device=order.device))
        offsets[-1] = self.capacity
        return QueueContent(self.features[order], offsets, self.ids[order], self.filled[order], self.capacity)

    @torch.no_grad()
    def prime(self, labels: Tensor, encode: Callable[[Tensor, Tensor], Tensor], batch_size: int = 256) -> None:
        """Fill every slot from the training images in a fixed random order, replacing all content.

        Where there are fewer images than slots they come again, in fresh views. Arguments and errors are those of
        :meth:`longtail.memory.ClassQueue.prime`.
        """
        labels = labels.to(self.labels)
        check_range(labels, self.num_classes)
        if len(labels) == 0:
            raise UserError("the queue cannot be filled: there is no training image.")
        shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).to(labels.device)
        slot = torch.arange(self.capacity, device=labels.device)
        indices, rounds = shuffled[slot % len(labels)], slot // len(labels)
        self.features.copy_(primed(self.features, indices, rounds, encode, batch_size))
        self.labels.copy_(labels[indices])
        self.ids.copy_(indices)
        self.filled.fill_(True)
        self.pointers.zero_()

    @torch.no_grad()
    def enqueue(self, features: Tensor, labels: Tensor, ids: Tensor | None = None) -> Tensor:
        """Write a batch, in its order, over the oldest slots, and return them, int64 ``[B]``.

        Arguments and errors are those of :meth:`longtail.memory.ClassQueue.enqueue`.
        """
        features, labels, ids, present = arriving(self.features, self.num_classes, features, labels, ids)
        if labels.numel() == 0:
            return labels
        lengths = self._ring[1:]
        slot, source, some, pointers = ring_writes((~present).long(), self._ring, lengths, self.pointers)
        for held, new in ((self.features, features), (self.labels, labels), (self.ids, ids)):
            held.index_copy_(0, slot, torch.where(some, new[source], held[slot]))
        self.filled.index_copy_(0, slot, self.filled[slot] | some)
        self.pointers.copy_(pointers)
        return slot

    def extra_repr(self) -> str:
        """Return the sizes, for ``print(queue)``."""
        return f"classes={self.num_classes}, capacity={self.capacity}, dim={self.dim}"
