"""The only training loop: it runs any stage of any method, and can stop and go on at any step.

Nothing random has state: every draw is keyed by seed, stage, epoch, step and sample id. So the step number, the tensors
of method, optimiser and average, and the running sums of the epoch are all that a checkpoint must hold.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from longtail.config import TrainConfig, resolved
from longtail.data import ImageFiles, ImageSet
from longtail.data.augment_tone import widest_float
from longtail.data.keyed import derive_seed
from longtail.data.loading import Batch, ResidentLoader
from longtail.data.streaming import StreamingLoader, default_workers
from longtail.data.views import View, build_view
from longtail.methods import Method, MethodContext, get_method
from longtail.models import Classifier
from longtail.training.checkpoint import (
    CheckpointFolder,
    MetricsLog,
    load_module,
    optimiser_state,
    part,
    prefixed,
    restore_optimiser,
)
from longtail.training.ema import MovingAverage
from longtail.training.guard import Diverged, Interrupted, NormStatistics, StopRequest, bad_forward, bad_gradient
from longtail.training.progress import ProgressReporter
from longtail.training.schedule import learning_rate_factor
from longtail.training.selection import BestEpoch


@dataclass
class EpochSums:
    """Running sums of an epoch's losses and readings, on the device, in float64 where it has that."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0

    def add(self, figures: dict[str, Tensor]) -> None:
        """Add one step's figures (0-d tensors)."""
        self.steps += 1
        for name, value in figures.items():
            value = value.detach().to(widest_float(value.device))
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def means(self) -> dict[str, float]:
        """Return the means over the steps taken; figures that are not defined are left out."""
        means = {name: float(value) / self.steps for name, value in self.sums.items()}
        return {name: value for name, value in means.items() if math.isfinite(value)}


@dataclass(frozen=True)
class StageJob:
    """What the loop needs beside the method's context.

    Attributes:
        number: position of the stage in the run.
        device: where to train.
        checkpoints: where the state goes.
        log: the run's ``metrics.jsonl``.
        progress: what a person sees.
        stop: set when the run was asked to stop.
        look: called with a copy of the present classifier when ``evaluate_every`` says so; returns figures for the log.
        validate: likewise, on the validation images; None if there are none. The last epoch is always looked at.
        identity: facts that a state must agree on to be resumed (written into it).
    """

    number: int
    device: torch.device
    checkpoints: CheckpointFolder
    log: MetricsLog
    progress: ProgressReporter
    stop: StopRequest
    look: Callable[[Classifier], dict[str, float]]
    validate: Callable[[Classifier], dict[str, float]] | None
    identity: dict[str, Any]


