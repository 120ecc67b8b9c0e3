"""Training, as the command line and Python call it; ``load`` gives back what it made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from longtail.config import TrainConfig, get_option, replace_options
from longtail.data import DataSplits, FeatureSet, ImageFiles
from longtail.data.counts import imbalance_factor
from longtail.deployment.result import Result
from longtail.deployment.run_records import find_run, is_dense, load_classifier
from longtail.errors import UserError
from longtail.files import read_json
from longtail.launched import connect
from longtail.methods import get_method, is_read
from longtail.models import Classifier
from longtail.options import make_config, parse_values, read_recipe
from longtail.ranks import Ranks
from longtail.reporting import fold_summary, read_log, summary, unlearned, warnings, write_report
from longtail.segmentation.methods import dense_is_read, get_dense_method
from longtail.segmentation.models import Segmenter
from longtail.segmentation.result import DenseResult, load_segmenter
from longtail.segmentation.run import train_dense
from longtail.training.defaults import describe, resolve
from longtail.training.evaluation import write_evaluation
from longtail.training.folds import fold_folders, pool_folds
from longtail.training.framing_defaults import chosen_framing
from longtail.training.job import agreed_config, check_processes, how_to_begin
from longtail.training.kept_encoder import check_encoder, keep_encoder
from longtail.training.progress import ProgressReporter
from longtail.training.run_data import (
    frame_for_run,
    notes_on_other_runs,
    read_splits,
    within_memory,
)
from longtail.training.run_folder import (
    RunFolder,
    WatchedFolder,
    check_free,
    check_same_options,
    may_change,
    read_config,
    write_data_record,
)
from longtail.training.stages import run_stages
from longtail.training.tracking import Tracking, check_tracking
from longtail.training.weight_defaults import choose_pretrained

_CHOOSE_DATA = (
    "data root method imbalance folds val_fraction source.profile source.test source.test_share source.split_seed"
).split()


def train(
    data: str | Path | None = None,
    *,
    recipe: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Result | DenseResult:
    """Train, evaluate and report.

    Started several times by ``torchrun`` (or ``accelerate launch``), the processes train one model together, with the
    figures of one process of the same ``batch_size``; the first of them writes and speaks.

    Args:
        data: a name (``digits-lt``, ``cifar100-lt``, ...) or a path; may be left out where the recipe, or the run that
            is resumed, says it.
        recipe: name of a recipe, or path of a YAML file; ``options`` go before it.
        resume: go on with the run in ``out`` (or start it, if there is none yet).
        overwrite: delete the run in ``out`` first.
        quiet: print nothing.
        options: as on the command line (:class:`longtail.config.TrainConfig`): ``epochs=20``, and groups as mappings,
            ``loss={"temperature": 0.07}``.

    Raises:
        UserError: one sentence that says what to mend; nothing that was there is lost.
        Interrupted, Diverged: the state is written; ``resume=True`` goes on.
    """
    given = read_recipe(recipe) if recipe else {}
    given |= parse_values(options, "train")
    if data is not None:
        given["data"] = str(data)
    ranks = connect(make_config(given).device)
    with ranks.together():
        return _train(given, resume, overwrite, quiet, ranks)


def _train(given: dict[str, Any], resume: bool, overwrite: bool, quiet: bool, ranks: Ranks) -> Result | DenseResult:
    """Train as ``given`` says, in one of the processes of ``ranks``."""
    say = ProgressReporter(quiet or not ranks.is_main)
    check_processes(ranks, given)
    if not given.get("data") and not (resume and given.get("out")):
        hint = "say with --out which run goes on, or " if resume else ""
        raise UserError(f"no data given: {hint}name a data set (such as digits-lt) or a path.")
    config = make_config(given)
    out = Path(config.out or default_folder(config))
    resume, overwrite = ranks.share(how_to_begin(out, resume, overwrite, ranks))
    resumed = ranks.share(resume and (out / "config.yaml").exists())
    if resumed:
        config = _saved_config(out, given)
    elif not config.data:
        raise UserError(f"{out} holds no run to resume; name the data to start one.")
    config = replace_options(config, {"out": str(out)})
    dense = config.task == "segmentation"
    (get_dense_method if dense else get_method)(config.method)
    check_tracking(config.tracking.to)
    if ranks.is_main:
        check_free(out, resume, overwrite)  # told at once, not after a look at every image
    _check_beside(out, config)
    one = _train_one if config.folds is None or config.source.fold is not None else _train_folds
    reads = dense_is_read if dense else is_read
    unread = [f"--{key}" for key in given if not reads(config.method, key)]
    with say:
        if unread:
            say.say(f"not read by {config.method}, so without effect: {', '.join(unread)}.")
        return (train_dense if dense else one)(config, given, resume, overwrite, say, ranks)


def _train_one(
    config: TrainConfig,
    given: dict[str, Any],
    resume: bool,
    overwrite: bool,
    say: ProgressReporter,
    ranks: Ranks,
    told: set[str] | None = None,
) -> Result:
    """Train one run into ``config.out``; ``told`` are options that the user gave, if they are not ``given``."""
    out = Path(str(config.out))
    resumed = ranks.share(resume and (out / "config.yaml").exists())
    with ranks.main_first():  # what it found out of the files, or fetched, the others find
        config, splits, notes = _choose(config, given, resumed, say, ranks.world)
    config = agreed_config(config, splits, ranks)
    counts = splits.train.class_counts
    say.say(
        f"{splits.name}: {len(splits.train)} training images, {splits.train.num_classes} classes of "
        f"{int(counts.max())} down to {int(counts.min())} (imbalance {imbalance_factor(counts):.3g}), "
        + (f"{len(splits.validation)} validation images, " if splits.validation is not None else "")
        + f"{len(splits.test)} test images ({splits.test_split})"
    )
    for note in (*splits.notes, *notes):
        say.say(note)
    say.say(f"{config.method}, chosen from the data: {describe(config, told or set(given))}")
    seen = splits.train.fingerprint()
    splits = frame_for_run(config, splits, say)
    _check_ready_runs_stay(config, overwrite)
    if isinstance(splits.train, FeatureSet) and not resumed:
        check_encoder(splits.train.origin)  # before anything is deleted
    folder = RunFolder(out, resume=resume, overwrite=overwrite) if ranks.is_main else WatchedFolder(out)

    def record() -> None:
        if isinstance(splits.train, FeatureSet):
            kept = keep_encoder(folder.path, splits.train.origin)
            if not kept and not config.source.fold:
                say.say("the encoder that made these features is not beside them: predictions will need features.")
        write_data_record(folder.path, splits, notes, seen)

    try:
        folder.begin(config, record, ranks)
        if ranks.is_main:
            with Tracking(config, folder.path, say) as tracking:
                evaluation = run_stages(config, splits, folder, say, tracking.update, ranks)
                write_report(folder.path)
                tracking.finish(evaluation)
        else:
            run_stages(config, splits, folder, say, ranks=ranks)
        ranks.barrier()
        evaluation = evaluation if ranks.is_main else read_json(out / "evaluation.json")
    finally:
        folder.close()
    say.say(summary(evaluation))
    for line in (*warnings(evaluation), *unlearned(read_log(out / "metrics.jsonl"), evaluation["class_counts"])):
        say.say(line)
    result = Result(folder.path, evaluation)
    say.say(f"report: {result.report}")
    return result


def _choose(
    config: TrainConfig, given: dict[str, Any], resumed: bool, say: ProgressReporter, processes: int
) -> tuple[TrainConfig, DataSplits, list[str]]:
    """Read the data and fill in what is open; refuse, before anything is decoded or written, what cannot be trained."""
    splits = read_splits(config, say)
    config, notes = resolve(config, splits, processes)
    if resumed:
        given = _as_begun(given, config)
        if given.get("precision") == "fastest":  # timed once, when the run began
            given = {key: value for key, value in given.items() if key != "precision"}
        # Compared as resolved: a batch larger than the data, say, is the same smaller one again.
        asked, _ = resolve(replace_options(config, given), splits, processes)
        check_same_options(config, {key: get_option(asked, key) for key in given}, Path(str(config.out)))
        return config, splits, notes
    config, memory_notes = within_memory(config, splits)
    config, weight_notes = choose_pretrained(config, splits)
    train = splits.train
    train = replace(train, framed=chosen_framing(config)) if isinstance(train, ImageFiles) else train
    get_method(config.method).check(config, train)
    return config, splits, [*notes, *memory_notes, *weight_notes, *notes_on_other_runs(config, splits)]


def _as_begun(given: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Return what was given without a wish to keep pixels in memory, where a run began by streaming them.

    They may have been too large then, with the same words; the run goes on as it began.
    """
    streamed = config.loading.resident is False
    return {key: value for key, value in given.items() if not (streamed and key == "loading.resident" and value)}


