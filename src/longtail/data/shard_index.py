"""The index of many tar shards: one pass over their headers, kept between runs until a shard's size or time changes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtail.data.shard_scan import ShardSamples, scan_shard, shard_time
from longtail.files import write_bytes

_VERSION = 1  # of the arrays and of what counts as a sample


@dataclass(frozen=True)
class ShardIndex:
    """The samples of S shards, N in all, shard by shard.

    Attributes:
        shards: int64 ``[S, 4]``: size in bytes, modification time (ns), samples, and members that are no sample.
        spans: int64 ``[N, 2]``: first byte and length of each image in its shard.
        names: UTF-8 names of the image members, a zero byte after each.
        labels, groups: int32 ``[N]``: positions in ``texts``.
        texts: the labels and groups that occur, as ``names`` are written.
        others: for each shard the name of the first member that is no sample, as ``names`` are written.
    """

    shards: NDArray[np.int64]
    spans: NDArray[np.int64]
    names: NDArray[np.uint8]
    labels: NDArray[np.int32]
    groups: NDArray[np.int32]
    texts: NDArray[np.uint8]
    others: NDArray[np.uint8]

    def shard_of(self) -> NDArray[np.int64]:
        """Return the shard of each sample, ``[N]``."""
        return np.repeat(np.arange(len(self.shards)), self.shards[:, 2])

    def sound(self) -> bool:
        """Return whether the arrays fit each other, as those of a broken file may not."""
        count = len(self.spans)
        kinds = all(getattr(self, field.name).dtype == _KINDS[field.name] for field in fields(self))
        if not kinds or self.shards.shape[1:] != (4,) or self.spans.shape[1:] != (2,):
            return False
        texts = int((self.texts == 0).sum())
        codes = all(
            codes.shape == (count,) and ((codes >= 0) & (codes < texts)).all() for codes in (self.labels, self.groups)
        )
        named = int((self.names == 0).sum()) == count and int((self.others == 0).sum()) == len(self.shards)
        return codes and named and int(self.shards[:, 2].sum()) == count


_KINDS: dict[str, type[np.generic]] = {
    "shards": np.int64,
    "spans": np.int64,
    "names": np.uint8,
    "labels": np.int32,
    "groups": np.int32,
    "texts": np.uint8,
    "others": np.uint8,
}


def index_shards(
    root: Path,
    shards: Sequence[str],
    label_field: str,
    group_field: str,
    workers: int = 1,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ShardIndex:
    """Return the index of the tar files ``shards``, relative to ``root`` or absolute.

    Shards that have kept size and modification time are taken from the cache, others are read by ``workers`` threads
    (reading waits for the storage more than for the processor). ``progress`` is called with (read, of how many).

    Raises:
        UserError: see :func:`longtail.data.shard_scan.scan_shard`.
    """
    places = [os.path.join(root, shard) for shard in shards]
    times = [shard_time(place) for place in places]
    file = None if cache is None else _place(cache, places, label_field, group_field)
    known = None if file is None else _load(file, len(shards))
    fresh = [i for i, time in enumerate(times) if known is None or tuple(known.shards[i, :2].tolist()) != time]
    if known is not None and not fresh:
        return known
    with ThreadPoolExecutor(max(1, workers)) as pool:
        scanned = {}
        for i, part in zip(
            fresh, pool.map(lambda i: scan_shard(places[i], label_field, group_field), fresh), strict=True
        ):
            scanned[i] = part
            if progress is not None:
                progress(len(scanned), len(fresh))
    parts = (
        scanned if known is None else scanned | _taken_apart(known, [i for i in range(len(shards)) if i not in scanned])
    )
    index = _joined([parts[i] for i in range(len(shards))], times)
    if file is not None:
        buffer = io.BytesIO()
        np.savez(buffer, **{field.name: getattr(index, field.name) for field in fields(index)})
        with contextlib.suppress(OSError):  # a cache may always be lost
            write_bytes(file, buffer.getvalue())
    return index


def split_texts(texts: NDArray[np.uint8]) -> list[str]:
    """Return the texts that an index holds with a zero byte after each."""
    return texts.tobytes().decode().split("\0")[:-1]


def _joined(parts: Sequence[ShardSamples], times: Sequence[tuple[int, int]]) -> ShardIndex:
    code: dict[str, int] = {}

    def codes(texts: Iterable[str]) -> NDArray[np.int32]:
        return np.array([code.setdefault(text, len(code)) for text in texts], np.int32)

    labels = codes(text for part in parts for text in part.labels)
    groups = codes(text for part in parts for text in part.groups)
    offsets = np.concatenate([np.asarray(part.offsets, np.int64) for part in parts])
    lengths = np.concatenate([np.asarray(part.lengths, np.int64) for part in parts])
    return ShardIndex(
        shards=np.array([(*time, len(p.names), p.others) for time, p in zip(times, parts, strict=True)], np.int64),
        spans=np.stack([offsets, lengths], 1),
        names=_texts(name for part in parts for name in part.names),
        labels=labels,
        groups=groups,
        texts=_texts(code),
        others=_texts(part.first_other.replace("\0", "") for part in parts),
    )


def _texts(texts: Iterable[str]) -> NDArray[np.uint8]:
    return np.frombuffer("".join(f"{text}\0" for text in texts).encode("utf-8", "replace"), np.uint8)


def _taken_apart(index: ShardIndex, wanted: Sequence[int]) -> dict[int, ShardSamples]:
    """Return what an index knows of some of its shards."""
    ends = index.shards[:, 2].cumsum()
    names, texts, others = split_texts(index.names), split_texts(index.texts), split_texts(index.others)
    parts = {}
    for number in wanted:
        part = slice(int(ends[number] - index.shards[number, 2]), int(ends[number]))
        samples = ShardSamples(
            names=names[part],
            labels=[texts[code] for code in index.labels[part].tolist()],
            groups=[texts[code] for code in index.groups[part].tolist()],
            others=int(index.shards[number, 3]),
            first_other=others[number],
        )
        samples.offsets.extend(index.spans[part, 0].tolist())
        samples.lengths.extend(index.spans[part, 1].tolist())
        parts[number] = samples
    return parts


def _place(cache: Path, places: Sequence[str], label_field: str, group_field: str) -> Path:
    key = "\0".join([str(_VERSION), label_field, group_field, *map(os.path.abspath, places)])
    return cache / f"shards-{hashlib.blake2b(os.fsencode(key), digest_size=12).hexdigest()}.npz"


def _load(file: Path, count: int) -> ShardIndex | None:
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
            index = ShardIndex(**{name: stored[name] for name in _KINDS})
        return index if index.sound() and len(index.shards) == count else None
    except Exception:  # whatever broken bytes lead numpy and zipfile to
        return None
