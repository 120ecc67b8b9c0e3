"""Files of features: what ``longtail embed`` writes, and arrays of one's own.

A ``.safetensors`` or ``.npz`` file holds ``train_features`` (floats ``[N, D]`` or, with V views of each image,
``[N, V, D]``) and ``train_labels`` (integers ``[N]``), and ``test_features`` and ``test_labels`` likewise. The training
rows may also be called ``features`` and ``labels``; without a test set, one is held out of these. ``class_names`` lie
in an ``.npz`` beside them, in the metadata of a ``.safetensors`` as a JSON list, or in the ``.json`` that ``longtail
embed`` writes beside its file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtail.data.arrays import check_splits
from longtail.data.feature_arrays import holds_features, read_arrays
from longtail.data.feature_origin import origin_in
from longtail.data.feature_set import (
    STORED,
    FeatureSet,
    feature_keys,
    feature_statistics,
)
from longtail.data.image_set import DataSplits
from longtail.data.keyed import derive_seed
from longtail.data.path_table import PathTable
from longtail.data.splits import hold_out, tie_duplicates
from longtail.errors import UserError, counted
from longtail.option_groups import DataOptions


def load_features(path: str | Path, source: DataOptions) -> DataSplits:
    """Return the training and the test set of a file, or of a folder of shards (see the module's head).

    Mean and standard deviation are those of the training features, component by component. ``source.test`` names a
    second file of features to test on (see :func:`load_test_features`), where the first holds no test set.

    Raises:
        UserError: the file or an array in it is not as described; the message names both.
    """
    path = Path(path).expanduser()
    tensors, meta = read_arrays(path)
    unsplit = "features" in tensors and "train_features" not in tensors
    prefix = "" if unsplit else "train_"
    features, labels = _checked(path, tensors, prefix)
    names = _class_names(path, meta, f"{prefix}labels", labels)
    train = FeatureSet(features, labels, names, _paths(tensors, prefix), origin_in(path, meta))
    has_test = not tensors.keys().isdisjoint({"test_features", "test_labels"})
    notes, test_split = [str(note) for note in meta.get("notes", ())], "given"
    if source.test is not None:
        if has_test:
            raise UserError(f"{path} holds its own test_features; leave out --source.test.")
        other = _second(path, source, names)
        test, words = other.test, f"the features of {source.test}"
        notes += other.notes
    elif unsplit and not has_test:
        is_test = _chosen_to_test(train, source)
        train, test = (train.subset(rows.nonzero().squeeze(1)) for rows in (~is_test, is_test))
        words = "'features'"
        test_split = f"held out: about {100 * source.test_share:g} % of each class, seed {source.split_seed}"
    else:
        features, labels = _checked(path, tensors, "test_")
        _check_known(path, "test_labels", labels, names)
        test, words = FeatureSet(features, labels, names, _paths(tensors, "test_"), train.origin), "'test_features'"
        test_split = str(meta.get("test_split", "given"))
    tensors.clear()
    assert isinstance(test, FeatureSet)
    if test.channels != train.channels:
        raise UserError(
            f"{path}: '{prefix}features' have width {train.channels}, but {words} {test.channels}; one encoder must "
            "have made both."
        )
    if (has_test or source.test is not None) and source.test_share != DataOptions().test_share:
        notes.append("the test set is given: without effect is --source.test_share.")
    mean, std = feature_statistics(train.features)
    splits = DataSplits(str(path), train, test, mean, std, STORED, test_split, tuple(notes))
    check_splits(splits)
    return splits


def load_test_features(
    path: str | Path, class_names: tuple[str, ...], unknown_labels: str = "error", option: str = "--unknown_labels"
) -> DataSplits:
    """Return labelled features to evaluate a model of ``class_names`` on, as the ``test`` of the result.

    They are ``test_features`` or else ``features``, all of them. Classes are matched by name; the labels of a file that
    names none are the model's classes of that name, or of that position where a name of the model is no number.

    Args:
        path: the file, or a folder of shards.
        class_names: of the model.
        unknown_labels: ``"error"`` or ``"skip"``, for rows of classes that the model does not know.
        option: by which the user says so.

    Raises:
        UserError: the file or an array in it is not as described, or has classes that the model does not know.
    """
    path = Path(path).expanduser()
    tensors, meta = read_arrays(path)
    prefix = "" if "features" in tensors and "test_features" not in tensors else "test_"
    features, labels = _checked(path, tensors, prefix)
    own = meta.get("class_names")
    if own is not None:
        _check_known(path, f"{prefix}labels", labels, own)
    by_place = own is None and not all(name.isdecimal() for name in class_names)
    number = {str(place) if by_place else name: place for place, name in enumerate(class_names)}
    present, which = torch.unique(labels, return_inverse=True)
    texts = [str(label) if own is None else own[label] for label in present.tolist()]
    mapped = torch.tensor([number.get(text, -1) for text in texts])[which]
    unknown = [text for text in texts if text not in number]
    if len(unknown) == len(texts):
        raise UserError(
            f"{path} has no row of the model's classes: it has {unknown[0]!r} and the like, the model "
            f"{class_names[0]!r} and the like."
        )
    test = FeatureSet(features, mapped, class_names, _paths(tensors, prefix), origin_in(path, meta))
    notes: tuple[str, ...] = ()
    if unknown:
        classes, rows = counted(len(unknown), "class", "classes"), counted(int((mapped < 0).sum()), "row")
        if unknown_labels == "error":
            raise UserError(
                f"{path} has {classes} that the model does not know (first {unknown[0]!r}; {rows}); add {option} skip "
                "to leave them out."
            )
        notes = (f"{rows} of {classes} that the model does not know left out, first {unknown[0]!r}.",)
        test = test.subset((mapped >= 0).nonzero().squeeze(1))
    return DataSplits(str(path), test.subset(torch.empty(0, dtype=torch.int64)), test, (), (), STORED, notes=notes)


def _second(path: Path, source: DataOptions, names: tuple[str, ...]) -> DataSplits:
    """Return what ``source.test`` names, for a training set that lies in ``path``."""
    second = Path(str(source.test)).expanduser()
    if not holds_features(second):
        raise UserError(
            f"--source.test {source.test} is no file of features, as {path} is; embed its images with the same encoder."
        )
    return load_test_features(second, names, source.unknown_labels, "--source.unknown_labels")


def _chosen_to_test(whole: FeatureSet, source: DataOptions) -> Tensor:
    """Return which rows to hold out, bool ``[N]``; it hangs on the features themselves, and equal ones are together."""
    keys = feature_keys(whole.features)
    seed = derive_seed(source.split_seed, "test")
    return hold_out(whole.labels, keys, source.test_share, seed, tie_duplicates(None, keys))


def _checked(path: Path, tensors: dict[str, Tensor], prefix: str) -> tuple[Tensor, Tensor]:
    """Return the checked features ``[N, V, D]`` and labels ``[N]`` whose arrays' names begin with ``prefix``."""
    for name in (f"{prefix}features", f"{prefix}labels"):
        if name not in tensors:
            found = ", ".join(sorted(tensors)) or "nothing"
            raise UserError(f"{path}: array {name!r} is missing; found: {found}.")
    features = _features(path, f"{prefix}features", tensors[f"{prefix}features"])
    name, labels = f"{prefix}labels", tensors[f"{prefix}labels"]
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.ndim not in (1, 2) or labels.numel() == 0:
        raise UserError(
            f"{path}: {name!r} is {str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}, but labels are "
            "integers 0..C-1, one a row."
        )
    labels = labels.reshape(-1).long()
    if len(labels) != len(features):
        raise UserError(f"{path}: {len(features)} rows in '{prefix}features' but {len(labels)} {name!r}.")
    if int(labels.min()) < 0:
        raise UserError(f"{path}: {name!r} holds the negative label {int(labels.min())}; labels are 0..C-1.")
    return features, labels


def _features(path: Path, name: str, features: Tensor) -> Tensor:
    """Return checked features ``[N, V, D]``, float32 or float16."""
    if not features.is_floating_point() or features.ndim not in (2, 3) or features.numel() == 0:
        raise UserError(
            f"{path}: {name!r} is {str(features.dtype).removeprefix('torch.')} {list(features.shape)}, but features "
            "are floating point [N, D] or [N, views, D] and not empty."
        )
    features = features[:, None] if features.ndim == 2 else features
    features = features if features.dtype == torch.float16 else features.float()
    for block, start in zip(torch.split(features, 65536), range(0, len(features), 65536), strict=True):
        bad = (~torch.isfinite(block)).flatten(1).any(1).nonzero()
        if len(bad):
            raise UserError(
                f"{path}: {name!r} holds a value that is not finite, or beyond float32, in row {start + int(bad[0])}; "
                "embed that image again, or leave the row out."
            )
    return features


def feature_rows(path: str | Path) -> Tensor:
    """Return the features ``[N, D]`` of a file to be predicted on: its array ``features``, or else ``test_features``.

    Of several views it is the first.

    Raises:
        UserError: there are none, or a value is not finite.
    """
    path = Path(path).expanduser()
    tensors, _ = read_arrays(path)
    name = next((name for name in ("features", "test_features") if name in tensors), None)
    if name is None:
        raise UserError(f"{path} holds no array 'features'; found: {', '.join(sorted(tensors)) or 'nothing'}.")
    return _features(path, name, tensors[name])[:, 0].float()


def _class_names(path: Path, meta: dict[str, Any], name: str, labels: Tensor) -> tuple[str, ...]:
    """Return the file's class names, or the numbers that its training labels ``name`` hold."""
    names: tuple[str, ...] | None = meta.get("class_names")
    if names is not None:
        _check_known(path, name, labels, names)
        return names
    present = torch.unique(labels)
    if len(present) <= int(present[-1]):
        missing = next(i for i, label in enumerate([*present.tolist(), -1]) if i != label)
        raise UserError(
            f"{path}: class {missing} has no training row, though {name!r} goes up to {int(present[-1])}; number "
            "the labels from 0 without gaps."
        )
    return tuple(map(str, range(int(present[-1]) + 1)))


def _check_known(path: Path, name: str, labels: Tensor, names: tuple[str, ...]) -> None:
    if int(labels.max()) >= len(names):
        raise UserError(
            f"{path}: {name!r} holds label {int(labels.max())}, but there are {len(names)} classes "
            f"(0..{len(names) - 1})."
        )


def _paths(tensors: dict[str, Tensor], prefix: str) -> PathTable | None:
    stored = tensors.get(f"{prefix}paths")
    if stored is None:
        return None
    text = stored.numpy().tobytes().decode("utf-8", "surrogateescape")
    return PathTable(text.split("\0")) if text else None


def with_statistics(splits: DataSplits) -> DataSplits:
    """Return ``splits`` with mean and deviation of the training features that they hold now."""
    assert isinstance(splits.train, FeatureSet)
    mean, std = feature_statistics(splits.train.features, splits.train.weights)
    return replace(splits, mean=mean, std=std)