def _check_beside(out: Path, config: TrainConfig) -> None:
    """Raise if the run would lie among the images, where the next reading took its folder for a class."""
    for place in (config.data, config.source.test):
        if (
            place
            and Path(place).expanduser().is_dir()
            and out.resolve().is_relative_to(Path(place).expanduser().resolve())
        ):
            raise UserError(
                f"--out {out} lies in the image folder {place}, where it would count as a class folder; choose an "
                "--out beside it."
            )


def _check_ready_runs_stay(config: TrainConfig, overwrite: bool) -> None:
    """Raise if the run would delete what it builds on."""
    out = Path(str(config.out))
    for kind, run in (("teacher", config.teacher.run), ("representation", config.decoupled.run)):
        if overwrite and run is not None and Path(run).resolve().is_relative_to(out.resolve()):
            raise UserError(f"--overwrite would delete the {kind} {run}, which lies in {out}; choose another --out.")


def _train_folds(
    config: TrainConfig, given: dict[str, Any], resume: bool, overwrite: bool, say: ProgressReporter, ranks: Ranks
) -> Result:
    """Train a run for every fold in ``config.out``, and pool their figures there."""
    out, folds = Path(str(config.out)), config.folds or 1
    moved = {key: value for key, value in given.items() if may_change(key)}
    firsts = []
    if ranks.share(resume and (out / "config.yaml").exists()):
        # A batch larger than a fold was made smaller when the run was started.
        told = _as_begun(given, config)
        same = {key: value for key, value in told.items() if key != "batch_size" or value <= (config.batch_size or 0)}
        check_same_options(config, same, out)
    else:
        # What cannot be dealt or trained is refused before anything is written: the first fold of each deal tells.
        deals = range(0, folds * config.source.repeats, folds)
        with ranks.main_first():
            firsts = [
                _choose(replace_options(config, {"source.fold": fold}), {}, False, say, ranks.world) for fold in deals
            ]
        # One choice for all folds, weights included: their figures are put together.
        config = replace_options(agreed_config(firsts[0][0], firsts[0][1], ranks), {"source.fold": None})
        _check_ready_runs_stay(config, overwrite)
    folder = RunFolder(out, resume=resume, overwrite=overwrite) if ranks.is_main else WatchedFolder(out)
    ranks.barrier()
    try:
        if firsts and ranks.is_main:
            _, splits, notes = firsts[0]
            folder.write_config(config)
            write_data_record(out, replace(splits, test_split=f"each of {folds} folds in turn"), notes)
            for note in notes:
                say.say(note)
        folder.note_job(config.seed, ranks)
        for number, path in enumerate(fold_folders(out, config)):
            say.say(f"fold {number % folds + 1} of {folds}: {path}")
            say.fold = number, folds * config.source.repeats
            started = ranks.share((path / "config.yaml").exists())
            changes = {"source.fold": number, "out": str(path)}
            one = _saved_config(path, moved) if started else replace_options(config, changes)
            _train_one(replace_options(one, changes), {}, resume, False, say, ranks, told=set(given))
        if ranks.is_main:
            pooled = pool_folds(out, config)
            write_evaluation(out, pooled)
            write_report(out)
        ranks.barrier()
        figures = pooled.figures if ranks.is_main else read_json(out / "evaluation.json")
    finally:
        folder.close()
    result = Result(out, figures)
    say.say(fold_summary(figures))
    for line in warnings(figures):
        say.say(line)
    say.say(f"report: {result.report}")
    return result


