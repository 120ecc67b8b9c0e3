"""Where images come from: a name, a folder or a file, as the user wrote it, to checked training and test sets."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from longtail.data.array_splits import array_duplicates, cut, fold_arrays
from longtail.data.arrays import check_splits, load_arrays
from longtail.data.cifar import cifar_lt
from longtail.data.counts import PROFILES, check_imbalance
from longtail.data.digits import digits_lt
from longtail.data.embedded import is_embedded, read_embedded
from longtail.data.feature_arrays import check_finished, holds_features
from longtail.data.feature_files import load_features, load_test_features
from longtail.data.feature_set import FeatureSet
from longtail.data.file_splits import FileChecks, label_known, split_files
from longtail.data.folder import read_folder
from longtail.data.hub_sets import HUB_SET
from longtail.data.image_set import DataSplits
from longtail.data.listing import Listing
from longtail.data.manifest import check_exists, read_manifest
from longtail.data.published import PUBLISHED, read_published
from longtail.data.split_list import read_split_list
from longtail.data.tar_shards import is_shards, read_shards
from longtail.data.validation import hold_out_validation
from longtail.errors import UserError, unknown_name
from longtail.option_groups import DataOptions

DEFAULT_ROOT = ".data"
DEFAULT_IMBALANCE = 100.0
_MANIFESTS = (".csv", ".tsv", ".parquet", ".pq")
_LISTS = (".txt", ".lst")


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


def is_named(data: str) -> bool:
    """Return whether ``data`` names a data set, here or on the hub, and no file or folder."""
    return data in source_names() or data.startswith(HUB_SET)


def source_names() -> list[str]:
    """Return the data sets that ``load_data`` knows by name."""
    return sorted([*_SOURCES, *PUBLISHED])


_OF_FILES = (
    "test_share path_column label_column split_column group_column group_pattern labels unknown_labels check".split()
)
"""Options of ``--source`` that arrays have no use for."""
_OF_FEATURES = ("test_share", "unknown_labels")
"""Those of them that features have a use for."""


def load_data(
    data: str,
    *,
    imbalance: float | None = None,
    root: str | None = None,
    folds: int | None = None,
    val_fraction: float = 0.0,
    source: DataOptions | None = None,
    checks: FileChecks | None = None,
) -> DataSplits:
    """Return the training and test set that ``data`` names, checked.

    Args:
        data: a name (see ``source_names``), a folder of images, tar shards (see ``read_shards``), a manifest (``.csv``,
            ``.tsv``, ``.parquet``), a split list (``.txt``), an ``.npz`` file of arrays (see ``load_arrays``), features
            (see ``load_features``), Parquet files that hold images, or ``hf:owner/name`` (see ``read_embedded``).
        imbalance: largest over smallest training class, at least 1. None: 100 for the long-tailed sets that are made
            here, and any other training set as it is. One with another profile is cut: the classes, from the largest
            down, keep at most what the profile gives them, with the largest class as n_max.
        root: folder that listed paths are relative to, or that holds a published data set (``.data`` by default).
        folds: deal all images out to this many parts, of which ``source.fold`` is the test set.
        val_fraction: share of each training class, after any cut, that becomes the validation set; 0 = none.
        source: how to read and split, see :class:`longtail.config.DataOptions`.
        checks: how image files are looked at before anything is trained.

    Raises:
        UserError: no such name or file, unreadable content, or a bad option; the message says which.
    """
    source = source or DataOptions()
    if imbalance is not None:
        check_imbalance(imbalance)
    if source.profile not in PROFILES:
        raise unknown_name("profile", source.profile, PROFILES)
    if data in _SOURCES:
        if folds is not None or source.test is not None:
            option = "--folds" if folds is not None else "--source.test"
            raise UserError(f"{data} has a test set of its own, which published figures are on; leave out {option}.")
        load = _SOURCES[data]
        wanted = DEFAULT_IMBALANCE if imbalance is None else imbalance
        splits = load(wanted, source.profile, root or DEFAULT_ROOT)
    elif is_features(data):
        splits = load_features(data, source)
        splits = splits if folds is None else fold_arrays(splits, folds, source)
        splits = replace(splits, notes=(*splits.notes, *_feature_notes(splits, root, folds, source, checks)))
        splits = splits if imbalance is None else cut(splits, imbalance, source.profile)
    else:
        listing = _listing(data, root, source, checks=checks)
        if listing is None:
            splits = load_arrays(Path(data).expanduser())
            splits = splits if folds is None else fold_arrays(splits, folds, source)
            notes = (*splits.notes, *_without_effect(root, source, checks), *array_duplicates(splits))
            splits = replace(splits, notes=notes)
        else:
            splits = split_files(listing, folds, source, checks or FileChecks())
        if data in PUBLISHED:
            splits = replace(splits, mean=PUBLISHED[data].mean, std=PUBLISHED[data].std)
        if imbalance is not None:
            splits = cut(splits, imbalance, source.profile)
    check_splits(splits)
    return hold_out_validation(splits, val_fraction, source) if val_fraction else splits


def is_features(data: str) -> bool:
    """Return whether ``data`` names a file, or a folder of shards, of features in place of images."""
    if data in _SOURCES or data in PUBLISHED or not data:
        return False
    try:
        return holds_features(Path(data).expanduser())
    except OSError:  # a name too long, a folder that may not be entered: told of by who opens it
        return False


def load_test_set(
    data: str,
    class_names: tuple[str, ...],
    *,
    root: str | None = None,
    source: DataOptions | None = None,
    checks: FileChecks | None = None,
) -> DataSplits:
    """Return labelled images, or features, to evaluate a model of ``class_names`` on, as the ``test`` of the result.

    That is the test set of ``data`` or, where it is not split, all of it. Classes of files and of features are matched
    by name.

    Raises:
        UserError: see :func:`load_data`; or the data has classes that the model does not know.
    """
    source = source or DataOptions()
    if is_features(data):
        splits = load_test_features(data, class_names, source.unknown_labels)
        notes = (*splits.notes, *_without_effect(root, source, checks, _OF_FEATURES))
        return replace(splits, notes=notes)
    listing = None if data in _SOURCES else _listing(data, root, source, training=False, checks=checks)
    if listing is None:
        return load_data(data, root=root, source=source)
    return label_known(listing, class_names, source, checks or FileChecks())


def list_files(data: str, root: str | None, source: DataOptions, checks: FileChecks | None = None) -> Listing | None:
    """Return what a source of image files lists, whether one can train on it or not; None for arrays.

    Files that are listed may be missing.

    Raises:
        UserError: there is nothing of that name, or it cannot be read.
    """
    arrays = data in _SOURCES or is_features(data)
    return None if arrays else _listing(data, root, source, False, False, checks)


def _listing(
    data: str,
    root: str | None,
    source: DataOptions,
    training: bool = True,
    exist: bool = True,
    checks: FileChecks | None = None,
) -> Listing | None:
    """Return what a source of image files lists; None for arrays.

    ``training`` says whether something is to be trained on it, so that it must hold training images; ``exist`` whether
    every file must be there.

    Raises:
        UserError: there is nothing of that name.
    """
    if data in PUBLISHED:
        return read_published(data, Path(root or DEFAULT_ROOT).expanduser(), exist and source.check == "full")
    if is_embedded(data, source.path_column):
        writing = None if checks is None else checks.writing
        return read_embedded(data, Path(root or DEFAULT_ROOT).expanduser(), source, training, writing)
    accepted = (
        "give a folder of images or of tar shards, a manifest (.csv, .parquet), a split list (.txt), arrays (.npz), "
        "features (.safetensors, as longtail embed writes them), hf:owner/name or one of the names "
        f"{', '.join(source_names())}."
    )
    path = Path(data).expanduser()
    if is_shards(data):
        looks = checks or FileChecks()
        return read_shards(data, source, training, looks.workers, looks.cache, looks.indexing)
    at, test = Path(root).expanduser() if root else None, Path(source.test).expanduser() if source.test else None
    ending = path.suffix.lower()
    try:
        is_folder, is_file = bool(data) and path.is_dir(), path.is_file()
    except OSError as error:  # a name too long, a folder that may not be entered
        raise UserError(f"{data[:200]} cannot be looked at ({error.strerror}); {accepted}") from None
    if data and not is_file:
        check_finished(path)
    if is_folder:
        return read_folder(path, data, test, training)
    if not is_file:
        if "/" in data or os.sep in data or "." in data:
            raise UserError(f"no such file or folder: {data}; {accepted}")
        unknown = unknown_name("data", data, source_names())
        raise UserError(f"{unknown} There is no file or folder of that name either.")
    if ending in _MANIFESTS:
        columns = {
            name: getattr(source, name) for name in ("path_column", "label_column", "split_column", "group_column")
        }
        listing = read_manifest(path, data, root=at, test=test, training=training, **columns)
    elif ending in _LISTS:
        listing = read_split_list(path, data, root=at, test=test, cache=None if checks is None else checks.cache)
    elif ending == ".npz":
        if test is not None:
            raise UserError("an .npz file holds its own test_images; leave out --source.test.")
        return None
    else:
        raise UserError(f"{data} is not of a kind that is read; {accepted}")
    if exist and source.check == "full":  # a sample finds missing files among those that it opens
        check_exists(listing)
    return listing


def _without_effect(
    root: str | None, source: DataOptions, checks: FileChecks | None, with_effect: Sequence[str] = ()
) -> list[str]:
    """Return a sentence that names the options that are given and speak of files, which arrays are not."""
    usual = DataOptions()
    silent = [name for name in _OF_FILES if name not in with_effect]
    given = [f"--source.{name}" for name in silent if getattr(source, name) != getattr(usual, name)]
    skips = checks is not None and checks.on_bad == "skip"
    given = [*(["--root"] if root is not None else []), *(["--on_bad_image"] if skips else []), *given]
    return [f"arrays have no files, paths or columns: without effect are {', '.join(given)}."] if given else []


def _feature_notes(
    splits: DataSplits, root: str | None, folds: int | None, source: DataOptions, checks: FileChecks | None
) -> list[str]:
    """Return sentences on options without effect and on equal rows."""
    notes = _without_effect(root, source, checks, _OF_FEATURES)
    told = any("--source.test_share" in note for note in splits.notes)
    if folds is not None and not told and source.test_share != DataOptions().test_share:
        notes.append("--folds deals all rows out: without effect is --source.test_share.")
    # An embedding has looked at the images themselves, and what it found is among its notes.
    assert isinstance(splits.train, FeatureSet)
    looked_at = splits.train.origin is not None and source.test is None
    return notes if looked_at else [*notes, *array_duplicates(splits)]
