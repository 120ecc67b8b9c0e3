"""A run: its stages one after the other, each starting from what the earlier ones left."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from longtail.config import TrainConfig
from longtail.data import DataSplits, FeatureSet
from longtail.data.shares import Share
from longtail.errors import UserError
from longtail.methods import MethodContext, Stage, get_method
from longtail.models import Classifier
from longtail.ranks import Ranks
from longtail.training.calibration import calibrate, validation_notes, with_validation
from longtail.training.checkpoint import CheckpointFolder, MetricsLog, NoCheckpoints, NoLog
from longtail.training.evaluation import evaluate_classifier, help_evaluate, quick_look, write_evaluation
from longtail.training.gallery import write_gallery
from longtail.training.guard import StopRequest
from longtail.training.loaders import build_loader
from longtail.training.loop import StageRun
from longtail.training.pace import PlannedStage
from longtail.training.progress import ProgressReporter
from longtail.training.run_folder import RunFolder, config_digest
from longtail.training.shortlists import with_shortlists
from longtail.training.stage_job import Records, StageJob
from longtail.training.zero_shot import TextHeads, evaluate_zero_shot, with_zero_shot, zero_shot_line

_Model = TypeVar("_Model", bound=Any)


def check_config(folder: Path, meta: dict[str, Any]) -> None:
    """Raise unless ``config.yaml`` is the one that the state described by ``meta`` was trained with."""
    if meta.get("identity", {}).get("config") != config_digest(folder):
        raise UserError(
            f"{folder / 'config.yaml'} is not what the run was started with; restore it, or start anew with "
            "--overwrite."
        )


def run_identity(data: Any, stages: Sequence[Stage], path: Path) -> dict[str, Any]:
    """Return what a state must agree on to be resumed: data, stages and options of the run in ``path``."""
    identity: dict[str, Any] = {
        "train": data.train.fingerprint(),
        "test": data.test.fingerprint(),
        "stages": [stage.name for stage in stages],
        "config": config_digest(path),
    }
    return identity if data.validation is None else {**identity, "validation": data.validation.fingerprint()}


def restored_state(
    checkpoints: CheckpointFolder | NoCheckpoints, identity: dict[str, Any], path: Path
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the state that the run in ``path`` goes on from, None if there is none.

    Raises:
        UserError: it belongs to other options or other data.
    """
    restored = checkpoints.load()
    if restored is not None:
        check_config(path, restored[1])
        if restored[1].get("identity") != identity:
            raise UserError(
                f"the data is not what the run in {path} was started with; restore it, or start anew with --overwrite."
            )
    return restored


def records_of(
    path: Path, identity: dict[str, Any], ranks: Ranks, follow: Callable[[], None] | None
) -> tuple[CheckpointFolder, Records, tuple[dict[str, Tensor], dict[str, Any]] | None]:
    """Return where states and figures of the run in ``path`` go, and the state that it goes on from (None = none).

    The first of ``ranks`` writes; ``follow`` is called whenever its ``metrics.jsonl`` has changed.

    Raises:
        UserError: the state belongs to other options or data, or not all processes see the same one.
    """
    checkpoints = (CheckpointFolder if ranks.is_main else NoCheckpoints)(path / "resume")
    restored = restored_state(checkpoints, identity, path)
    done = None if restored is None else [restored[1]["stage"], restored[1]["step"]]
    ranks.check_same({"saved state": done}, "all processes must see the same --out folder")
    length = restored[1]["log_length"] if restored else 0
    log = MetricsLog(path / "metrics.jsonl", length, follow) if ranks.is_main else NoLog()
    return checkpoints, log, restored


def previous_model(
    stage: Stage, finished: Mapping[str, _Model], folder: Path, resumed: bool, kind: type[_Model]
) -> _Model | None:
    """Return the model that a stage takes: of an earlier stage, or of a ready run, which is copied into the run."""
    if stage.takes is None or stage.ready is None:
        return None if stage.takes is None else finished[stage.takes]
    kept = folder / stage.takes
    # A stage that goes on keeps what it began with; one that begins takes nothing that an earlier run left here.
    if not resumed or not (kept / "model.json").exists():
        kind.load(stage.ready).save(kept)
    model: _Model = kind.load(kept)
    return model


class TrainedStage(NamedTuple, Generic[_Model]):
    """What a stage left.

    Attributes:
        model: loaded from what was saved, so that ``evaluate`` and other machines meet the same one.
        classifies: whether it can tell classes apart.
        best: which epoch was chosen, and by what; None = the last.
    """

    model: _Model
    classifies: bool
    best: dict[str, Any] | None


