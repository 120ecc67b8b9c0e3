"""Where images come from: a name or a file, as the user wrote it, to checked training and test sets."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from longtail.data.arrays import check_splits, load_arrays, pixel_statistics
from longtail.data.cifar import cifar_lt
from longtail.data.counts import PROFILES, check_imbalance, class_profile, long_tailed_indices
from longtail.data.digits import digits_lt
from longtail.data.image_set import DataSplits
from longtail.errors import UserError, unknown_name

DEFAULT_ROOT = ".data"
DEFAULT_IMBALANCE = 100.0


def _digits(imbalance: float, profile: str, root: str) -> DataSplits:
    return digits_lt(imbalance, profile)


def _cifar10(imbalance: float, profile: str, root: str) -> DataSplits:
    return cifar_lt(10, root, imbalance, profile)


def _cifar100(imbalance: float, profile: str, root: str) -> DataSplits:
    return cifar_lt(100, root, imbalance, profile)


# A new named source is one function (imbalance, profile, root) -> DataSplits and one line here.
_SOURCES: dict[str, Callable[[float, str, str], DataSplits]] = {
    "digits-lt": _digits,
    "cifar10-lt": _cifar10,
    "cifar100-lt": _cifar100,
}


def source_names() -> list[str]:
    """Return the data sets that ``load_data`` knows by name."""
    return sorted(_SOURCES)


def load_data(
    data: str,
    *,
    imbalance: float | None = None,
    profile: str = "exponential",
    root: str | None = None,
) -> DataSplits:
    """Return the training and test set that ``data`` names, checked.

    Args:
        data: a name (see ``source_names``) or the path of an ``.npz`` file (see ``load_arrays``).
        imbalance: largest over smallest training class, at least 1. None: 100 for the named sources, and a
            file's training set as it is. A file with another profile is cut: class c (in label order) keeps
            at most what the profile, with the largest class as n_max, gives it.
        profile: ``"exponential"`` or ``"step"``, the shape that ``imbalance`` asks for.
        root: folder of downloaded files, ``.data`` by default; ``digits-lt`` and files do not use it.

    Raises:
        UserError: no such name or file, unreadable content, or a bad option; the message says which.
    """
    if imbalance is not None:
        check_imbalance(imbalance)
    if profile not in PROFILES:
        raise unknown_name("profile", profile, PROFILES)
    if data in _SOURCES:
        load = _SOURCES[data]
        splits = load(DEFAULT_IMBALANCE if imbalance is None else imbalance, profile, root or DEFAULT_ROOT)
    else:
        splits = load_arrays(_array_file(data))
        if imbalance is not None:
            splits = _cut(splits, imbalance, profile)
    check_splits(splits)
    return splits


def _array_file(data: str) -> Path:
    path = Path(data).expanduser()
    accepted = f"give an .npz file or one of the names {', '.join(source_names())}."
    try:
        is_folder, is_file = bool(data) and path.is_dir(), path.is_file()
    except OSError as error:  # a name too long, a folder that may not be entered
        raise UserError(f"{data[:200]} cannot be looked at ({error.strerror}); {accepted}") from None
    if is_folder:
        raise UserError(f"{data} is a folder, and folders are not read; {accepted}")
    if is_file:
        if path.suffix.lower() != ".npz":
            raise UserError(f"{data} is not an .npz file; {accepted}")
        return path
    if "/" in data or os.sep in data or "." in data:
        raise UserError(f"no such file or folder: {data}; {accepted}")
    raise unknown_name("data", data, source_names())


def _cut(splits: DataSplits, imbalance: float, profile: str) -> DataSplits:
    """Cut the training set to a profile; one that already has it is left as it is, order included."""
    have = splits.train.class_counts.tolist()
    counts = class_profile(profile, have, len(have), imbalance)
    if counts == have:
        return splits
    train = splits.train.subset(long_tailed_indices(splits.train.labels, counts))
    mean, std = pixel_statistics(train.images)
    return replace(splits, train=train, mean=mean, std=std)
