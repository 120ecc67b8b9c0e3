"""Files of features as arrays by name, whole and readable: safetensors, .npz, or a folder of shards."""

from __future__ import annotations

import json
import unicodedata
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longtail.data.path_table import PathTable
from longtail.errors import UserError
from longtail.files import load_meta, load_tensors

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


def packed_paths(paths: PathTable) -> Tensor:
    """Return the paths as one uint8 tensor, parted by zeros, which no path holds."""
    data = b"\0".join(paths[i].encode("utf-8", "surrogateescape") for i in range(len(paths)))
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())


def read_arrays(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
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
