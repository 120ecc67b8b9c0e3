"""Files of features: what ``longtail embed`` writes, and arrays of one's own.

A ``.safetensors`` or ``.npz`` file holds ``train_features`` (floats ``[N, D]`` or, with V views of each image,
``[N, V, D]``) and ``train_labels`` (integers ``[N]``), and ``test_features`` and ``test_labels`` likewise; or
``features`` and ``labels`` alone, of which a test set is then held out. ``class_names`` lie in an ``.npz`` beside them,
or in the ``.json`` that ``longtail embed`` writes beside its file.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longtail.data.arrays import check_splits
from longtail.data.feature_set import (
    STORED,
    FeatureOrigin,
    FeatureSet,
    feature_keys,
    feature_statistics,
)
from longtail.data.image_set import DataSplits, Framing, PathTable
from longtail.data.keyed import derive_seed
from longtail.data.splits import hold_out
from longtail.errors import UserError
from longtail.files import load_meta, load_tensors
from longtail.option_groups import DataOptions

PARTS = ("train", "test")
INDEX = "features.json"
"""The file by which a folder of shards is known."""


def shards_of(path: Path) -> Path:
    """Return the folder in which shards lie until the file ``path`` is made of them."""
    return path.with_name(f"{path.name}.parts")


def holds_features(path: Path) -> bool:
    """Return whether ``path`` is a file or folder of features, by its ending or by the arrays that it holds."""
    if path.is_dir():
        return (path / INDEX).is_file()
    if path.suffix.lower() == ".safetensors":
        return path.is_file()
    if path.suffix.lower() != ".npz" or not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return bool({"train_features.npy", "features.npy"} & set(archive.namelist()))
    except (zipfile.BadZipFile, OSError):  # told of by who reads it as arrays
        return False


def load_features(path: str | Path, source: DataOptions) -> DataSplits:
    """Return the training and the test set of a file, or of a folder of shards (see the module's head).

    Mean and standard deviation are those of the training features, component by component.

    Raises:
        UserError: the file or an array in it is not as described; the message names both.
    """
    path = Path(path).expanduser()
    tensors, meta = _read(path)
    if "train_features" not in tensors and "features" in tensors:
        tensors = _dealt(path, tensors, source)
        test_split = f"held out: about {100 * source.test_share:g} % of each class, seed {source.split_seed}"
    else:
        test_split = str(meta.get("test_split", "given"))
    train, test = (_checked(path, tensors, part) for part in PARTS)
    names = _class_names(path, meta, train[1])
    for part, (features, labels) in zip(PARTS, (train, test), strict=True):
        if features.shape[2] != train[0].shape[2]:
            raise UserError(
                f"{path}: 'train_features' have width {train[0].shape[2]}, but '{part}_features' {features.shape[2]}; "
                "one encoder must have made both."
            )
        if int(labels.max()) >= len(names):
            raise UserError(
                f"{path}: '{part}_labels' holds label {int(labels.max())}, but there are {len(names)} classes "
                f"(0..{len(names) - 1})."
            )
    origin = _origin(path, meta)
    sets = [
        FeatureSet(features, labels, names, _paths(tensors, part), origin)
        for part, (features, labels) in zip(PARTS, (train, test), strict=True)
    ]
    mean, std = feature_statistics(sets[0].features)
    notes = tuple(str(note) for note in meta.get("notes", ()))
    splits = DataSplits(str(path), sets[0], sets[1], mean, std, STORED, test_split, notes)
    check_splits(splits)
    return splits


def _dealt(path: Path, tensors: dict[str, Tensor], source: DataOptions) -> dict[str, Tensor]:
    """Hold a test set out of features that are not split; which ones hangs on the features themselves."""
    features, labels = _checked(path, {f"train_{name}": tensors[name] for name in tensors}, "train")
    seed = derive_seed(source.split_seed, "test")
    is_test = hold_out(labels, feature_keys(features), source.test_share, seed)
    dealt: dict[str, Tensor] = {}
    for part, chosen in (("train", ~is_test), ("test", is_test)):
        dealt |= {f"{part}_features": features[chosen], f"{part}_labels": labels[chosen]}
    return dealt


def _checked(path: Path, tensors: dict[str, Tensor], part: str) -> tuple[Tensor, Tensor]:
    """Return the checked features ``[N, V, D]`` and labels ``[N]`` of one part."""
    for name in (f"{part}_features", f"{part}_labels"):
        if name not in tensors:
            found = ", ".join(sorted(tensors)) or "nothing"
            raise UserError(f"{path}: array {name!r} is missing; found: {found}.")
    features, labels = tensors[f"{part}_features"], tensors[f"{part}_labels"]
    name = f"{part}_features"
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
                f"{path}: {name!r} holds a value that is not finite in row {start + int(bad[0])}; embed that image "
                "again, or leave the row out."
            )
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.ndim not in (1, 2) or labels.numel() == 0:
        raise UserError(
            f"{path}: '{part}_labels' is {str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}, but labels "
            "are integers 0..C-1, one a row."
        )
    labels = labels.reshape(-1).long()
    if len(labels) != len(features):
        raise UserError(f"{path}: {len(features)} rows in {name!r} but {len(labels)} '{part}_labels'.")
    if int(labels.min()) < 0:
        raise UserError(f"{path}: '{part}_labels' holds the negative label {int(labels.min())}; labels are 0..C-1.")
    return features, labels


def feature_rows(path: str | Path) -> Tensor:
    """Return the features ``[N, D]`` of a file to be predicted on: its array ``features``, or else ``test_features``.

    Of several views it is the first.

    Raises:
        UserError: there are none, or a value is not finite.
    """
    path = Path(path).expanduser()
    tensors, _ = _read(path)
    name = next((name for name in ("features", "test_features") if name in tensors), None)
    if name is None:
        raise UserError(f"{path} holds no array 'features'; found: {', '.join(sorted(tensors)) or 'nothing'}.")
    unlabelled = torch.zeros(len(tensors[name]), dtype=torch.int64)
    part = name.removesuffix("features").rstrip("_") or "new"
    return _checked(path, {f"{part}_features": tensors[name], f"{part}_labels": unlabelled}, part)[0][:, 0].float()


def _class_names(path: Path, meta: dict[str, Any], labels: Tensor) -> tuple[str, ...]:
    names = meta.get("class_names")
    if names is not None:
        return tuple(str(name) for name in names)
    present = torch.unique(labels)
    if len(present) <= int(present[-1]):
        missing = next(i for i, label in enumerate([*present.tolist(), -1]) if i != label)
        raise UserError(
            f"{path}: class {missing} has no training row, though 'train_labels' goes up to {int(present[-1])}; number "
            "the labels from 0 without gaps."
        )
    return tuple(map(str, range(int(present[-1]) + 1)))


def _paths(tensors: dict[str, Tensor], part: str) -> PathTable | None:
    stored = tensors.get(f"{part}_paths")
    if stored is None:
        return None
    text = stored.numpy().tobytes().decode("utf-8", "surrogateescape")
    return PathTable(text.split("\0")) if text else None


def packed_paths(paths: PathTable) -> Tensor:
    """Return the paths as one uint8 tensor, parted by zeros, which no path holds."""
    data = b"\0".join(paths[i].encode("utf-8", "surrogateescape") for i in range(len(paths)))
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())


def origin_record(origin: FeatureOrigin) -> dict[str, Any]:
    """Return the record of an encoder, JSON-able; its file by name alone, as it lies beside the record."""
    return asdict(origin) | {"file": None if origin.file is None else origin.file.name}


def read_origin(record: Any, folder: Path) -> FeatureOrigin:
    """Return the encoder of a record that lies in ``folder``; ``file`` is None where it is not there any more.

    Raises:
        KeyError, TypeError, ValueError: it is no such record.
    """
    framing = record["framing"]
    height, width = (int(side) for side in framing["size"])
    file = None if record["file"] is None else folder / str(record["file"])
    return FeatureOrigin(
        encoder=str(record["encoder"]),
        in_channels=int(record["in_channels"]),
        mean=tuple(map(float, record["mean"])),
        std=tuple(map(float, record["std"])),
        framing=Framing((height, width), int(framing["resize"]), framing["interpolation"]),
        weights=str(record["weights"]),
        file=file if file is not None and file.is_file() else None,
        digest=None if record.get("digest") is None else str(record["digest"]),
    )


def origin_of(path: str | Path) -> FeatureOrigin | None:
    """Return the encoder that a file or folder of features says it is of; None if it does not say.

    Raises:
        UserError: its record cannot be read.
    """
    path = Path(path).expanduser()
    folder, stem = (path, INDEX.removesuffix(".json")) if path.is_dir() else (path.parent, path.stem)
    if path.suffix.lower() == ".npz" or not (folder / f"{stem}.json").is_file():
        return None
    return _origin(path, load_meta(folder, stem))


def _origin(path: Path, meta: dict[str, Any]) -> FeatureOrigin | None:
    if meta.get("origin") is None:
        return None
    try:
        return read_origin(meta["origin"], path if path.is_dir() else path.parent)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: the record of its encoder cannot be read ({error!r}); embed the images again."
        ) from None


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the arrays of a file or a folder of shards, and what its record says."""
    if path.is_dir():
        return _read_shards(path)
    if path.suffix.lower() == ".npz":
        return _read_npz(path)
    if path.with_suffix(".json").exists():
        return load_tensors(path.parent, path.stem)
    if shards_of(path).is_dir():  # the record is written last
        raise UserError(
            f"{path} is unfinished: its shards lie in {shards_of(path)}; give the longtail embed that began it once "
            "more, which goes on."
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            meta = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({str(error)[:120]}); write it again.") from None
    names = meta.get("class_names")
    return tensors, {} if names is None else {"class_names": json.loads(names)}


def _read_shards(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    meta = load_meta(path, INDEX.removesuffix(".json"))
    shards: dict[str, list[Tensor]] = {}
    for stem in meta["shards"]:
        tensors, record = load_tensors(path, str(stem))
        for name in ("features", "labels", "paths"):
            if name in tensors:
                shards.setdefault(f"{record['part']}_{name}", []).append(tensors[name])
    zero = torch.zeros(1, dtype=torch.uint8)
    joined = {}
    for name, parts in shards.items():
        if name.endswith("_paths"):
            parts = [piece for part in parts for piece in (zero, part)][1:]
        joined[name] = torch.cat(parts)
    return joined, meta


def _read_npz(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    damaged = UserError(f"{path}: not an .npz archive, or cut off; write it again with numpy.savez.")
    tensors: dict[str, Tensor] = {}
    meta: dict[str, Any] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                part, _, kind = name.rpartition("_")
                if name == "class_names":
                    meta["class_names"] = [str(entry) for entry in archive[name]]
                elif kind in ("features", "labels") and part in ("", *PARTS):
                    array = archive[name]
                    if array.dtype.kind not in "fiu":
                        raise UserError(f"{path}: {name!r} is {array.dtype}; features are floats, labels integers.")
                    array = array.astype(np.float32) if array.dtype == np.float64 else array
                    array = array.astype(np.int64) if array.dtype.kind in "iu" else array
                    tensors[name] = torch.from_numpy(np.ascontiguousarray(array))
    except UserError:
        raise
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        raise damaged from None
    return tensors, meta


def with_statistics(splits: DataSplits) -> DataSplits:
    """Return ``splits`` with mean and deviation of the training features that they hold now."""
    assert isinstance(splits.train, FeatureSet)
    mean, std = feature_statistics(splits.train.features, splits.train.weights)
    return replace(splits, mean=mean, std=std)