def train_stage(
    job: StageJob,
    restored: tuple[dict[str, Tensor], dict[str, Any]] | None,
    folder: RunFolder,
    target: Path,
    kind: type[_Model],
) -> TrainedStage[_Model]:
    """Train a stage to its end and save its model, of type ``kind``, in ``target``.

    Raises:
        Interrupted, Diverged: see :class:`longtail.training.loop.StageRun`; the state is written.
    """
    began = time.monotonic()
    job.progress.note(f"preparing {job.stage.name}")
    # Everything random in a stage is seeded by it; the caller's generator (on the CPU) is left as it was.
    with torch.random.fork_rng(devices=[]):
        run = StageRun(job, restored)
        try:
            trained = run.run()
        finally:
            folder.note_seconds(job.stage.name, time.monotonic() - began, job.device)
    assert isinstance(trained, kind)
    classifies, best = run.method.classifies, None if run.best is None else run.best.record
    del run
    if job.device.type != "cpu":
        gc.collect()  # what a stage holds there refers to each other, and the next one needs the room
    if job.ranks.is_main:
        trained.save(target)
    job.ranks.barrier()
    return TrainedStage(kind.load(target), classifies, best)


def plan_stages(config: TrainConfig) -> list[Stage]:
    """Return the run's stages; the last one's classifier is the result."""
    return get_method(config.method).stages(config, config.method)


def run_stages(
    config: TrainConfig,
    data: DataSplits,
    folder: RunFolder,
    progress: ProgressReporter,
    follow: Callable[[], None] | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Train every stage that is not finished yet, write model and evaluation, and return the evaluation.

    ``follow`` is called whenever ``metrics.jsonl`` has changed. Of several ``ranks`` all call this, each with the same
    data; the first writes, and has the evaluation.

    Raises:
        Interrupted, Diverged: see :class:`longtail.training.loop.StageRun`; the state is written.
        UserError: a checkpoint does not fit.
    """
    device = torch.device(config.device)
    ranks = ranks or Ranks()
    stages = plan_stages(config)
    identity = run_identity(data, stages, folder.path)
    checkpoints, log, restored = records_of(folder.path, identity, ranks, follow)
    share = Share(ranks.rank, ranks.world, config.optimiser.accumulate)
    workers = config.loading.workers

    def look(classifier: Classifier) -> dict[str, float]:
        return quick_look(classifier, data.test, device, workers, ranks=ranks)

    def validate(classifier: Classifier) -> dict[str, float]:
        assert data.validation is not None
        return quick_look(classifier, data.validation, device, workers, of="val", ranks=ranks)

    finished: dict[str, Classifier] = {}
    evaluation: dict[str, Any] = {}
    plan = [PlannedStage(stage.name, stage.epochs, get_method(stage.method).passes) for stage in stages]
    progress.plan(str(folder.path), folder.path / "report.html", plan)
    with ranks.main_first():  # which computes what the others read
        heads = TextHeads(folder.path, config, data.train.class_names, device)
        if ranks.is_main:
            heads.keep(stages)
            zero_shot = evaluate_zero_shot(folder.path, config, data, heads, device)
            if zero_shot is not None:
                progress.say(zero_shot_line(zero_shot))
    with StopRequest() as stop:
        ranks.stopped = lambda: stop.received is not None
        for number, stage in enumerate(stages):
            target = folder.path if stage is stages[-1] else folder.path / stage.name
            if restored is not None and restored[1]["stage"] > number:
                finished[stage.name] = Classifier.load(target)
                continue
            resumed = restored is not None
            with ranks.main_first():
                previous = previous_model(stage, finished, folder.path, resumed, Classifier)
            text = None if resumed else heads.of(stage)
            context = MethodContext(config, stage, data.train, data.mean, data.std, previous, resumed, text)
            job = StageJob(
                config=config,
                stage=stage,
                build_method=partial(get_method(stage.method).build, context),
                build_loader=partial(build_loader, context=context, device=device, share=share),
                number=number,
                device=device,
                checkpoints=checkpoints,
                log=log,
                progress=progress,
                stop=stop,
                look=look,
                validate=None if data.validation is None else validate,
                identity=identity,
                ranks=ranks,
            )
            classifier, classifies, selected = train_stage(job, restored, folder, target, Classifier)
            restored, finished[stage.name] = None, classifier
            if not classifies:
                continue
            if not ranks.is_main:
                for images in (data.validation, data.test):
                    if images is not None:
                        help_evaluate(classifier, images, device, workers, ranks)
                classifier.cpu()
                continue
            progress.note(f"evaluating {stage.name}")
            if data.validation is not None:
                calibrate(target, classifier, data.validation, device, workers, selected, ranks)
                for note in validation_notes(target):
                    progress.say(f"{stage.name}: {note}")
            evaluated = evaluate_classifier(classifier, data.test, device, config.group_edges, workers, target, ranks)
            evaluated = with_validation(target, evaluated, classifier.logit_prior)
            evaluated = with_shortlists(target, evaluated, classifier.logit_prior)
            evaluated = with_zero_shot(target, evaluated) if stage is stages[-1] else evaluated
            if stage is stages[-1] and not isinstance(data.test, FeatureSet):
                write_gallery(target, classifier, evaluated, data.train, data.test)
            write_evaluation(target, evaluated, keep_logits=config.folds is not None)
            evaluation = evaluated.figures
            classifier.cpu()  # the next stage may need the device for itself
    return evaluation