def load(path: str | Path, features: bool = False) -> Classifier | Segmenter:
    """Return the model of a run folder or of ``hf-hub:owner/name[@revision]``, in eval mode on the CPU.

    It is a segmenter where the run was one of segmentation. Nothing is unpickled. The classifier of a run on features
    takes images, if the run keeps the encoder that made them; with ``features`` it takes features, floating point
    ``[B, D]``, as ``longtail embed`` stores them.

    Where the run fitted a temperature, ``predict`` divides by it.

    Raises:
        UserError: the folder holds no finished run, a file in it is cut off or changed, or the hub does not give it.
    """
    folder = find_run(path)
    return load_segmenter(folder) if is_dense(folder) else load_classifier(folder, features)


def default_folder(config: TrainConfig) -> str:
    """Return ``runs/DATA-METHOD-seedN``."""
    return f"runs/{Path(config.data).stem}-{config.method}-seed{config.seed}"


def _saved_config(out: Path, given: dict[str, Any]) -> TrainConfig:
    saved = make_config(parse_values(read_config(out), f"{out / 'config.yaml'}"))
    check_same_options(saved, {key: value for key, value in given.items() if key in _CHOOSE_DATA}, out)
    return replace_options(saved, {key: value for key, value in given.items() if may_change(key)})
