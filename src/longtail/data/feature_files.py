"""Files of features: what ``longtail embed`` writes, and arrays of one's own.

A ``.safetensors`` or ``.npz`` file holds ``train_features`` (floats ``[N, D]`` or, with V views of each image,
``[N, V, D]``) and ``train_labels`` (integers ``[N]``), and ``test_features`` and ``test_labels`` likewise. The training
rows may also be called ``features`` and ``labels``; without a test set, one is held out of these. ``class_names`` lie
in an ``.npz`` beside them, in the metadata of a ``.safetensors`` as a JSON list, or in the ``.json`` that ``longtail
embed`` writes beside its file.
"""

from __future__ import annotations

import json
import unicodedata
import zipfile
import zlib
from collections import Counter
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
from longtail.data.splits import hold_out, tie_duplicates
from longtail.errors import UserError, counted
from longtail.files import load_meta, load_tensors
from longtail.option_groups import DataOptions

PARTS = ("train", "test")
INDEX = "features.json"
"""The file by which a folder of shards is known."""
_PLAN = "plan.json"
"""The file that is there from an embedding's first shard on."""


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
            return bool({"train_features.npy", "features.npy", "test_features.npy"} & set(archive.namelist()))
    except (zipfile.BadZipFile, OSError):  # told of by who reads it as arrays
        return False


def check_finished(path: Path) -> None:
    """Raise ``UserError`` if ``path`` is, or would become, what an embedding that was cut off has made so far."""
    shards = path if path.is_dir() else path.with_name(f"{path.name}.parts")
    if _is_ours(shards / _PLAN) and not (shards / INDEX).exists():
        raise UserError(
            f"{shards} holds features of an embedding that was cut off; give the same longtail embed command again, "
            "which goes on where it stopped, then train."
        )


def load_features(path: str | Path, source: DataOptions) -> DataSplits:
    """Return the training and the test set of a file, or of a folder of shards (see the module's head).

    Mean and standard deviation are those of the training features, component by component. ``source.test`` names a
    second file of features to test on (see :func:`load_test_features`), where the first holds no test set.

    Raises:
        UserError: the file or an array in it is not as described; the message names both.
    """
    path = Path(path).expanduser()
    tensors, meta = _read(path)
    unsplit = "features" in tensors and "train_features" not in tensors
    prefix = "" if unsplit else "train_"
    features, labels = _checked(path, tensors, prefix)
    names = _class_names(path, meta, f"{prefix}labels", labels)
    train = FeatureSet(features, labels, names, _paths(tensors, prefix), _origin(path, meta))
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
    tensors, meta = _read(path)
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
    test = FeatureSet(features, mapped, class_names, _paths(tensors, prefix), _origin(path, meta))
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
    tensors, _ = _read(path)
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


def _as_names(path: Path, stored: Any) -> tuple[str, ...]:
    """Return class names as they are stored in an array or in JSON."""
    names = stored.tolist() if isinstance(stored, np.ndarray) else stored
    if not isinstance(names, list) or not all(type(name) in (str, bytes, int) for name in names):
        raise UserError(f"{path}: 'class_names' is no list of strings, one a class, in the order of the labels.")
    names = [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{path}: 'class_names' names {name!r} twice; give every class a name of its own.")
        # No more than of folders, whose features are read here: control characters, halves of characters no file holds.
        if any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name):
            raise UserError(f"{path}: 'class_names' holds {name!a}, which is not printable text; write another.")
        seen.add(name)
    return tuple(names)


def _paths(tensors: dict[str, Tensor], prefix: str) -> PathTable | None:
    stored = tensors.get(f"{prefix}paths")
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
    if _is_ours(path.with_suffix(".json")):
        tensors, meta = load_tensors(path.parent, path.stem)
        return tensors, _with_names(path, meta)
    if shards_of(path).is_dir():  # the record is written last
        raise UserError(
            f"{path} is unfinished: its shards lie in {shards_of(path)}; give the longtail embed that began it once "
            "more, which goes on."
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            names = (file.metadata() or {}).get("class_names")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({str(error)[:120]}); write it again.") from None
    try:
        meta = {} if names is None else {"class_names": json.loads(names)}
    except (ValueError, RecursionError):
        raise UserError(
            f"{path}: 'class_names' in its metadata is not JSON; write it as json.dumps(list of names)."
        ) from None
    return tensors, _with_names(path, meta)


def _with_names(path: Path, meta: dict[str, Any]) -> dict[str, Any]:
    return meta if meta.get("class_names") is None else meta | {"class_names": _as_names(path, meta["class_names"])}


def _is_ours(path: Path) -> bool:
    """Return whether a ``.json`` file bears the stamp of this program's; a user's own may lie beside theirs."""
    stamp = ("format_version", "sha256")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):  # one of ours that was cut off begins with the stamp, and is told of as such
        return all(f'"{key}"' in text[:300] for key in stamp)
    return isinstance(record, dict) and all(key in record for key in stamp)


