"""What the look at every image and mask found, kept between runs: sizes, sums, and the codes that masks hold.

Masks are counted before anything is decided about classes, so that another palette or other options need no new look.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from longtail.files import write_bytes
from longtail.segmentation.data.raw_masks import Kind

# Of the arrays and of what is in them: raise it when reading changes. Another Pillow may decode otherwise, too.
_VERSION = f"1, Pillow {PIL.__version__}"
_KINDS: tuple[Kind, ...] = ("value", "colour", "palette")


@dataclass(frozen=True)
class PairFacts:
    """What is known of one image and its mask.

    Attributes:
        size: height and width of both.
        sums: int64 ``[6]``: the sum of red, green and blue over the image's pixels (0..255), and of their squares.
        kind: of the mask.
        codes: int32 ``[K]``, all that occur in it, ascending (see ``raw_masks.RawMask``).
        counts: int64 ``[K]``, pixels of each.
        own: int32 ``[K]``, their colours in the mask's own table; None for other kinds than ``palette``.
    """

    size: tuple[int, int]
    sums: NDArray[np.int64]
    kind: Kind
    codes: NDArray[np.int32]
    counts: NDArray[np.int64]
    own: NDArray[np.int32] | None


def pair_keys(images: Sequence[str], masks: Sequence[str]) -> NDArray[np.int64]:
    """Return a 64-bit hash of each pair of paths, ``[N]``."""
    digests = (
        hashlib.blake2b(os.fsencode(f"{image}\0{mask}"), digest_size=8).digest()
        for image, mask in zip(images, masks, strict=True)
    )
    return np.fromiter((int.from_bytes(digest, "little", signed=True) for digest in digests), np.int64, len(images))


def load_facts(
    cache: Path | None, root: Path, name: str, keys: NDArray[np.int64], stamps: NDArray[np.int64]
) -> list[PairFacts | None]:
    """Return what is known of the pairs ``keys [N]`` whose files still have the stamps ``[N, 4]``; None = nothing.

    A cache file that is missing, broken, or of another version, root or name counts as empty.
    """
    found: list[PairFacts | None] = [None] * len(keys)
    if cache is None:
        return found
    try:
        with np.load(io.BytesIO(_place(cache, root, name).read_bytes()), allow_pickle=False) as stored:
            held: dict[str, NDArray[Any]] = dict(stored)
        if str(held["head"]) != _head(root, name):
            return found
        position = {int(key): place for place, key in enumerate(held["keys"].tolist())}
        for index, key in enumerate(keys.tolist()):
            place = position.get(key)
            if place is None or not (held["stamps"][place] == stamps[index]).all():
                continue
            part = slice(*held["starts"][place : place + 2].tolist())
            kind, own = _KINDS[held["kinds"][place]], held["own"][part]
            height, width = held["sizes"][place].tolist()
            codes, counts = held["codes"][part], held["counts"][part]
            if int(counts.sum()) != height * width or len(own) != len(codes):
                continue
            colours = own if kind == "palette" else None
            found[index] = PairFacts((height, width), held["sums"][place], kind, codes, counts, colours)
    except Exception:  # numpy and zipfile raise whatever broken bytes lead them to; a cache may always be lost
        return [None] * len(keys)
    return found


def save_facts(
    cache: Path | None,
    root: Path,
    name: str,
    keys: NDArray[np.int64],
    stamps: NDArray[np.int64],
    facts: Sequence[PairFacts | None],
) -> None:
    """Put what is known in place of what was kept. Without a cache, or where it cannot be written, nothing happens."""
    some = [index for index, fact in enumerate(facts) if fact is not None]
    known = [fact for fact in facts if fact is not None]
    if cache is None or not known:
        return
    none = np.zeros(0, np.int32)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        head=np.array(_head(root, name)),
        keys=keys[some],
        stamps=stamps[some],
        sizes=np.array([fact.size for fact in known], np.int64),
        sums=np.stack([fact.sums for fact in known]),
        kinds=np.array([_KINDS.index(fact.kind) for fact in known], np.uint8),
        starts=np.cumsum([0, *(len(fact.codes) for fact in known)]),
        codes=np.concatenate([none, *(fact.codes for fact in known)]),
        counts=np.concatenate([fact.counts for fact in known]),
        own=np.concatenate([np.zeros(len(f.codes), np.int32) if f.own is None else f.own for f in known]),
    )
    with contextlib.suppress(OSError):
        write_bytes(_place(cache, root, name), buffer.getvalue())


def _head(root: Path, name: str) -> str:
    return f"longtail mask check {_VERSION}\n{os.path.abspath(root)}\n{name}"


def _place(cache: Path, root: Path, name: str) -> Path:
    key = os.fsencode(os.path.abspath(root)) + b"\n" + os.fsencode(name)
    return cache / f"masks-{hashlib.blake2b(key, digest_size=12).hexdigest()}.npz"
