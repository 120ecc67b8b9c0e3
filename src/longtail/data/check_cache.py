"""What the look at image files found, kept between runs.

Plain arrays, one file for each root folder and source name, which holds the files listed last: entries of paths that
are no longer listed go away, and a list of a part of a folder, being another source, does not take away what the list
of all of it has found.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from longtail.files import write_bytes

# Of the arrays and of what is in them: raise it when decoding changes. Another Pillow may decode otherwise, too.
_VERSION = f"1, Pillow {PIL.__version__}"


@dataclass(frozen=True)
class Records:
    """One entry a file, N in all.

    Attributes:
        levels: uint8 ``[N]``: 0 = nothing known, 1 = opened or 2 = decoded.
        bytes, times: int64 ``[N]``: the file's size and modification time (ns) when it was looked at.
        widths, heights, frames: int32 ``[N]``.
        modes: uint8 ``[N]``.
        digests: int64 ``[N]``.
    """

    levels: NDArray[np.uint8]
    bytes: NDArray[np.int64]
    times: NDArray[np.int64]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    frames: NDArray[np.int32]
    modes: NDArray[np.uint8]
    digests: NDArray[np.int64]

    @staticmethod
    def empty(count: int) -> Records:
        """Return ``count`` entries of which nothing is known."""
        return Records(**{name: np.zeros(count, kind) for name, kind in _KINDS.items()})

    def arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield name and array of each attribute, levels first."""
        for field in fields(self):
            yield field.name, getattr(self, field.name)

    def forget(self, index: int) -> None:
        """Make one entry unknown, its level first."""
        for _, array in self.arrays():
            array[index] = 0


_KINDS: dict[str, type[np.generic]] = {
    "levels": np.uint8,
    "bytes": np.int64,
    "times": np.int64,
    "widths": np.int32,
    "heights": np.int32,
    "frames": np.int32,
    "modes": np.uint8,
    "digests": np.int64,
}


def default_cache() -> Path | None:
    """Return the folder for caches, made if need be; None if it cannot be written.

    ``$LONGTAIL_CACHE`` (empty: None, no cache), else ``$XDG_CACHE_HOME/longtail``, else ``~/.cache/longtail``.
    """
    chosen = os.environ.get("LONGTAIL_CACHE")
    if chosen == "":
        return None
    try:
        if chosen is not None:
            folder = Path(chosen).expanduser()
        else:
            base = os.environ.get("XDG_CACHE_HOME", "")  # to be ignored unless absolute, says its specification
            folder = (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "longtail"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError):  # RuntimeError: no home
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def load_records(cache: Path | None, root: Path, name: str, keys: NDArray[np.int64]) -> tuple[Records, bool]:
    """Return what is known of the files whose path hashes are ``keys [N]``, and whether the cache holds others too.

    A cache file that is missing, broken, or of another version, root or name counts as empty.
    """
    records = Records.empty(len(keys))
    if cache is None or not len(keys):
        return records, False
    try:
        with np.load(io.BytesIO(_place(cache, root, name).read_bytes()), allow_pickle=False) as stored:
            arrays: dict[str, NDArray[Any]] = {key: stored[key] for key in ("head", "keys", *_KINDS)}
    except Exception:  # numpy and zipfile raise whatever broken bytes lead them to; a cache may always be lost
        return records, False
    known = arrays.pop("keys")
    head = arrays["head"]
    if head.shape != () or str(head) != _head(root, name) or known.dtype != np.int64 or known.ndim != 1:
        return records, False
    if any(arrays[key].dtype != kind for key, kind in _KINDS.items()):
        return records, False
    if any(arrays[key].shape != known.shape for key in _KINDS) or not bool(np.all(known[1:] > known[:-1])):
        return records, False
    place = np.searchsorted(known, keys).clip(max=max(0, len(known) - 1))
    found = known[place] == keys if len(known) else np.zeros(len(keys), dtype=bool)
    for key, array in records.arrays():
        array[found] = arrays[key][place[found]]
    return records, len(np.unique(place[found])) < len(known)


def save_records(cache: Path | None, root: Path, name: str, keys: NDArray[np.int64], records: Records) -> None:
    """Put what is known in place of what was kept. Without a cache, or where it cannot be written, nothing happens.

    Of two processes at once, the last one's records stay.
    """
    if cache is None:
        return
    copies = {key: array.copy() for key, array in records.arrays()}
    unique, place = np.unique(keys, return_index=True)
    some = copies["levels"][place] > 0
    buffer = io.BytesIO()
    kept: dict[str, Any] = {key: array[place[some]] for key, array in copies.items()}
    np.savez(buffer, head=np.array(_head(root, name)), keys=unique[some], **kept)
    with contextlib.suppress(OSError):
        write_bytes(_place(cache, root, name), buffer.getvalue())


def _head(root: Path, name: str) -> str:
    return f"longtail image check {_VERSION}\n{os.path.abspath(root)}\n{name}"


def _place(cache: Path, root: Path, name: str) -> Path:
    key = os.fsencode(os.path.abspath(root)) + b"\n" + os.fsencode(name)
    return cache / f"images-{hashlib.blake2b(key, digest_size=12).hexdigest()}.npz"
