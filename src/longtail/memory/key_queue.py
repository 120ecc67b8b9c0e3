"""One ring buffer of labelled contrast samples for all classes: first in, first out, as MoCo's (He et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from longtail.data.keyed import keyed_permutation
from longtail.errors import UserError


class KeyQueue(nn.Module):
    """The newest features and their labels, the newest replacing the oldest whatever its class.

    A rare class may have no slot at all; :class:`longtail.memory.ClassQueue` is the queue that always has one.
    :meth:`prime` fills the slots before the first step, so nothing random is ever counted as a sample. Everything is a
    buffer, hence in ``state_dict()``.

    Args:
        capacity: slots (K).
        dim: width of a feature (D).

    Attributes:
        features: float32 ``[K, D]``, zero where not filled.
        labels: int64 ``[K]``, 0 where not filled.
        filled: bool ``[K]``.
        pointer: slot that is written next, int64 0-d.

    Raises:
        UserError: the capacity is below 1.

    Example:
        >>> queue = KeyQueue(capacity=3, dim=2)
        >>> queue.enqueue(torch.eye(2), torch.tensor([5, 7]))
        >>> queue.enqueue(torch.eye(2), torch.tensor([1, 2]))
        >>> queue.labels.tolist()
        [2, 7, 1]
    """

    features: Tensor
    labels: Tensor
    filled: Tensor
    pointer: Tensor

    def __init__(self, capacity: int, dim: int) -> None:
        super().__init__()
        if capacity < 1:
            raise UserError(f"the queue's capacity is {capacity}, but it needs at least 1 slot.")
        self.capacity, self.dim = capacity, dim
        self.register_buffer("features", torch.zeros(capacity, dim))
        self.register_buffer("labels", torch.zeros(capacity, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros(capacity, dtype=torch.bool))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def prime(
        self, labels: Tensor, encode: Callable[[Tensor, Tensor], Tensor], seed: int, batch_size: int = 256
    ) -> None:
        """Fill every slot from the training images in a random order; round r gives each image's r-th further view.

        Args:
            labels: classes of all training images, int64 ``[N]``.
            encode: called as ``encode(indices [M], rounds [M])``, both int64, M at most ``batch_size``; returns the
                features of those views, ``[M, D]``.
            seed: of the order.
            batch_size: images that are encoded at a time.
        """
        order = keyed_permutation(seed, "queue", size=len(labels), device=labels.device)
        slots = torch.arange(self.capacity, device=labels.device)
        for part in torch.split(slots, batch_size):
            ids = order[part % len(labels)]
            self.enqueue(encode(ids, part // len(labels)), labels[ids])

    @torch.no_grad()
    def enqueue(self, features: Tensor, labels: Tensor) -> None:
        """Write a batch, in its order, over the oldest slots; of more rows than slots the last ones stay.

        A row with a value that is not finite writes nothing. Nothing waits for the device.

        Args:
            features: ``[B, D]``, any floating dtype (stored in the buffer's).
            labels: int64 ``[B]``.

        Raises:
            ValueError: shapes do not fit.
        """
        if features.shape != (len(labels), self.dim) or labels.ndim != 1:
            raise ValueError(
                f"expected features [B, {self.dim}] and labels [B], got {list(features.shape)}, {list(labels.shape)}."
            )
        if len(labels) == 0:
            return
        features, labels = features.detach().to(self.features), labels.to(self.labels)
        present = torch.isfinite(features).all(1)
        rank = present.cumsum(0) - 1
        number = present.sum()
        # Row by slot: the newest of this batch that falls on each slot, counted from the pointer; none if none does.
        place = (torch.arange(self.capacity, device=labels.device) - self.pointer) % self.capacity
        newest = place + self.capacity * ((number - 1 - place) // self.capacity)
        # The row of that rank: ranks never fall, so the first row that reaches it is the one that has it.
        row = torch.searchsorted(rank, newest).clamp(max=len(labels) - 1)
        written = place < number
        self.features.copy_(torch.where(written[:, None], features[row], self.features))
        self.labels.copy_(torch.where(written, labels[row], self.labels))
        self.filled |= written
        self.pointer.copy_((self.pointer + number) % self.capacity)

    def extra_repr(self) -> str:
        """Return the sizes, for ``print(queue)``."""
        return f"capacity={self.capacity}, dim={self.dim}"
