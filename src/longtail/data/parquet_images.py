"""Parquet files that hold the images themselves, one or a folder of them, as the Hugging Face hub stores data sets."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longtail.data.embedded_files import Part, as_images
from longtail.data.listing import IMAGE_ENDINGS
from longtail.data.manifest import SPLIT_WORDS
from longtail.errors import UserError

PARQUET = (".parquet", ".pq")
_ROWS = 32  # in memory at a time
_BUFFER = 1 << 20
_SHARD = re.compile(r"[-_.]?\d+([-_]of[-_]\d+)?$")


def parquet_files(folder: Path) -> list[str]:
    """Return the Parquet files in ``folder`` and below it, relative to it; [] where an image file lies there too.

    Hidden files and folders are passed over.
    """
    found: list[str] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            ending = os.path.splitext(name)[1].lower()
            if ending in IMAGE_ENDINGS:
                return []
            if ending in PARQUET and not name.startswith("."):
                found.append(Path(place, name).relative_to(folder).as_posix())
    return found


def parquet_parts(place: Path) -> list[Part]:
    """Return a part for each Parquet file: of the file ``place``, or of the folder ``place`` and below it.

    A file's split is what its name says before the number of its shard (``train-00000-of-00002``), or its folder's.

    Raises:
        UserError: a file cannot be read, or the files are of several subsets.
    """
    if not place.is_dir():
        return [_part(place, place.name, "")]
    files = parquet_files(place)
    _check_one_subset(place, files)
    # The ending stays in the name: train.parquet may lie beside train.pq.
    parts = [_part(place / file, file, _split_of(file)) for file in files]
    return [part for part in parts if part.count]


def _split_of(file: str) -> str:
    """Return ``train`` of ``data/train-00000-of-00002.parquet``, ``train/0000.parquet`` and ``train.parquet``."""
    *folders, name = file.split("/")
    own = _SHARD.sub("", name.rpartition(".")[0])
    if own.lower() in SPLIT_WORDS:
        return own
    return next((folder for folder in reversed(folders) if folder.lower() in SPLIT_WORDS), own)


def _check_one_subset(place: Path, files: list[str]) -> None:
    """Raise if files lie in several folders that are no splits: they may hold the same images by other labels."""
    folders = {"/".join(part for part in file.split("/")[:-1] if part.lower() not in SPLIT_WORDS) for file in files}
    if len(folders) > 1:
        shown = ", ".join(sorted(folder or "." for folder in folders)[:5])
        raise UserError(
            f"{place} holds Parquet files in several folders ({shown}), which may be subsets of the same images; name "
            "one of them."
        )


def _part(file: Path, name: str, split: str) -> Part:
    pa: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")

    def unreadable(error: Exception) -> UserError:
        reason = str(error).strip().split("\n")[0][:200].rstrip(".")
        return UserError(f"{file} is not a readable Parquet file ({reason}); write it again.")

    def read(columns: list[str]) -> Any:
        try:
            return parquet.read_table(file, columns=columns, partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise unreadable(error) from None

    def images(column: str) -> Iterator[dict[str, Any]]:
        try:
            # Buffered: a row group, which may be the whole file, is not read at once.
            with parquet.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as source:
                for batch in source.iter_batches(batch_size=_ROWS, columns=[column]):
                    yield from as_images(batch.column(0))
        except (pa.ArrowException, OSError) as error:
            raise unreadable(error) from None

    def stamp() -> str:
        # The bytes themselves: size and time of two files may agree (an archive unpacked, a copy that keeps times), and
        # the cost of a second a gigabyte is that of reading them. The folder, as rows may name files relative to it.
        try:
            with open(file, "rb") as source:
                digest = hashlib.file_digest(source, lambda: hashlib.blake2b(digest_size=16))
        except OSError as error:
            raise unreadable(error) from None
        return f"{digest.hexdigest()} {folder}"

    try:
        with parquet.ParquetFile(file) as opened:
            schema, count = opened.schema_arrow, opened.metadata.num_rows
        folder = file.resolve().parent
    except (pa.ArrowException, OSError) as error:
        raise unreadable(error) from None
    return Part(split, name, str(file), count, 1, schema, stamp, (folder,), read, images)
