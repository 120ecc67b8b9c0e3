"""The only training loop: it runs any stage of any method, and can stop and go on at any step.

Nothing random has state: every draw is keyed by seed, stage, epoch, step and sample id. So the step number, the tensors
of method, optimiser and average, and the running sums of the epoch are all that a checkpoint must hold.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from contextlib import closing, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from longtail.config import resolved
from longtail.data.keyed import derive_seed
from longtail.memory import own_share, whole_state
from longtail.methods import Trainable
from longtail.training.capture import CapturedStep, CudaRecorder, Step, can_capture
from longtail.training.checkpoint import (
    load_module,
    optimiser_state,
    part,
    prefixed,
    restore_optimiser,
)
from longtail.training.ema import MovingAverage
from longtail.training.guard import Diverged, Interrupted
from longtail.training.optimisers import build_optimiser, parameter_groups, set_rate
from longtail.training.random_numbers import seed_torch
from longtail.training.schedule import learning_rate_factor
from longtail.training.selection import BestEpoch
from longtail.training.stage_job import StageJob, StepLoader
from longtail.training.step import TrainingStep
from longtail.training.step_record import BadSteps, EpochSums
from longtail.training.weights import Weights, WholeWeights, all_held
from longtail.training.whole_batch import SharedLoader

_LOOK_SECONDS = 2.0
"""Time between two looks at what a device refused: each waits for it."""
_STEPS_BETWEEN_MEETINGS = 16
"""Beside accelerators, steps between two agreements of several processes: each waits for the others."""


class StageRun:
    """A stage in progress.

    Args:
        job: what is trained, where it runs and writes.
        restored: ``(tensors, meta)`` of a checkpoint of this stage, or None to start from the beginning.
    """

    def __init__(self, job: StageJob, restored: tuple[dict[str, Tensor], dict[str, Any]] | None = None) -> None:
        config, stage = job.config, job.stage
        self.job, self.config, self.stage = job, config, stage
        self.seed = derive_seed(config.seed, stage.name)
        seed_torch(derive_seed(self.seed, "init"), job.device)
        self.method: Trainable = job.build_method()
        self.weights: Weights
        if config.optimiser.shard and not job.ranks.alone:
            from longtail.training.sharded_weights import ShardedWeights

            self.weights = ShardedWeights(self.method, job.ranks, job.device, config.precision == "bfloat16")
        else:
            # Channels last: the same figures in less time (benchmarks/step.py).
            self.method.to(job.device).to(memory_format=torch.channels_last)
            self.weights = WholeWeights(self.method)
        self.method.train()
        parts = config.optimiser.accumulate
        loader = job.build_loader(self.method, self.seed)
        self.loader: StepLoader = loader if job.ranks.alone else SharedLoader(loader, job.ranks, parts)
        notice = getattr(self.loader, "notice", None)  # one that keeps the images may have to say where
        if notice is not None:
            job.progress.say(notice)
        groups = parameter_groups(self.method, config.tune)
        self._parameters: list[Tensor] = [parameter for group in groups for parameter in group["params"]]
        self.optimiser = build_optimiser(groups, config.optimiser, job.device, self.weights)
        deployed = nn.ModuleList([self.method.encoder, self.method.head])
        # What takes no step has no course to average or to choose from.
        decay = config.optimiser.ema if stage.epochs else None
        self.average = MovingAverage(deployed, decay).to(job.device) if decay is not None else None
        best = config.select == "best" and self.method.classifies and stage.epochs > 0
        self.best = BestEpoch(job.figure) if best else None
        self.step = 0 if restored is None else int(restored[1]["step"])
        self.training_step = TrainingStep(
            self.method,
            self.optimiser,
            self.average,
            job.device,
            bfloat16=config.precision == "bfloat16",
            clip_norm=config.optimiser.clip_norm,
            sharpness=config.optimiser.sharpness,
            first=self.step,
            ranks=job.ranks,
            parts=parts,
            weights=self.weights,
        )
        self.take_step = self._maybe_captured(self.training_step)
        self._saved_at = self._looked_at = time.monotonic()
        self._diverged: str | None = None
        self._stopping: int | None = None  # what all processes have agreed to stop by
        self._fill_memory(fresh=restored is None)
        if restored is not None:
            self._restore(*restored)

    def _fill_memory(self, fresh: bool) -> None:
        with self.training_step.autocast():
            self.method.recompute(self.loader.fetch, self.loader.labels)
            if fresh:
                self.method.prepare(self.loader.fetch, self.loader.labels)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole stage."""
        return self.loader.steps_per_epoch * self.stage.epochs

    def run(self) -> nn.Module:
        """Train to the end and return the classifier: of the best epoch, if that is selected.

        Raises:
            Interrupted: asked to stop; the state is written.
            Diverged: too many non-finite steps in a row; the last good state is written.
        """
        if self.total_steps == 0:
            with closing(self.loader):
                self.save()
            self._agree_to_stop(last=True)
            self._stop_if_asked(0)
            self.method.finish()
            return self.deployable()
        per_epoch = self.loader.steps_per_epoch
        self.job.progress.start(self.job.number, per_epoch, self.step, self.loader.batch_size)
        first = self.step
        with self.job.progress, closing(self.loader):
            while self.step < self.total_steps:
                epoch, step = divmod(self.step, per_epoch)
                if step == 0 or self.step == first:
                    self.method.on_epoch(epoch / self.stage.epochs)
                rate = self._set_learning_rate()
                # A fixed seed a step: layers that draw (dropout, stochastic depth) resume like everything else.
                seed_torch(derive_seed(self.seed, "step", self.step), self.job.device)
                self.take_step(self.loader.load(epoch, step), self.step / self.total_steps)
                self.step += 1
                last = step + 1 == per_epoch
                self._agree_to_stop(last)
                self._look_for_bad_steps(at_once=last or self._stopping is not None)
                self.job.progress.step(self.step, rate, self.training_step.sums.so_far)
                if last:
                    self._end_epoch(epoch + 1, rate)
                if self._diverged is not None:
                    # Not before the epoch's end is written: a state on the border of two belongs to the later one.
                    self.save()
                    raise Diverged(self._diverged)
                self._stop_if_asked(epoch + 1)
        if self.best is None or self.best.classifier is None:
            self.method.finish()
            return self.deployable()
        # Closed-form fits see the best weights, which the classifier shares with the method. Of an encoder tuned by
        # lora it is a merged copy, and the best one holds merged weights likewise.
        with self.weights.whole():
            classifier = self.method.classifier()
            classifier.load_state_dict(self.best.classifier.state_dict())
            self.method.finish()
            return copy.deepcopy(classifier).eval()

    def _stop_if_asked(self, epoch: int) -> None:
        if self._stopping is not None:
            self.save()
            # A launcher kills all when the first one ends: not before the state is there, however long that takes.
            self.job.ranks.barrier(patient=True)
            raise Interrupted(
                f"stopped at epoch {epoch} of {self.stage.epochs} of stage {self.stage.name!r}; its state is saved.",
                self._stopping,
            )

    def _maybe_captured(self, step: TrainingStep) -> Step:
        """Return the step, captured where the device can and the method's step is the same all through."""
        # Sharpness-aware steps put the generators back in their middle, which no recording holds.
        fixed = not self.method.uses_progress and not self.config.optimiser.sharpness
        # What a gradient waits for, another process, is not recorded either.
        fixed = fixed and self.job.ranks.alone
        if not can_capture(self.job.device) or not self.config.capture or not fixed:
            return step
        return CapturedStep(step, CudaRecorder(self.job.device), self.job.progress.say)

    def _look_for_bad_steps(self, at_once: bool) -> None:
        """Tell of steps that were refused, and end the run if it goes on; a device is asked now and then only."""
        now = time.monotonic()
        waits = now - self._looked_at < _LOOK_SECONDS if self.job.ranks.alone else not self._meets()
        if self.job.device.type != "cpu" and not at_once and waits:
            return
        self._looked_at = now
        bad = self.training_step.guard.look()
        if bad is not None:
            self._tell(bad)

    def _meets(self) -> bool:
        """Return whether processes that train together speak with each other after this step: all at the same ones."""
        return self.job.device.type == "cpu" or self.step % _STEPS_BETWEEN_MEETINGS == 0

    def _agree_to_stop(self, last: bool) -> None:
        """Let all processes stop after the same step, though a signal reaches each at another moment."""
        ranks, stop = self.job.ranks, self.job.stop
        if ranks.alone:
            self._stopping = stop.received
        elif last or self._meets():
            self._stopping = ranks.any_number(stop.received or 0) or None

    def _tell(self, bad: BadSteps) -> None:
        epoch = bad.last // self.loader.steps_per_epoch + 1
        text = f"step {bad.last} (epoch {epoch}) of stage {self.stage.name!r} skipped: {bad.why}"
        before = f" ({bad.count - 1} more shortly before it)" if bad.count > 1 else ""
        self.job.progress.say(text + before)
        record = {"stage": self.stage.name, "skipped_step": bad.last, "epoch": epoch, "why": bad.why}
        self.job.log.write({**record, "skipped": bad.count})
        if bad.in_row >= self.config.checkpoint.bad_steps:
            self._diverged = (
                f"{bad.in_row} steps in a row were not finite, the last: {text}. The last good state is "
                f"kept in {self.job.checkpoints.folder}; start anew with a lower "
                "--optimiser.lr or with --optimiser.clip_norm 1."
            )

    def _end_epoch(self, epoch: int, rate: float) -> None:
        taken, figures = self.training_step.sums.so_far()
        every = self.config.evaluate_every
        if every and epoch % every == 0 and self.method.classifies:
            self.job.progress.note("evaluating")
            figures.update(self.job.look(self.deployable()))
        validated = self.job.validate if self.method.classifies else None
        if validated is not None and (epoch % (every or 1) == 0 or epoch == self.stage.epochs):
            self.job.progress.note("evaluating")
            classifier = self.deployable()
            figures.update(validated(classifier))
            if self.best is not None:
                self.best.see(epoch, figures, classifier.cpu())  # a device has better use for its memory
        record = {"stage": self.stage.name, "epoch": epoch, "step": self.step, "lr": rate}
        self.job.log.write({**record, "steps_taken": taken, **figures})
        self.job.progress.epoch(epoch, taken, figures)
        self.training_step.sums.clear()
        # Of a queue in shares, all processes give theirs: no clock of its own may tell one to.
        late = time.monotonic() - self._saved_at >= self.config.checkpoint.every_seconds
        due = self.job.ranks.any_number(int(late)) > 0
        if self.training_step.guard.in_row == 0 and (due or self.step == self.total_steps):
            self.save()

    def deployable(self) -> nn.Module:
        """Return a copy of the classifier as it would be deployed now: of the moving average, if there is one."""
        with self.average.applied() if self.average is not None else nullcontext(), self.weights.whole():
            return copy.deepcopy(self.method.classifier()).eval()

    def _set_learning_rate(self) -> float:
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
        rate = factor * resolved(options.lr)
        set_rate(self.optimiser, rate)
        return rate

    def _optimised(self, state: Iterable[str]) -> dict[str, Tensor]:
        """Return the parameter that each entry of an optimiser's state (``index.name``) belongs to."""
        return {key: self._parameters[int(key.partition(".")[0])] for key in state}

    def save(self) -> None:
        """Write the whole state."""
        tensors, numbers = optimiser_state(self.optimiser)
        sums, gathered = self.training_step.sums, self.weights.gathered
        state = {
            **prefixed("method", gathered(whole_state(self.method), self.method.state_dict())),
            **prefixed("optimiser", gathered(tensors, self._optimised(tensors))),
            **prefixed("sums", sums.tensors()),
        }
        if self.average is not None:
            state.update(prefixed("average", gathered(self.average.state_dict(), self.average.averaged)))
        if self.best is not None:
            state.update(self.best.tensors())
        meta = {
            "identity": self.job.identity,
            "optimiser": numbers,
            "sums": list(sums.names),  # tensors are stored sorted; the log keeps the order of the first step
            "steps_in_sums": sums.steps,
            "log_length": self.job.log.length,
            "best": None if self.best is None else self.best.record,
        }
        self.job.checkpoints.save(self.job.number, self.step, state, meta)
        self._saved_at = time.monotonic()

    def _restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        what = f"the state in {self.job.checkpoints.folder}"
        dealt = self.weights.dealt
        load_module(self.method, dealt(own_share(self.method, part(tensors, "method")), self.method.state_dict()), what)
        moments = part(tensors, "optimiser")
        restore_optimiser(self.optimiser, all_held(dealt(moments, self._optimised(moments))), meta["optimiser"])
        if self.average is not None:
            average = dealt(part(tensors, "average"), self.average.averaged)
            load_module(self.average, all_held(average), what)
        if self.best is not None:
            self.best.restore(tensors, meta["best"], self.deployable().cpu(), what)
        self.training_step.sums = EpochSums.restored(
            meta["sums"], part(tensors, "sums"), int(meta["steps_in_sums"]), self.job.device
        )
