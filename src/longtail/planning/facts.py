"""The data of a run that is only planned: published sets by their numbers, others by what is given or read."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from longtail.config import TrainConfig
from longtail.data import DataSplits, FeatureSet, ImageFiles, ImageSet
from longtail.data.counts import class_profile
from longtail.data.path_table import PathTable
from longtail.data.published import PUBLISHED
from longtail.errors import UserError
from longtail.training.progress import ProgressReporter
from longtail.training.run_data import read_splits

_CIFAR = {"cifar10-lt": (10, 5000), "cifar100-lt": (100, 500)}
_SMALLEST = {"imagenet-lt": 5, "inaturalist2018": 2, "places-lt": 5}
_USUAL_IMBALANCE = 100.0
_PHOTO_SIDE = 400


def planned_splits(
    config: TrainConfig, images: int | None, classes: int | None, say: ProgressReporter
) -> tuple[DataSplits, str]:
    """Return splits that have the sizes of the data and no pixels, and a sentence that says where the sizes are from.

    Args:
        config: names the data, unless counts are given.
        images, classes: training images and classes; give both, or neither.
        say: tells of what is read.

    Raises:
        UserError: nothing says what the data is, or it is not of images with a class each.
    """
    if (images is None) != (classes is None):
        raise UserError("--images and --classes go together; give both.")
    if images is not None and classes is not None:
        if not 2 <= classes <= images:
            raise UserError(f"--classes must be from 2 to the number of images ({images}), got {classes}.")
        counts = tail_counts(images, classes, 1)
        return _photos("data", counts), f"{images} photographs in {classes} classes, as given; {_TAIL}."
    name = config.data
    if not name:
        raise UserError(
            "no data given: name a data set (such as imagenet-lt) or a path, or give --images and --classes."
        )
    if name in PUBLISHED:
        known = PUBLISHED[name]
        counts = tail_counts(known.train_images, known.num_classes, _SMALLEST[name])
        return _photos(name, counts), f"the numbers of images and classes are those of {known.title}; {_TAIL}."
    if name in _CIFAR:
        number, largest = _CIFAR[name]
        imbalance = config.imbalance or _USUAL_IMBALANCE
        made = torch.tensor(class_profile(config.source.profile, largest, number, imbalance))
        pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8).expand(int(made.sum()), 3, 32, 32)
        labels = torch.repeat_interleave(torch.arange(number), made)
        train = ImageSet(pixels, labels, _names(number))
        return _splits(name, train, "cifar"), f"class counts are those of {name} at imbalance {imbalance:g}."
    splits = read_splits(config, say)
    if isinstance(splits.train, FeatureSet):
        raise UserError(f"{name} holds features: heads on them train in seconds, and need no plan.")
    return splits, f"{name} was read."


_TAIL = "how they fall on the classes (an exponential tail) moves neither time nor memory"


def tail_counts(images: int, classes: int, smallest: int) -> Tensor:
    """Return class counts int64 ``[classes]`` that fall exponentially, sum to ``images`` and end at ``smallest``."""
    smallest = max(1, min(smallest, images // classes))
    places = torch.linspace(0, 1, classes, dtype=torch.float64)

    def tail(ratio: float) -> Tensor:
        return (smallest * ratio ** (1 - places)).floor().long()

    low, high = 1.0, float(images)
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if int(tail(middle).sum()) <= images else (low, middle)
    counts = tail(low)
    counts[0] += images - int(counts.sum())
    return counts


def _photos(name: str, counts: Tensor) -> DataSplits:
    images, classes = int(counts.sum()), len(counts)
    labels = torch.repeat_interleave(torch.arange(classes), counts)
    sizes = torch.full((images, 2), _PHOTO_SIDE, dtype=torch.int32)
    paths = PathTable([""] * images)
    train = ImageFiles(Path(), paths, labels, _names(classes), sizes, torch.zeros(images, dtype=torch.int64))
    return _splits(name, train, "")


def _splits(name: str, train: ImageFiles | ImageSet, views: str) -> DataSplits:
    known = () if isinstance(train, ImageFiles) else (0.5,) * train.channels
    return DataSplits(name, train, train, known, known, views)


def _names(classes: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(classes))
