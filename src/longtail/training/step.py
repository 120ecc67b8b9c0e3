"""One training step: memory, forward, backward, optimiser, moving average; nothing in it waits for the device.

So a device can run ahead of the host, and a whole step can be captured as one CUDA graph (``capture.py``). What a step
has to tell (its losses, and whether it was refused because something was not finite) stays on the device until asked.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from longtail.data.loading import Batch
from longtail.methods import Trainable
from longtail.ranks import Ranks
from longtail.training.ema import MovingAverage
from longtail.training.guard import NormStatistics
from longtail.training.optimisers import step_unless
from longtail.training.step_record import EpochSums, StepGuard
from longtail.training.weights import Weights, WholeWeights
from longtail.training.whole_batch import agreed, micro_batches, spread


class TrainingStep:
    """Takes the steps of a stage.

    Args:
        method: what is trained.
        optimiser: of :func:`longtail.training.optimisers.build_optimiser`, with its rate set.
        average: moving average of what is deployed, or None.
        device: where the training runs.
        bfloat16: run the networks under autocast.
        clip_norm: largest L2 norm of the gradient; None = no clipping.
        sharpness: radius of sharpness-aware steps; 0 = plain steps.
        first: number of the first step, 0-based.
        ranks: who trains together; None = this process alone.
        parts: micro-batches of a step, whose losses count alike. The memory takes in the whole batch before the first
            of them; what a loss compares within a batch, and batch normalisation, see one of them at a time.
        weights: of the method; None = all of them are here.

    Attributes:
        sums: losses and readings of the present epoch.
        guard: what was refused.
    """

    def __init__(
        self,
        method: Trainable,
        optimiser: torch.optim.Optimizer,
        average: MovingAverage | None,
        device: torch.device,
        bfloat16: bool = False,
        clip_norm: float | None = None,
        sharpness: float = 0.0,
        first: int = 0,
        ranks: Ranks | None = None,
        parts: int = 1,
        weights: Weights | None = None,
    ) -> None:
        self.ranks, self.parts = ranks or Ranks(), parts
        self._weights = weights or WholeWeights(method)
        self._losses_of = spread(method, self.ranks, device, self._weights)
        self.method, self.optimiser, self.average = method, optimiser, average
        self.device, self.bfloat16, self.clip_norm, self.sharpness = device, bfloat16, clip_norm, sharpness
        self.sums, self.guard = EpochSums(), StepGuard(first, device)
        self._statistics = NormStatistics(method, device)
        self._first_pass = NormStatistics(method, device) if sharpness else None
        self._generators: list[Callable[[], None]] = []

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
        self._generators = _generator_states(self.device) if self.sharpness else []
        figures = self._differentiate(batch, progress)
        losses = figures[0]
        trained, norm = self._gradient()
        if self._first_pass is not None:
            self._from_the_worst_place_near(batch, progress, trained, norm, self._first_pass)
            trained, norm = self._gradient()
        bad = self.guard.judge(losses, self._statistics.size(), norm, partial(agreed, ranks=self.ranks))
        if self.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(trained, self.clip_norm, norm)
        step_unless(self.optimiser, bad)
        self._statistics.restore(bad)
        if self.average is not None:
            self.average.update(bad)
        self.sums.add({**losses, **figures[1]}, bad)

    def _differentiate(self, batch: Batch, progress: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Add the gradient of the step's loss, and return its losses and readings: the means over the micro-batches."""
        every: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
        for part in micro_batches(batch, self.parts, self.ranks.world):
            # Gradients are averaged over processes once a step, with those of the last micro-batch.
            later = len(every) + 1 < self.parts and isinstance(self._losses_of, DistributedDataParallel)
            with self._losses_of.no_sync() if later else nullcontext():  # type: ignore[attr-defined]
                with self.autocast():
                    losses = self._losses_of(part, progress)
                every.append((losses, self.method.readings()))
                whole = torch.stack(list(losses.values())).sum()
                torch.autograd.backward(whole if self.parts == 1 else whole / self.parts)
        return every[0] if self.parts == 1 else (_means([e[0] for e in every]), _means([e[1] for e in every]))

    def _gradient(self) -> tuple[list[nn.Parameter], Tensor]:
        """Return the parameters that have a gradient, and the L2 norm of all of it."""
        trained = self._weights.trained()
        return trained, self._weights.norm(trained)

    @torch.no_grad()
    def _from_the_worst_place_near(
        self, batch: Batch, progress: float, trained: list[nn.Parameter], norm: Tensor, first_pass: NormStatistics
    ) -> None:
        """Replace the gradient by that at the weights moved along it by the radius.

        Foret et al., "Sharpness-Aware Minimization", ICLR 2021, Eq. 2 and Algorithm 1. What the log shows is the first
        pass, and only that enters the statistics of batch normalisation.
        """
        first_pass.keep()
        # The same masks and blends as in the first pass: it is one loss whose neighbourhood is asked about.
        for restore in self._generators:
            restore()
        values = [p.detach() for p in trained]
        kept = [value.clone() for value in values]
        gradient = [p.grad for p in trained if p.grad is not None]
        torch._foreach_add_(values, torch._foreach_mul(gradient, self.sharpness / (norm + 1e-12)))
        self.optimiser.zero_grad(set_to_none=True)
        with torch.enable_grad():
            self._differentiate(batch, progress)
        torch._foreach_copy_(values, kept)
        first_pass.undo()


def _means(figures: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([each[name].detach() for each in figures]).mean(0) for name in figures[0]}


def _generator_states(device: torch.device) -> list[Callable[[], None]]:
    """Return functions that put torch's generators, the host's and the device's, back to where they are now."""
    states: list[Callable[[], None]] = [partial(torch.random.set_rng_state, torch.random.get_rng_state())]
    if device.type != "cpu":
        module = torch.get_device_module(device)
        states.append(partial(module.set_rng_state, module.get_rng_state(device), device))
    return states