def _read_shards(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    meta = load_meta(path, INDEX.removesuffix(".json"))
    stems = [str(stem) for stem in meta["shards"]]
    rows: Counter[str] = Counter()
    for stem in stems:
        rows[str(load_meta(path, stem)["part"])] += _rows(path, stem)
    whole: dict[str, Tensor] = {}
    paths: dict[str, list[Tensor]] = {}
    filled: Counter[str] = Counter()
    for stem in stems:
        tensors, record = load_tensors(path, stem)
        part = str(record["part"])
        # Room for all is made at the first shard, so that there is never a second copy of more than one.
        for kind in ("features", "labels"):
            name, found = f"{part}_{kind}", tensors[kind]
            if name not in whole:
                whole[name] = torch.empty((rows[part], *found.shape[1:]), dtype=found.dtype)
            whole[name][filled[part] : filled[part] + len(found)] = found
        filled[part] += len(tensors["labels"])
        if "paths" in tensors:
            paths.setdefault(f"{part}_paths", []).append(tensors["paths"])
    return whole | {name: join_parts(name, parts) for name, parts in paths.items()}, _with_names(path, meta)


def _rows(path: Path, stem: str) -> int:
    """Return how many rows a shard holds, by its header alone."""
    try:
        with safe_open(path / f"{stem}.safetensors", framework="pt") as file:
            return int(file.get_slice("labels").get_shape()[0])
    except (SafetensorError, OSError):
        tensors, _ = load_tensors(path, stem)  # says what is wrong with it
        return len(tensors["labels"])


def join_parts(name: str, parts: list[Tensor]) -> Tensor:
    """Return the tensors ``name`` of shards as one; ``parts`` is emptied on the way, to hold no two copies at once.

    Packed paths (see :func:`packed_paths`) are parted by zeros where two shards meet.
    """
    if name.endswith("_paths"):
        zero = torch.zeros(1, dtype=torch.uint8)
        parts[:] = [piece for part in parts for piece in (zero, part)][1:]
    # Memory that is not written yet takes no room, so each part makes way for its copy.
    whole = torch.empty((sum(map(len, parts)), *parts[0].shape[1:]), dtype=parts[0].dtype)
    end = len(whole)
    while parts:
        part = parts.pop()
        whole[end - len(part) : end] = part
        end -= len(part)
    return whole


def _read_npz(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    damaged = UserError(f"{path}: not an .npz archive, or cut off; write it again with numpy.savez.")
    tensors: dict[str, Tensor] = {}
    meta: dict[str, Any] = {}
    name = ""
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                part, _, kind = name.rpartition("_")
                if name == "class_names":
                    meta["class_names"] = archive[name]
                elif kind in ("features", "labels") and part in ("", *PARTS):
                    tensors[name] = _as_tensor(path, name, archive[name])
    except UserError:
        raise
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error):
            raise UserError(
                f"{path}: {name!r} is an object array, which would need pickle and is not read; store plain numbers or "
                "strings."
            ) from None
        raise damaged from None
    return tensors, _with_names(path, meta)


def _as_tensor(path: Path, name: str, array: Any) -> Tensor:
    if array.dtype.kind not in "fiu":
        raise UserError(f"{path}: {name!r} is {array.dtype}; features are floats, labels integers.")
    if array.dtype.kind == "f" and array.dtype.itemsize > 4:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is told of with its row
            array = array.astype(np.float32)
    array = array.astype(np.int64) if array.dtype.kind in "iu" else array
    # Never 0-d to 1-d, as numpy.ascontiguousarray does.
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def with_statistics(splits: DataSplits) -> DataSplits:
    """Return ``splits`` with mean and deviation of the training features that they hold now."""
    assert isinstance(splits.train, FeatureSet)
    mean, std = feature_statistics(splits.train.features, splits.train.weights)
    return replace(splits, mean=mean, std=std)
