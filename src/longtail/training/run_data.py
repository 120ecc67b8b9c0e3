"""The data of a run: read as its options say, looked at, and brought to the size that its encoder sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from longtail.config import TrainConfig, get_option, replace_options
from longtail.data import DataSplits, FeatureSet, Framing, ImageFiles, LabelledImages, load_data
from longtail.data.check_cache import default_cache
from longtail.data.file_splits import FileChecks
from longtail.data.framing import frame_splits
from longtail.data.memory import available_bytes, too_large
from longtail.data.sources import load_test_set
from longtail.data.streaming import default_workers
from longtail.errors import UserError
from longtail.files import read_json
from longtail.models import Classifier
from longtail.option_groups import DataOptions
from longtail.training.framing_defaults import chosen_framing
from longtail.training.progress import ProgressReporter
from longtail.training.run_folder import trained_on_other


def read_splits(config: TrainConfig, say: ProgressReporter) -> DataSplits:
    """Return the training, validation and test set that the options name, every file looked at."""
    splits = load_data(
        config.data,
        imbalance=config.imbalance,
        root=config.root,
        folds=config.folds,
        val_fraction=config.val_fraction,
        source=config.source,
        checks=_checks(config.on_bad_image, say),
    )
    train = splits.train
    if not isinstance(train, FeatureSet) or train.origin is None:
        return splits
    return replace(splits, notes=(train.origin.words(train), *splits.notes))


def notes_on_other_runs(config: TrainConfig, splits: DataSplits) -> list[str]:
    """Return notes on runs that this one builds on and that may have seen what it is tested on."""
    notes = []
    for key in ("pretrained", "teacher.run", "decoupled.run"):
        run = get_option(config, key)
        is_run = run is not None and (Path(run) / "model.json").exists()
        if is_run and trained_on_other(Path(str(run)), splits.train.fingerprint()):
            validated = splits.validation is not None
            notes.append(
                f"--{key} {run} was not trained on just these training images: if it has seen images that are tested "
                + ("or validated " if validated else "")
                + "on here, figures flatter the model"
                + (", and epoch and temperature are chosen on images that it knows." if validated else ".")
            )
    return notes


def within_memory(config: TrainConfig, splits: DataSplits) -> tuple[TrainConfig, list[str]]:
    """Return resolved options under which the images fit into memory, and a note if they are streamed for that.

    The one choice that looks at the machine. It is written to the run, so that the run goes on and is evaluated as it
    began, wherever that happens.
    """
    if not config.loading.resident or not isinstance(splits.train, ImageFiles):
        return config, []
    note = too_large(splits, chosen_framing(config), available_bytes())
    return (config, []) if note is None else (replace_options(config, {"loading.resident": False}), [note])


def frame_for_run(config: TrainConfig, splits: DataSplits, say: ProgressReporter) -> DataSplits:
    """Bring image files to the size that resolved options say, in memory or as a stream."""
    source, workers = config.source, config.loading.workers
    mean, std = (None if value is None else tuple(value) for value in (source.mean, source.std))
    if not isinstance(splits.test, ImageFiles):
        return replace(splits, mean=mean or splits.mean, std=std or splits.std)
    return frame_splits(
        splits,
        chosen_framing(config),
        resident=bool(config.loading.resident),
        workers=default_workers(torch.device("cpu")) if workers is None else workers,
        mean=mean,
        std=std,
        progress=say.counter("decoding images"),
    )


def read_run_data(
    path: Path, config: TrainConfig, state: dict[str, Any] | None, say: ProgressReporter, framing: Framing | None = None
) -> DataSplits:
    """Return the data that a run was started with, to evaluate on; training files stay undecoded.

    The training set is empty if it is not what the run was trained on any more. With ``framing`` the test files are
    brought to that and not to the run's own.

    Raises:
        UserError: the test set is not what it was: what was trained on might now be tested on.
    """
    splits = read_splits(config, say)
    train = splits.train
    empty = train.subset(torch.empty(0, dtype=torch.int64))
    known = not trained_on_other(path, train.fingerprint())
    # Only the test set is decoded; means and deviations are the classifier's own.
    framed = frame_for_run(config, replace(splits, train=empty, validation=None, mean=(0.0,), std=(1.0,)), say)
    fingerprint = (state or {}).get("identity", {}).get("test")
    if fingerprint is not None and framed.test.fingerprint() != fingerprint:
        raise UserError(
            f"the test set of {config.data} is not what the run in {path} was started with; restore it, or give "
            f"labelled images to evaluate on: longtail evaluate {path} DATA."
        )
    if known and isinstance(train, ImageFiles):
        train = replace(train, framed=chosen_framing(config))
    test = framed.test
    if framing is not None:
        if not isinstance(splits.test, ImageFiles):
            raise UserError("--crops are cut out of image files, but these images are arrays of just the model's size.")
        test = replace(splits.test, framed=framing)
    return replace(framed, train=train if known else empty, test=test)


def read_other_data(
    path: Path,
    config: TrainConfig,
    classifier: Classifier,
    data: str,
    root: str | Path | None,
    on_bad_image: str,
    unknown_labels: str,
    columns: Mapping[str, str],
    say: ProgressReporter,
) -> LabelledImages:
    """Return other labelled images for the classifier of the run in ``path``: a test set or, where not split, all.

    ``columns`` are options of ``--source`` (``path_column``, ``label_column``) that differ from those of the training.

    Raises:
        UserError: an option, classes or files cannot be used.
    """
    for name, value in (("on_bad_image", on_bad_image), ("unknown_labels", unknown_labels)):
        if value not in ("error", "skip"):
            raise UserError(f"--{name} must be error or skip, got {value}.")
    # Columns and labels are read as they were for the training; its splits and groups do not matter here.
    changes: dict[str, Any] = {"test": None, "group_column": DataOptions().group_column, "group_pattern": None}
    source = replace(config.source, **changes | dict(columns) | {"unknown_labels": unknown_labels})
    checks = _checks(on_bad_image, say)
    at = None if root is None else str(root)
    try:
        splits = load_test_set(data, classifier.class_names, root=at, source=source, checks=checks)
    except UserError as error:  # these two are options of this command, without the group that they have in training
        said = str(error)
        for option in ("path_column", "label_column"):
            said = said.replace(f"--source.{option}", f"--{option}")
        raise UserError(said) from None
    for note in splits.notes:
        say.say(note)
    same = data == config.data or (
        Path(config.data).exists() and Path(data).expanduser().resolve() == Path(config.data).resolve()
    )
    if same and len(splits.test) > _tested(path):
        say.say(f"{data} is what the run was trained on: these figures are on its training images too.")
    test = splits.test
    return replace(test, framed=classifier.framing) if isinstance(test, ImageFiles) else test


def _tested(path: Path) -> int:
    """Return how many images a run was tested on."""
    record = path / "evaluation.json"
    return int(read_json(record).get("test_images", 0)) if record.exists() else 0


def _checks(on_bad: str, say: ProgressReporter) -> FileChecks:
    return FileChecks(
        on_bad="skip" if on_bad == "skip" else "error",
        workers=default_workers(None),
        cache=default_cache(),
        progress=say.counter("looking at every image"),
        writing=say.counter("writing images as files"),
        indexing=say.counter("indexing tar shards"),
    )
