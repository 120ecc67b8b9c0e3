"""The lines of a split list, ``path number``: millions of them in little more memory than the file has bytes.

What a large list says is kept between runs until its size or time changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from array import array
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtail.data.listed_paths import backslash_note, first_mentions, repeats_note, tidy_paths
from longtail.data.path_table import PathTable
from longtail.data.tables import open_text
from longtail.errors import UserError
from longtail.files import write_bytes

FORM = "a line is an image path and a class number, such as: train/n01440764/n01440764_762.JPEG 0"
_CHUNK = 50_000  # lines that are text at a time
_KEPT_FROM = 100_000
"""Lines from which on a list is kept in the cache; a shorter one is read as fast."""
_VERSION = 1  # of the arrays, and of how lines are read


@dataclass(frozen=True)
class ListLines:
    """The images of one list, N in all.

    Attributes:
        paths: tidied, without repeats.
        codes: int32 ``[N]``, the label of each: its position in ``texts``.
        texts: the labels that occur, whole numbers without leading zeros.
        notes: sentences for the user.
    """

    paths: PathTable
    codes: NDArray[np.int32]
    texts: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """One label an image; images of a class share one text."""
        return [self.texts[code] for code in self.codes.tolist()]


def read_lines(file: Path, cache: Path | None = None) -> ListLines:
    """Return the images that a split list names.

    Args:
        file: the list; blank lines and lines that start with ``#`` are passed over.
        cache: folder that keeps what a large list says; None = nothing is kept.

    Raises:
        UserError: the list cannot be read, or a line is not as described; the message names the line.
    """
    place = None if cache is None else cache / f"list-{_key(file)}.npz"
    head = _head(file)
    known = None if place is None else _load(place, head)
    if known is not None:
        return known
    lines = _read(file)
    if place is not None and len(lines.codes) >= _KEPT_FROM:
        _save(place, head, lines)
    return lines


def _read(file: Path) -> ListLines:
    data, lengths, codes, numbers = bytearray(), array("q"), array("i"), array("q")
    code: dict[str, int] = {}  # of labels as written
    chunk: list[str] = []
    backslashes = 0

    def pack() -> None:
        nonlocal backslashes
        backslashes += sum("\\" in path for path in chunk) if "\\" in "".join(chunk) else 0
        for path in tidy_paths(file, chunk, []):
            encoded = path.encode()
            data.extend(encoded)
            lengths.append(len(encoded))
        chunk.clear()

    with open_text(file) as text:
        for number, written in enumerate(text, start=1):
            line = written.strip()
            if not line or line[0] == "#":
                continue
            path, _, label = line.replace("\t", " ").rpartition(" ")
            if not (label.isascii() and label.isdecimal() and path):
                path, _, label = line.rpartition(",")
                label = label.strip()
            path = path.rstrip(" \t,")
            if not (label.isascii() and label.isdecimal() and path):
                raise UserError(f"{file}, line {number}: {_shown(line)} is not understood; {FORM}.")
            chunk.append(path)
            codes.append(code.setdefault(label, len(code)))
            numbers.append(number)
            if len(chunk) == _CHUNK:
                pack()
    pack()
    if not lengths:
        raise UserError(f"{file} names no image; {FORM}.")
    notes = [backslash_note(file, backslashes)] if backslashes else []
    texts, same = _numbers(list(code))
    lines = ListLines(
        PathTable.packed(bytes(data), np.frombuffer(lengths, np.int64)), same[np.frombuffer(codes, np.int32)], texts
    )
    kept = first_mentions(file, lines.paths, lambda i: texts[lines.codes[i]], None, numbers, "line")
    if kept is not None:
        notes.append(repeats_note(file, len(lengths) - len(kept), "line"))
        lines = replace(lines, paths=lines.paths.select(kept), codes=lines.codes[kept])
    return replace(lines, notes=tuple(notes))


def _numbers(written: list[str]) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Return the labels without leading zeros, and where each of ``written`` is among them."""
    place: dict[str, int] = {}
    same = np.array([place.setdefault(str(int(label)), len(place)) for label in written], np.int32)
    return tuple(place), same


def _shown(line: str) -> str:
    return repr(line if len(line) <= 80 else line[:77] + "...")


def _key(file: Path) -> str:
    return hashlib.blake2b(os.fsencode(os.path.abspath(file)), digest_size=12).hexdigest()


def _head(file: Path) -> str:
    try:
        status = os.stat(file)
    except OSError:  # reading it has the sentence
        return ""
    return f"longtail list {_VERSION}\n{os.path.abspath(file)}\n{status.st_size} {status.st_mtime_ns}"


def _save(place: Path, head: str, lines: ListLines) -> None:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        head=np.array(head),
        paths=np.frombuffer(lines.paths.data(), np.uint8),
        lengths=lines.paths.lengths().astype(np.int32),
        codes=lines.codes,
        texts=np.array("\n".join(lines.texts)),
        notes=np.array("\n".join(lines.notes)),
    )
    with contextlib.suppress(OSError):  # a cache may always be lost
        write_bytes(place, buffer.getvalue())


def _load(place: Path, head: str) -> ListLines | None:
    try:
        with np.load(place, allow_pickle=False) as stored:
            if str(stored["head"]) != head:
                return None
            paths = PathTable.packed(stored["paths"].tobytes(), stored["lengths"].astype(np.int64))
            codes, texts = stored["codes"], tuple(str(stored["texts"]).split("\n"))
            notes = tuple(note for note in str(stored["notes"]).split("\n") if note)
        sound = codes.dtype == np.int32 and codes.shape == (len(paths),) and len(codes)
        sound = sound and int(codes.min()) >= 0 and int(codes.max()) < len(texts)
        return ListLines(paths, codes, texts, notes) if sound else None
    except Exception:  # whatever broken bytes lead numpy and zipfile to
        return None
