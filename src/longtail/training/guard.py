"""What keeps a run alive: bad steps undone, Ctrl-C turned into a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn


class Diverged(RuntimeError):
    """Several steps in a row were not finite; the last good state is kept."""


class Interrupted(RuntimeError):
    """The run was asked to stop (Ctrl-C, SIGTERM) and has written its state."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class NormStatistics:
    """Remembers the running statistics of the BatchNorm layers being trained, to undo a forward pass.

    A non-finite forward pass has already entered them when the loss is seen.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._none = torch.zeros((), device=device)
        layers = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
        self._live = [buffer for layer in layers for buffer in layer.buffers()]
        self._kept = [buffer.clone() for buffer in self._live]

    def keep(self) -> None:
        """Remember the present values."""
        if self._live:
            torch._foreach_copy_(self._kept, self._live)

    def undo(self) -> None:
        """Put the remembered values back."""
        if self._live:
            torch._foreach_copy_(self._live, self._kept)

    def restore(self, where: Tensor) -> None:
        """Put the remembered values back if ``where`` (bool, 0-d) is true, without reading it from a device."""
        if where.device.type != "cpu" or where:  # on the host reading costs nothing, and copying does
            self.put_back(where)

    def put_back(self, where: Tensor) -> None:
        """Do what :meth:`restore` says by arithmetic alone, on whatever device."""
        for live, kept in zip(self._live, self._kept, strict=True):
            live.copy_(torch.where(where, kept, live))

    def size(self) -> Tensor:
        """Return the L2 norm of all statistics: not finite if one of them is not."""
        floating = [buffer for buffer in self._live if buffer.is_floating_point()]
        return nn.utils.get_total_norm(floating) if floating else self._none


class StopRequest:
    """While active, the first SIGINT or SIGTERM only sets :attr:`received`; a second one acts as usual."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def __enter__(self) -> Self:
        # Python lets only the main thread set handlers; in a worker thread the caller keeps its own.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