class StageRun:
    """A stage in progress.

    Args:
        context: what the method is built from.
        job: where it runs and writes.
        restored: ``(tensors, meta)`` of a checkpoint of this stage, or None to start from the beginning.
    """

    def __init__(
        self,
        context: MethodContext,
        job: StageJob,
        restored: tuple[dict[str, Tensor], dict[str, Any]] | None = None,
    ) -> None:
        config, stage = context.config, context.stage
        self.context, self.job, self.config, self.stage = context, job, config, stage
        self.seed = derive_seed(config.seed, stage.name)
        torch.manual_seed(derive_seed(self.seed, "init"))
        # Channels last: the same figures in less time (benchmarks/precision.py).
        self.method: Method = get_method(stage.method).build(context)
        self.method = self.method.to(job.device).to(memory_format=torch.channels_last)
        self.method.train()
        views = {name: build_view(recipe, context.mean, context.std) for name, recipe in self.method.views.items()}
        if self.method.sampler != "instance":
            raise ValueError(f"sampler {self.method.sampler!r} of method {stage.method!r} is not known")
        self.loader = self._make_loader(views)
        self.optimiser = build_optimiser(self.method, config)
        deployed = nn.ModuleList([self.method.encoder, self.method.head])
        decay = config.optimiser.ema
        self.average = MovingAverage(deployed, decay).to(job.device) if decay is not None else None
        self.best = BestEpoch() if config.select == "best" else None
        self.norms = NormStatistics(self.method)
        self.step, self.skipped_in_row, self.epoch_sums = 0, 0, EpochSums()
        self._saved_at = time.monotonic()
        if restored is None:
            with self._autocast():
                self.method.prepare(self.loader.fetch, self.loader.labels)
        else:
            self._restore(*restored)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole stage."""
        return self.loader.steps_per_epoch * self.stage.epochs

    def run(self) -> Classifier:
        """Train to the end and return the classifier: of the best epoch, if that is selected.

        Raises:
            Interrupted: asked to stop; the state is written.
            Diverged: too many non-finite steps in a row; the last good state is written.
        """
        per_epoch = self.loader.steps_per_epoch
        self.job.progress.start(self.stage.name, self.stage.epochs, self.step // per_epoch)
        first = self.step
        with self.job.progress, closing(self.loader):
            while self.step < self.total_steps:
                epoch, step = divmod(self.step, per_epoch)
                if step == 0 or self.step == first:
                    self.method.on_epoch(epoch / self.stage.epochs)
                self._take_step(self.loader.load(epoch, step))
                self.step += 1
                if step + 1 == per_epoch:
                    self._end_epoch(epoch + 1)
                if self.job.stop.received is not None:
                    self.save()
                    raise Interrupted(
                        f"stopped at epoch {epoch + 1} of {self.stage.epochs} of stage "
                        f"{self.stage.name!r}; its state is saved.",
                        self.job.stop.received,
                    )
        if self.best is None or self.best.classifier is None:
            self.method.finish()
            return self.deployable()
        classifier = self.method.classifier()
        classifier.load_state_dict(self.best.classifier.state_dict())
        self.method.finish()
        return copy.deepcopy(classifier).eval()

    def _make_loader(self, views: dict[str, View]) -> ResidentLoader | StreamingLoader:
        train, batch_size, device = self.context.train, resolved(self.config.batch_size), self.job.device
        if isinstance(train, ImageSet):
            return ResidentLoader(train, views, batch_size, self.seed, device)
        if not isinstance(train, ImageFiles):
            raise ValueError(f"there is no loader for {type(train).__name__}")
        loading = self.config.loading
        workers = default_workers(device) if loading.workers is None else loading.workers
        return StreamingLoader(
            train, views, batch_size, self.seed, device, self.stage.epochs, workers, loading.prefetch
        )

    def _take_step(self, batch: Batch) -> None:
        progress = self.step / self.total_steps
        # A fixed seed a step: layers that draw (dropout, stochastic depth) resume like everything else.
        torch.manual_seed(derive_seed(self.seed, "step", self.step))
        self._set_learning_rate()
        self.norms.keep()
        with self._autocast():
            self.method.update_memory(batch)
            losses = self.method(batch, progress)
        bad = bad_forward(losses, self.norms)
        if bad is None:
            torch.autograd.backward(torch.stack(list(losses.values())).sum())
            trained = [p for p in self.method.parameters() if p.grad is not None]
            limit = self.config.optimiser.clip_norm
            norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
            bad = bad_gradient(norm)
            if bad is None and limit is not None:
                nn.utils.clip_grads_with_norm_(trained, limit, norm)
        if bad is None:
            self.optimiser.step()
            if self.average is not None:
                self.average.update()
            self.skipped_in_row = 0
            self.epoch_sums.add({**losses, **self.method.readings()})
        else:
            self._skip(bad)
        self.optimiser.zero_grad(set_to_none=True)

    def _skip(self, why: str) -> None:
        """Undo what the forward pass touched, say which step it was, and end the run if it goes on."""
        self.norms.restore()
        self.skipped_in_row += 1
        epoch = self.step // self.loader.steps_per_epoch + 1
        text = f"step {self.step} (epoch {epoch}) of stage {self.stage.name!r} skipped: {why}"
        self.job.progress.say(text)
        self.job.log.write({"stage": self.stage.name, "skipped_step": self.step, "epoch": epoch, "why": why})
        if self.skipped_in_row >= self.config.checkpoint.bad_steps:
            self.optimiser.zero_grad(set_to_none=True)
            self.save()
            raise Diverged(
                f"{self.skipped_in_row} steps in a row were not finite, the last: {text}. The last good state is "
                f"kept in {self.job.checkpoints.folder}; start anew with a lower "
                "--optimiser.lr or with --optimiser.clip_norm 1."
            )

    def _end_epoch(self, epoch: int) -> None:
        figures = self.epoch_sums.means()
        every = self.config.evaluate_every
        if every and epoch % every == 0:
            figures.update(self.job.look(self.deployable()))
        if self.job.validate is not None and (epoch % (every or 1) == 0 or epoch == self.stage.epochs):
            classifier = self.deployable()
            figures.update(self.job.validate(classifier))
            if self.best is not None:
                self.best.see(epoch, figures, classifier)
        rate = self.optimiser.param_groups[0]["lr"]
        record = {"stage": self.stage.name, "epoch": epoch, "step": self.step, "lr": rate}
        self.job.log.write({**record, "steps_taken": self.epoch_sums.steps, **figures})
        self.job.progress.epoch(epoch, figures)
        self.epoch_sums = EpochSums()
        due = time.monotonic() - self._saved_at >= self.config.checkpoint.every_seconds
        if self.skipped_in_row == 0 and (due or self.step == self.total_steps):
            self.save()

    def deployable(self) -> Classifier:
        """Return a copy of the classifier as it would be deployed now: of the moving average, if there is one."""
        with self.average.applied() if self.average is not None else nullcontext():
            return copy.deepcopy(self.method.classifier()).eval()

    def _set_learning_rate(self) -> None:
        options = self.config.optimiser
        factor = learning_rate_factor(
            self.step,
            self.loader.steps_per_epoch,
            self.stage.epochs,
            schedule=resolved(options.schedule),
            warmup=options.warmup,
            milestones=options.milestones,
            decay=options.decay,
        )
        for group in self.optimiser.param_groups:
            group["lr"] = factor * resolved(options.lr)

    def _autocast(self) -> AbstractContextManager[Any]:
        enabled = self.config.precision == "bfloat16"
        return torch.autocast(self.job.device.type, dtype=torch.bfloat16, enabled=enabled)

    def save(self) -> None:
        """Write the whole state."""
        tensors, numbers = optimiser_state(self.optimiser)
        state = {
            **prefixed("method", self.method.state_dict()),
            **prefixed("optimiser", tensors),
            **prefixed("sums", self.epoch_sums.sums),
        }
        if self.average is not None:
            state.update(prefixed("average", self.average.state_dict()))
        if self.best is not None:
            state.update(self.best.tensors())
        meta = {
            "identity": self.job.identity,
            "optimiser": numbers,
            "sums": list(self.epoch_sums.sums),  # tensors are stored sorted; the log keeps the order of the first step
            "steps_in_sums": self.epoch_sums.steps,
            "log_length": self.job.log.length,
            "best": None if self.best is None else self.best.record,
        }
        self.job.checkpoints.save(self.job.number, self.step, state, meta)
        self._saved_at = time.monotonic()

    def _restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        what = f"the state in {self.job.checkpoints.folder}"
        load_module(self.method, part(tensors, "method"), what)
        restore_optimiser(self.optimiser, part(tensors, "optimiser"), meta["optimiser"])
        if self.average is not None:
            load_module(self.average, part(tensors, "average"), what)
        if self.best is not None:
            self.best.restore(tensors, meta["best"], self.deployable(), what)
        sums = part(tensors, "sums")
        sums = {name: sums[name].to(self.job.device) for name in meta["sums"]}
        self.epoch_sums = EpochSums(sums, int(meta["steps_in_sums"]))
        self.step = int(meta["step"])


def build_optimiser(method: Method, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser for a method's parameter groups; the learning rate is set at every step."""
    options = config.optimiser
    groups, decay = method.param_groups(), resolved(options.weight_decay)
    if options.name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, weight_decay=decay)
    return torch.optim.SGD(groups, lr=0.0, momentum=options.momentum, weight_decay=decay)
