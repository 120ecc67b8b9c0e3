"""What the loop is given: a stage's method and batches, and where its states, figures and words go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from longtail.config import TrainConfig
from longtail.methods import Stage, Trainable
from longtail.ranks import Ranks
from longtail.training.guard import StopRequest
from longtail.training.progress import ProgressReporter


class States(Protocol):
    """Where states go: :class:`longtail.training.checkpoint.CheckpointFolder`, or nowhere."""

    folder: Path

    def save(self, stage: int, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Keep the state at ``step`` of stage number ``stage``."""


class Records(Protocol):
    """Where an epoch's figures go: :class:`longtail.training.checkpoint.MetricsLog`, or a list."""

    @property
    def length(self) -> int:
        """How much was written so far."""

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""


class StepLoader(Protocol):
    """What gives the batches of a stage, each a function of (epoch, step) alone."""

    steps_per_epoch: int
    batch_size: int
    labels: Tensor

    def load(self, epoch: int, step: int) -> Any:
        """Return batch ``step`` (0-based) of ``epoch``, as the method takes it."""

    def fetch(self, view: str, ids: Tensor, rounds: Tensor) -> Any:
        """Return a view of the samples at ``ids [M]`` outside any epoch, as the method's ``prepare`` takes it."""

    def close(self) -> None:
        """End its processes."""


@dataclass(frozen=True)
class StageJob:
    """What the loop trains, and where it runs and writes.

    Attributes:
        config: the resolved options of the run.
        stage: the stage.
        build_method: returns the method, built in torch's present random state.
        build_loader: returns what gives its batches, for a method and the stage's seed.
        number: position of the stage in the run.
        device: where to train.
        checkpoints: where the state goes.
        log: the run's ``metrics.jsonl``.
        progress: what a person sees.
        stop: set when the run was asked to stop.
        look: called with a copy of the present classifier when ``evaluate_every`` says so; returns figures for the log.
        validate: likewise, on the validation images; None if there are none. The last epoch is always looked at.
        identity: facts that a state must agree on to be resumed (written into it).
        figure: of those that ``validate`` returns, what the best epoch is chosen by.
        ranks: the processes that train together; each runs the same loop, and takes the same decisions.
    """

    config: TrainConfig
    stage: Stage
    build_method: Callable[[], Trainable]
    build_loader: Callable[[Any, int], StepLoader]

    number: int
    device: torch.device
    checkpoints: States
    log: Records
    progress: ProgressReporter
    stop: StopRequest
    look: Callable[[Any], dict[str, float]]
    validate: Callable[[Any], dict[str, float]] | None
    identity: dict[str, Any]
    figure: str = "val_balanced_accuracy"
    ranks: Ranks = field(default_factory=Ranks)
