"""What a finished run said of images that it had not seen: its test images or, over folds, all images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from longtail.config import replace_options
from longtail.data import ImageFiles, ImageSet, LabelledImages
from longtail.data.sources import is_named
from longtail.data.survey import array_digest
from longtail.errors import UserError
from longtail.files import load_tensors, read_json
from longtail.models import Classifier
from longtail.options import make_config, parse_values
from longtail.training.devices import pick_device
from longtail.training.evaluation import PREDICTIONS, collect_logits
from longtail.training.folds import fold_folders
from longtail.training.progress import ProgressReporter
from longtail.training.run_data import frame_for_run, read_splits
from longtail.training.run_folder import read_config


@dataclass(frozen=True)
class HeldOut:
    """Predictions for N images by models that had not seen them.

    Attributes:
        keys: by which an image is known again: where its file lies, or a hash of its pixels (:func:`image_keys`).
        logits: float32 ``[N, C]``.
        labels: int64 ``[N]``, as the run had them.
        class_names: of the run.
        folds: over how many folds; None if these are the run's test images alone.
    """

    keys: list[str]
    logits: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    folds: int | None


def image_keys(images: LabelledImages) -> list[str]:
    """Return for each image the place of its file, or for arrays a hash of its pixels and its label."""
    if isinstance(images, ImageFiles):
        return [str(Path(images.path(index)).absolute()) for index in range(len(images))]
    if not isinstance(images, ImageSet):
        raise UserError("that run was trained on features, by which no image can be known again; name a run on images.")
    return [
        f"{array_digest(pixels)} {label}" for pixels, label in zip(images.images, images.labels.tolist(), strict=True)
    ]


def held_out(run: Path, data: str, root: str | None, say: ProgressReporter) -> HeldOut:
    """Return what the finished run in ``run`` says of its held-out images; over folds, of the first deal.

    Args:
        run: the run's folder.
        data, root: the images, where they are not any more where the run says (its paths may be relative).
        say: where progress goes.

    Raises:
        UserError: no finished run, or its data is not there or not what it was.
    """
    config = make_config(parse_values(read_config(run), f"{run / 'config.yaml'}"))
    over_folds = config.folds is not None and config.source.fold is None
    folders = fold_folders(run, config)[: config.folds] if over_folds else [run]
    parts = [_of_run(folder, data, root, say) for folder in folders]
    return HeldOut(
        keys=[key for keys, _, _ in parts for key in keys],
        logits=torch.cat([logits for _, logits, _ in parts]),
        labels=torch.cat([images.labels for _, _, images in parts]),
        class_names=parts[0][2].class_names,
        folds=config.folds if over_folds else None,
    )


def _of_run(
    folder: Path, data: str, root: str | None, say: ProgressReporter
) -> tuple[list[str], Tensor, LabelledImages]:
    """Return keys, logits and labelled images of one run's test set."""
    if not (folder / "evaluation.json").exists():
        raise UserError(f"{folder} is not a finished run; name one by --run, or finish it with --resume.")
    config = make_config(parse_values(read_config(folder), f"{folder / 'config.yaml'}"))
    if not is_named(config.data) and not Path(config.data).expanduser().exists():
        config = replace_options(config, {"data": data, "root": root})
    splits = read_splits(config, say)
    test, keys = splits.test, image_keys(splits.test)
    changed = UserError(
        f"{config.data} is not what the run in {folder} was trained and tested on; restore it, or name another run."
    )
    record = read_json(folder / "data.json")
    trained = record.get("train_fingerprint")  # older runs have none
    if trained not in (None, splits.train.fingerprint()) or record["test_images"] != len(test):
        raise changed
    if (folder / "predictions.json").exists():
        tensors, _ = load_tensors(folder, PREDICTIONS)
        if not torch.equal(tensors["labels"], test.labels):
            raise changed
        if "logits" in tensors:  # not kept where they are large
            return keys, tensors["logits"], test
    classifier = Classifier.load(folder)
    if classifier.class_names != test.class_names:
        raise changed
    empty = splits.train.subset(torch.empty(0, dtype=torch.int64))
    framed = frame_for_run(config, replace(splits, train=empty, mean=(0.0,), std=(1.0,)), say).test
    return keys, collect_logits(classifier, framed, pick_device("auto"), config.loading.workers), test
