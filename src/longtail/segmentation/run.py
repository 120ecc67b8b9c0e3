"""A run on masks: read, choose, train stage by stage, evaluate, report. What ``longtail.train`` does for images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from longtail.config import TrainConfig, get_option, replace_options, resolved
from longtail.data.counts import imbalance_factor
from longtail.data.shares import WHOLE, Share
from longtail.data.streaming import default_workers
from longtail.errors import UserError
from longtail.ranks import Ranks
from longtail.segmentation.data.loading import MaskLoader
from longtail.segmentation.data.mask_set import MaskSplits
from longtail.segmentation.data.shown import seen_more_often, shown_pixels
from longtail.segmentation.data.sources import load_masks
from longtail.segmentation.defaults import (
    check_test_view,
    choose_dense_weights,
    describe_dense,
    geometry_of,
    resolve_dense,
)
from longtail.segmentation.evaluation import (
    dense_summary,
    dense_warnings,
    evaluate_segmenter,
    quick_look,
    write_dense_evaluation,
)
from longtail.segmentation.methods import DenseContext, DenseMethod, get_dense_method
from longtail.segmentation.models import Segmenter, TestView
from longtail.segmentation.report import write_dense_gallery, write_dense_report
from longtail.segmentation.result import DenseResult
from longtail.training.guard import StopRequest
from longtail.training.job import agreed_config
from longtail.training.pace import PlannedStage
from longtail.training.progress import ProgressReporter
from longtail.training.run_folder import RunFolder, WatchedFolder, check_same_options, write_data_record
from longtail.training.stage_job import StageJob
from longtail.training.stages import previous_model, records_of, run_identity, train_stage
from longtail.training.tracking import Tracking


def read_masks(config: TrainConfig, say: ProgressReporter) -> MaskSplits:
    """Return the training, validation and test set that the options name, every file looked at."""
    return load_masks(
        config.data,
        root=config.root,
        source=config.source,
        options=config.segmentation,
        val_fraction=config.val_fraction,
        on_bad=config.on_bad_image,
        workers=default_workers(None),
        progress=say.counter("looking at every mask"),
    )


def test_view(config: TrainConfig) -> TestView:
    """Return how whole images are looked at when tested, as the options say."""
    own = config.segmentation
    window = None if own.window is None else (own.window[0], own.window[1])
    return TestView(window, own.stride, tuple(own.test_scales), own.test_mirror)


def with_view(
    config: TrainConfig,
    window: Sequence[int] | None,
    stride: float | None,
    scales: Sequence[float] | None,
    mirror: bool,
) -> TrainConfig:
    """Return a run's options, tested otherwise as far as something is given.

    Raises:
        UserError: a value that cannot be meant.
    """
    stated = config.segmentation
    own = replace(
        stated,
        window=stated.window if window is None else list(window),
        stride=stated.stride if stride is None else stride,
        test_scales=stated.test_scales if scales is None else list(scales),
        test_mirror=stated.test_mirror or mirror,
    )
    check_test_view(own)
    return replace(config, segmentation=own)


def train_dense(
    config: TrainConfig,
    given: dict[str, Any],
    resume: bool,
    overwrite: bool,
    say: ProgressReporter,
    ranks: Ranks | None = None,
) -> DenseResult:
    """Train one run on masks into ``config.out``.

    Raises:
        UserError, Interrupted, Diverged: as ``longtail.train``.
    """
    ranks = ranks or Ranks()
    out = Path(str(config.out))
    resumed = ranks.share(resume and (out / "config.yaml").exists())
    with ranks.main_first():  # what it found out of the files, or fetched, the others find
        config, splits, notes = _choose(config, given, resumed, say, ranks.world)
    config = agreed_config(config, splits, ranks)
    _tell(config, splits, notes, given, say)
    teacher = config.teacher.run
    if overwrite and teacher is not None and Path(teacher).resolve().is_relative_to(out.resolve()):
        raise UserError(f"--overwrite would delete the teacher {teacher}, which lies in {out}; choose another --out.")
    folder = RunFolder(out, resume=resume, overwrite=overwrite) if ranks.is_main else WatchedFolder(out)
    try:
        seen = splits.train.fingerprint()
        folder.begin(config, lambda: write_data_record(folder.path, splits, notes, seen), ranks)
        if ranks.is_main:
            with Tracking(config, folder.path, say) as tracking:
                evaluation = run_dense_stages(config, splits, folder, say, tracking.update, ranks)
                write_dense_report(folder.path)
                tracking.finish(evaluation)
        else:
            evaluation = run_dense_stages(config, splits, folder, say, ranks=ranks)
        ranks.barrier()
    finally:
        folder.close()
    say.say(dense_summary(evaluation))
    for line in dense_warnings(evaluation):
        say.say(line)
    result = DenseResult(folder.path, evaluation)
    say.say(f"report: {result.report}")
    return result


def _choose(
    config: TrainConfig, given: dict[str, Any], resumed: bool, say: ProgressReporter, processes: int
) -> tuple[TrainConfig, MaskSplits, list[str]]:
    """Read the masks and fill in what is open; refuse, before anything is written, what cannot be trained."""
    splits = read_masks(config, say)
    if resumed:
        given = {key: value for key, value in given.items() if (key, value) != ("precision", "fastest")}
        asked, _ = resolve_dense(replace_options(config, given), splits, processes)
        check_same_options(config, {key: get_option(asked, key) for key in given}, Path(str(config.out)))
        return config, splits, []
    config, notes = resolve_dense(config, splits, processes)
    config, weight_notes = choose_dense_weights(config)
    get_dense_method(config.method).check(config, splits.train)
    return config, splits, [*notes, *weight_notes]


def _tell(
    config: TrainConfig, splits: MaskSplits, notes: list[str], given: dict[str, Any], say: ProgressReporter
) -> None:
    """Say what there is to train on, and with what."""
    train = splits.train
    shares = train.class_counts / train.class_counts.sum()
    rarest = int(torch.where(shares > 0, shares, 2.0).argmin())
    say.say(
        f"{splits.name}: {len(train)} training images, {train.num_classes} classes, of the pixels "
        f"{train.class_names[int(shares.argmax())]} {shares.max():.1%} down to {train.class_names[rarest]} "
        f"{shares[rarest]:.2%} (imbalance {imbalance_factor(train.class_counts):.3g}, by images "
        f"{imbalance_factor(train.image_counts):.3g}), "
        + (f"{len(splits.validation)} validation images, " if splits.validation is not None else "")
        + f"{len(splits.test)} test images ({splits.test_split})"
    )
    for note in (*splits.notes, *notes):
        say.say(note)
    say.say(f"{config.method}, chosen from the data: {describe_dense(config, set(given))}")


def run_dense_stages(
    config: TrainConfig,
    splits: MaskSplits,
    folder: RunFolder,
    progress: ProgressReporter,
    follow: Callable[[], None] | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Train every stage that is not finished yet, write model and evaluation, and return the evaluation.

    ``follow`` is called whenever ``metrics.jsonl`` has changed. Of several ``ranks`` all call this, each with the same
    data; the first writes.

    Raises:
        Interrupted, Diverged: see :class:`longtail.training.loop.StageRun`; the state is written.
        UserError: a checkpoint does not fit.
    """
    device, workers = torch.device(config.device), config.loading.workers
    stages = get_dense_method(config.method).stages(config, config.method)
    ranks = ranks or Ranks()
    identity = run_identity(splits, stages, folder.path)
    checkpoints, log, restored = records_of(folder.path, identity, ranks, follow)
    share = Share(ranks.rank, ranks.world, config.optimiser.accumulate)
    plan = [PlannedStage(stage.name, stage.epochs, get_dense_method(stage.method).passes) for stage in stages]
    progress.plan(str(folder.path), folder.path / "report.html", plan)
    mean, std = tuple(resolved(config.source.mean)), tuple(resolved(config.source.std))
    shown, held = shown_pixels(splits.train, geometry_of(config), config.seed)
    seen = seen_more_often(shown, held)
    # Epochs are looked at through the test's windows, which memory may need, but once: scales and mirror cost time.
    look_view = replace(test_view(config), scales=(1.0,), mirror=False)
    look = partial(quick_look, view=look_view, device=device, workers=workers, ranks=ranks)
    finished: dict[str, Segmenter] = {}
    evaluation: dict[str, Any] = {}
    with StopRequest() as stop:
        ranks.stopped = lambda: stop.received is not None
        for number, stage in enumerate(stages):
            target = folder.path if stage is stages[-1] else folder.path / stage.name
            if restored is not None and restored[1]["stage"] > number:
                finished[stage.name] = Segmenter.load(target)
                continue
            with ranks.main_first():
                previous = previous_model(stage, finished, folder.path, restored is not None, Segmenter)
            context = DenseContext(config, stage, splits.train, mean, std, previous, restored is not None, shown, seen)
            job = StageJob(
                config=config,
                stage=stage,
                build_method=partial(get_dense_method(stage.method).build, context),
                build_loader=partial(build_mask_loader, context=context, device=device, share=share),
                number=number,
                device=device,
                checkpoints=checkpoints,
                log=log,
                progress=progress,
                stop=stop,
                look=partial(look, files=splits.test, of="test"),
                validate=None if splits.validation is None else partial(look, files=splits.validation, of="val"),
                identity=identity,
                figure="val_miou",
                ranks=ranks,
            )
            segmenter, _, best = train_stage(job, restored, folder, target, Segmenter)
            restored, finished[stage.name] = None, segmenter
            progress.note(f"evaluating {stage.name}")
            view = test_view(config)
            evaluated = evaluate_segmenter(
                segmenter, splits.test, device, config.segmentation, workers, view, len(splits.train), ranks
            )
            evaluation = evaluated.figures
            if not ranks.is_main:
                segmenter.cpu()
                continue
            evaluated.figures["selection"] = best or "last"
            if stage is stages[-1]:
                write_dense_gallery(target, segmenter, evaluated, splits.test, view)
            write_dense_evaluation(target, evaluated)
            segmenter.cpu()  # the next stage may need the device for itself
    return evaluation


def build_mask_loader(
    method: DenseMethod, seed: int, context: DenseContext, device: torch.device, share: Share = WHOLE
) -> MaskLoader:
    """Return what gives the batches of a stage: crops with their masks, ``method``'s views of each."""
    config = context.config
    workers = config.loading.workers
    return MaskLoader(
        context.train,
        method.views,
        resolved(config.batch_size),
        seed,
        device,
        context.stage.epochs,
        geometry=geometry_of(config),
        mean=context.mean,
        std=context.std,
        workers=default_workers(device) if workers is None else workers,
        prefetch=config.loading.prefetch,
        fetched=method.fetched_views,
        resident=bool(config.loading.resident),
        share=share,
    )
