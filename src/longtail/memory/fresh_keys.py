"""Projecting a part of a queue each step: the rest keeps the keys that it had when its turn last was."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class FreshKeys(nn.Module):
    """Keys of a queue's slots, of which ``fresh`` are projected anew each step and carry gradient.

    A step's fresh slots are those written since, then those whose keys are oldest; slots of equal age in an order that
    was drawn once, so that the fresh ones are spread over the classes and every slot's turn comes after about
    ``slots / fresh`` steps. Slot k's key is then

        z_k = g_t(x_k) if k is fresh, else what g_(t - age) made of the same x_k (a constant)

    with g_t the projection as it is at step t, whose batch statistics are those of the fresh slots. The projection's
    gradient lacks the terms of the other slots; its cost, and the memory of its activations, fall to
    ``fresh / slots``. Everything that a resumed run needs is in ``state_dict()``.

    Args:
        slots: of the queue, K.
        dim: width of a key, P.
        fresh: F, at most K; at least as many as a step writes, or slots would stay with keys of what they held before.

    Attributes:
        keys: float32 ``[K, P]``, the newest key of each slot.
        stamps: int64 ``[K]``, step at which it was projected; -1 where the slot was written since.
        chosen: int64 ``[F]``, this step's fresh slots.
        step: int64 0-d, steps begun.

    Raises:
        ValueError: ``fresh`` is not in 1..K.
    """

    keys: Tensor
    stamps: Tensor
    chosen: Tensor
    step: Tensor
    _order: Tensor

    def __init__(self, slots: int, dim: int, fresh: int) -> None:
        super().__init__()
        if not 1 <= fresh <= slots:
            raise ValueError(f"fresh must lie in 1..{slots}, got {fresh}.")
        self.fresh = fresh
        self.register_buffer("keys", torch.zeros(slots, dim))
        self.register_buffer("stamps", torch.full((slots,), -1, dtype=torch.int64))
        self.register_buffer("chosen", torch.arange(fresh))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        order = torch.randperm(slots, generator=torch.Generator().manual_seed(0))
        self.register_buffer("_order", order, persistent=False)

    @torch.no_grad()
    def start(self, features: Tensor, project: Callable[[Tensor], Tensor]) -> None:
        """Give every slot a first key: ``project`` of all ``features [K, D]``."""
        self.keys.copy_(project(features))
        self.stamps.zero_()
        self.step.zero_()

    @torch.no_grad()
    def begin_step(self, written: Tensor) -> None:
        """Choose this step's fresh slots, after the queue wrote the slots ``written`` (int64, repeats allowed)."""
        self.step += 1
        self.stamps.index_fill_(0, written, -1)
        oldest = (self.stamps + 1) * len(self.stamps) + self._order
        self.chosen.copy_(oldest.topk(self.fresh, largest=False).indices.sort().values)
        self.stamps.index_copy_(0, self.chosen, self.step.expand(self.fresh))

    def forward(self, features: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
        """Return keys ``[K, P]`` of ``features [K, D]``; called again in the same step, it returns the same.

        The fresh keys are kept for later steps, but for rows with a value that is not finite.
        """
        fresh = project(features.index_select(0, self.chosen))
        keys = self.keys.to(fresh.dtype).index_copy(0, self.chosen, fresh)
        with torch.no_grad():
            finite = torch.isfinite(fresh).all(1, keepdim=True)
            kept = torch.where(finite, fresh.to(self.keys.dtype), self.keys.index_select(0, self.chosen))
            self.keys.index_copy_(0, self.chosen, kept)
        return keys

    def extra_repr(self) -> str:
        """Return the sizes, for ``print``."""
        return f"slots={len(self.keys)}, dim={self.keys.shape[1]}, fresh={self.fresh}"


def fresh_slots(share: float, slots: int, batch_size: int) -> int:
    """Return how many slots are projected each step: ``share`` of them, but no fewer than a batch may write."""
    return min(slots, max(math.ceil(share * slots), batch_size))
