"""One stage trained in memory by the same loop as a run: nothing is written, shown or resumed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtail.config import TrainConfig
from longtail.data import DataSplits
from longtail.methods import MethodContext, get_method
from longtail.models import Classifier
from longtail.training.guard import StopRequest
from longtail.training.loaders import build_loader
from longtail.training.loop import StageRun
from longtail.training.progress import ProgressReporter
from longtail.training.random_numbers import own_random_numbers
from longtail.training.stage_job import StageJob


class _NoStates:
    """Keeps no state: what is trained in memory starts anew."""

    folder = Path()

    def save(self, stage: int, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Keep nothing."""


class _List:
    """A log in memory."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    @property
    def length(self) -> int:
        """Number of records."""
        return len(self.records)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        self.records.append(record)


def train_in_memory(config: TrainConfig, data: DataSplits) -> tuple[Classifier, list[float]]:
    """Train a method of one stage and return its classifier, on the CPU, and the mean loss of each epoch.

    The same weights as those of a run with these options come out, bit for bit. Torch's generators are left as they
    were; the test set is not looked at.

    Args:
        config: resolved options, weights included.
        data: the training set, with mean and deviation.

    Raises:
        Diverged: too many steps in a row were not finite.
        UserError: the method cannot be trained with these options.
    """
    method = get_method(config.method)
    method.check(config, data.train)
    [stage] = method.stages(config, config.method)
    log, device = _List(), torch.device(config.device)
    context = MethodContext(config, stage, data.train, data.mean, data.std)
    job = StageJob(
        config=config,
        stage=stage,
        build_method=partial(method.build, context),
        build_loader=partial(build_loader, context=context, device=device),
        number=0,
        device=device,
        checkpoints=_NoStates(),
        log=log,
        progress=ProgressReporter(quiet=True),
        stop=StopRequest(),
        look=lambda classifier: {},
        validate=None,
        identity={},
    )
    with own_random_numbers(device):
        run = StageRun(job)
        classifier = run.run().cpu()
    assert isinstance(classifier, Classifier)
    told = {"stage", "epoch", "step", "lr", "steps_taken", *run.method.readings()}
    epochs = (record for record in log.records if "steps_taken" in record)
    return classifier, [sum(record[name] for name in record if name not in told) for record in epochs]
