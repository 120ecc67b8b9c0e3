"""Images out of Parquet and hub tables as ordinary files, written once, so that all that is done with files is done.

A part of a table (a Parquet file, some rows of a hub set) becomes one folder. It is written under another name and
renamed when it is whole: what a killed process leaves behind is never taken for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import platform
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtail.errors import UserError

_INDEX = "index.parquet"
_MOST_BYTES = 256 << 20
"""Of a file that a row names: no image is as large, and it is read whole."""
_KINDS = ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG", ".png"), (b"GIF8", ".gif"), (b"BM", ".bmp"))
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class Part:
    """Some rows of a table.

    Attributes:
        split: name of the split that they belong to, "" where the source says none.
        name: their folder below the cache, with forward slashes; no two parts share it.
        where: file or data set, for sentences.
        count: how many rows.
        first_row: number of the first one, counted from 1.
        schema: ``pyarrow.Schema`` of the table.
        stamp: gives text that changes when the rows do; it may take a second a gigabyte.
        folders: files that rows name in place of bytes must lie in one of them or below it; a relative path starts at
            the first.
        read: columns' names -> a ``pyarrow.Table`` of them.
        images: column's name -> one dictionary ``{bytes, path}`` a row, a few rows in memory at a time.
    """

    split: str
    name: str
    where: str
    count: int
    first_row: int
    schema: Any
    stamp: Callable[[], str]
    folders: tuple[Path, ...]
    read: Callable[[list[str]], Any]
    images: Callable[[str], Iterator[dict[str, Any]]]


def as_images(column: Any) -> Iterator[dict[str, Any]]:
    """Yield ``{bytes, path}`` of each row of a pyarrow column, binary or ``struct{bytes, path}``."""
    for value in column.to_pylist():
        yield value if isinstance(value, dict) else {"bytes": value}


def cache_folder(root: Path, name: str, column: str, parts: Sequence[Part]) -> Path:
    """Return the folder of a table's images below ``root``: its name, and a fingerprint of what it holds."""
    stamp = "\n".join([column, *(f"{part.name} {part.count} {part.stamp()}" for part in parts)])
    plain = re.sub(r"[^\w.-]+", "--", name).strip("-.") or "table"
    return root / f"{plain[:80]}-{hashlib.sha256(stamp.encode()).hexdigest()[:12]}"


def write_images(folder: Path, part: Part, column: str, tick: Callable[[int], None]) -> list[str]:
    """Return the path of each row's image, relative to ``folder``, written first where that has not been done.

    A file's name is the row's number, counted from 1. A row without an image becomes an empty file, which is then
    reported as any file that cannot be read.

    Args:
        folder: of the whole table's images.
        part: the rows.
        column: where their images are.
        tick: called with the number of rows done, from time to time.

    Raises:
        UserError: the folder cannot be written, or a row names a file that is not there.
    """
    target = folder / part.name
    names = _written(target, part.count)
    if names is None:
        fresh = target.with_name(f".{target.name}.{platform.node()}.{os.getpid()}.tmp")
        try:
            _remove_left_behind(target)
            fresh.mkdir(parents=True)
            names = _write(fresh, part, column, tick)
            _put(fresh, target, part.count)
        except PermissionError as error:
            raise UserError(
                f"{part.where}: its images cannot be written to {folder} ({error.strerror}); name another folder by "
                "--root."
            ) from None
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    tick(part.count)
    return [f"{part.name}/{name}" for name in names]


def _write(folder: Path, part: Part, column: str, tick: Callable[[int], None]) -> list[str]:
    names, sizes = [], []
    for index, image in enumerate(part.images(column)):
        data = _content(image, part, part.first_row + index)
        name = f"row-{part.first_row + index:08d}{_ending(data)}"
        with open(folder / name, "wb") as file:
            file.write(data)
        names.append(name)
        sizes.append(len(data))
        if index % 100 == 99:
            tick(index + 1)
    pa: Any = importlib.import_module("pyarrow")
    importlib.import_module("pyarrow.parquet").write_table(pa.table({"name": names, "bytes": sizes}), folder / _INDEX)
    return names


def _content(image: dict[str, Any] | None, part: Part, row: int) -> bytes:
    """Return the encoded image of a row, which may be in a file that the row names.

    A table may come from anyone and its images go into pages that are passed on: it must not name any file of this
    machine, nor one without an end.
    """
    data, path = (image or {}).get("bytes"), (image or {}).get("path")
    if data is not None or not path:
        return data or b""
    try:
        file = part.folders[0].joinpath(path).resolve()
        if not any(file.is_relative_to(folder.resolve()) for folder in part.folders):
            reason = f"is not below {' or '.join(map(str, dict.fromkeys(part.folders)))}"
        elif not stat.S_ISREG((status := file.stat()).st_mode):
            reason = "is no ordinary file"
        elif status.st_size > _MOST_BYTES:
            reason = f"has more than {_MOST_BYTES >> 20} MiB"
        else:
            return file.read_bytes()
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # links in a circle, no text, a zero byte
        reason = f"cannot be read ({getattr(error, 'strerror', None) or error})"
    raise UserError(
        f"{part.where}, row {row}: it holds no image but the path {path!r}, which {reason}; write the table again with "
        "the images in it."
    )


def _ending(data: bytes) -> str:
    """Return the file name ending of encoded bytes; readers go by the bytes, people by the ending."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    if data[:4] in _TIFF:
        return ".tif"
    return next((ending for start, ending in _KINDS if data.startswith(start)), ".img")


def _written(folder: Path, count: int) -> list[str] | None:
    """Return the files of a part that was written whole and is still there, size for size; None otherwise."""
    if not (folder / _INDEX).is_file():
        return None
    try:
        index = importlib.import_module("pyarrow.parquet").read_table(folder / _INDEX)
        names, sizes = index["name"].to_pylist(), index["bytes"].to_pylist()
        with os.scandir(folder) as entries:
            found = {entry.name: entry.stat().st_size for entry in entries}
    except Exception:  # a cache may always be lost, whatever its bytes lead to
        return None
    sound = len(names) == count and all(found.get(name) == size for name, size in zip(names, sizes, strict=True))
    return names if sound else None


def _put(fresh: Path, target: Path, count: int) -> None:
    """Give a written folder its name; one that another process has put there meanwhile is as good."""
    if target.exists() and _written(target, count) is None:
        shutil.rmtree(target)
    try:
        fresh.rename(target)
    except OSError:
        if _written(target, count) is None:
            raise


def _remove_left_behind(target: Path) -> None:
    """Remove what killed processes of this machine have left of the same part."""
    start = f".{target.name}.{platform.node()}."
    for left in target.parent.iterdir() if target.parent.is_dir() else ():
        number = left.name.removeprefix(start).removesuffix(".tmp")
        if left.name != f"{start}{number}.tmp" or not number.isdecimal():
            continue
        if int(number) != os.getpid():
            try:
                os.kill(int(number), 0)
                continue  # still at it
            except ProcessLookupError:
                pass
            except (OSError, OverflowError):
                continue  # another user's, or no number of a process
        with contextlib.suppress(OSError):
            shutil.rmtree(left)
