"""Exponential moving average of what is deployed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from longtail.exchange import held
from longtail.memory.teacher import ramped_decay


class MovingAverage(nn.Module):
    """Averages parameters and floating buffers (BatchNorm statistics) of some modules; copies integer buffers.

    The decay starts low and rises (:func:`longtail.memory.teacher.ramped_decay`).

    Args:
        modules: what is averaged; of sharded weights each process averages its own part.
        decay: of the average, in [0, 1).
    """

    updates: Tensor

    def __init__(self, modules: nn.ModuleList, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self._averaged = [*modules.parameters(), *modules.buffers()]
        self._live = [held(value) for value in self._averaged]
        for index, value in enumerate(self._live):
            self.register_buffer(f"value_{index}", value.detach().clone())
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @property
    def averaged(self) -> Mapping[str, Tensor]:
        """What each entry of ``state_dict()`` is the average of."""
        return {f"value_{index}": value for index, value in enumerate(self._averaged)}

    @property
    def _average(self) -> list[Tensor]:
        return [self.get_buffer(f"value_{index}") for index in range(len(self._live))]

    @torch.no_grad()
    def update(self, bad: Tensor) -> None:
        """Move the average towards the present values, unless ``bad`` (bool, 0-d, not read from a device).

        The present values must be finite also where ``bad``: a weight of 0 does not hide a NaN.
        """
        weight = torch.where(bad, 0.0, 1 - ramped_decay(self.updates, self.decay))
        for average, live in zip(self._average, self._live, strict=True):
            if average.is_floating_point():
                average.lerp_(live.detach(), weight.to(average))
            else:
                average.copy_(live)
        self.updates += ~bad

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Put the average into the modules for the length of the block, then the trained values back."""
        trained = [value.detach().clone() for value in self._live]
        self._assign(self._average)
        try:
            yield
        finally:
            self._assign(trained)

    def _assign(self, values: list[Tensor]) -> None:
        for live, value in zip(self._live, values, strict=True):
            live.detach().copy_(value)
