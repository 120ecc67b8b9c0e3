"""One training step: memory, forward, backward, optimiser, moving average; nothing in it waits for the device.

So a device can run ahead of the host, and a whole step can be captured as one CUDA graph (``capture.py``). What a step
has to tell (its losses, and whether it was refused because something was not finite) stays on the device until asked.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from longtail.data.loading import Batch
from longtail.methods import Method
from longtail.training.ema import MovingAverage
from longtail.training.guard import NormStatistics
from longtail.training.optimisers import step_unless
from longtail.training.step_record import EpochSums, StepGuard


class TrainingStep:
    """Takes the steps of a stage.

    Args:
        method: what is trained.
        optimiser: of :func:`longtail.training.optimisers.build_optimiser`, with its rate set.
        average: moving average of what is deployed, or None.
        device: where the training runs.
        bfloat16: run the networks under autocast.
        clip_norm: largest L2 norm of the gradient; None = no clipping.
        first: number of the first step, 0-based.

    Attributes:
        sums: losses and readings of the present epoch.
        guard: what was refused.
    """

    def __init__(
        self,
        method: Method,
        optimiser: torch.optim.Optimizer,
        average: MovingAverage | None,
        device: torch.device,
        bfloat16: bool = False,
        clip_norm: float | None = None,
        first: int = 0,
    ) -> None:
        self.method, self.optimiser, self.average = method, optimiser, average
        self.device, self.bfloat16, self.clip_norm = device, bfloat16, clip_norm
        self.sums, self.guard = EpochSums(), StepGuard(first, device)
        self._statistics = NormStatistics(method, device)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the precision that the networks run in."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16)

    def __call__(self, batch: Batch, progress: float) -> None:
        """Train on a batch; ``progress`` runs from 0 to 1 over the stage.

        A step in which a loss, a BatchNorm statistic or the gradient is not finite changes neither weights, statistics
        nor averages (the memory looks after itself).
        """
        self.optimiser.zero_grad(set_to_none=True)
        self._statistics.keep()
        with self.autocast():
            self.method.update_memory(batch)
            losses = self.method(batch, progress)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        trained = [p for p in self.method.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        bad = self.guard.judge(losses, self._statistics.size(), norm)
        if self.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(trained, self.clip_norm, norm)
        step_unless(self.optimiser, bad)
        self._statistics.restore(bad)
        if self.average is not None:
            self.average.update(bad)
        self.sums.add({**losses, **self.method.readings()}, bad)
