"""Rows of predictions as CSV, JSON lines or Parquet: written as they come, and there whole or not at all."""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

from longtail.errors import UserError, printable
from longtail.files import sync_folder

FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet"}
"""Endings of output files, and the format each stands for."""

SET_MARK = "|"
"""What stands between the classes of a shortlist in a CSV cell."""

_ROWS_A_GROUP = 10_000

Column = Literal["text", "number", "texts"]
Row = Mapping[str, Any]


def choose_format(out: Path | None, given: str | None) -> str:
    """Return ``"csv"``, ``"jsonl"`` or ``"parquet"``: as given, or by the ending of ``out``; CSV without either.

    Raises:
        UserError: another format, an ending that stands for none, or Parquet without a file.
    """
    if given is not None and given not in FORMATS.values():
        raise UserError(f"--format must be {', '.join(FORMATS.values())}, got {given!r}.")
    if out is None:
        if given == "parquet":
            raise UserError("--format parquet needs a file; add --out FILE.parquet.")
        return given or "csv"
    known = FORMATS.get(out.suffix.lower())
    if given is None and known is None:
        raise UserError(f"--out {out} has no ending that names a format ({', '.join(FORMATS)}); add --format.")
    return given or str(known)


class ResultTable:
    """Writes rows to a file beside ``out``, which takes its name when the ``with`` block ends well; or to stdout.

    Args:
        out: the file; None = standard output.
        kind: see :func:`choose_format`.
        columns: name of each column to what it holds.

    Raises:
        UserError: it cannot be written, or the disk is full; nothing is left behind.
    """

    def __init__(self, out: Path | None, kind: str, columns: Mapping[str, Column]) -> None:
        self.out = out
        self._fresh = None if out is None else out.with_name(f".{out.name}.{os.getpid()}.tmp")
        self._made = [] if out is None else [folder for folder in out.parents if not folder.exists()]
        self._file: BinaryIO | None = None
        self._writer: _Writer | None = None
        with self._refusing():
            if self._fresh is not None:
                self._fresh.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self._fresh, "wb")  # noqa: SIM115 - open until the table is whole
            self._writer = _WRITERS[kind](self._file or _Stdout(), columns)

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows; each has a value, or None, for every column."""
        assert self._writer is not None
        with self._refusing():
            self._writer.write(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None or self._writer is None:
            self._discard()
            return
        with self._refusing():
            self._writer.close()
            if self._file is not None and self._fresh is not None and self.out is not None:
                self._file.flush()
                os.fsync(self._file.fileno())
                os.replace(self._fresh, self.out)
                sync_folder(self.out.parent)
        self._discard()

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            self._discard()
            where = "standard output" if self.out is None else f"--out {self.out}"
            raise UserError(f"{where} cannot be written: {error.strerror or error}.") from None

    def _discard(self) -> None:
        if self._writer is not None:
            self._writer.drop()
        if self._file is not None:
            with suppress(OSError):  # on a full disk closing fails too: it writes what is left
                self._file.close()
        if self._fresh is not None:
            with suppress(OSError):  # its folder could not be made
                self._fresh.unlink(missing_ok=True)
        for folder in self._made:
            with suppress(OSError):  # it holds the table
                folder.rmdir()


class _Stdout:
    """Standard output as bytes."""

    def write(self, data: bytes) -> int:
        out = sys.stdout
        if out.isatty():  # file names come from anywhere: a terminal must not obey them
            out.write("\n".join(map(printable, data.decode("utf-8", "replace").split("\n"))))
        elif hasattr(out, "buffer"):
            out.flush()
            out.buffer.write(data)
        else:  # a notebook's
            out.write(data.decode("utf-8", "replace"))
        out.flush()
        return len(data)


class _Writer:
    """Puts rows into a file in one format."""

    def __init__(self, file: Any, columns: Mapping[str, Column]) -> None:
        self.file, self.columns = file, columns
        self.start()

    def start(self) -> None:
        """Write what comes first."""

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what comes last."""

    def drop(self) -> None:
        """Write nothing any more."""


class _CsvWriter(_Writer):
    def start(self) -> None:
        self._put([list(self.columns)])

    def write(self, rows: Sequence[Row]) -> None:
        self._put([[_cell(row[name]) for name in self.columns] for row in rows])

    def _put(self, rows: list[list[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        self.file.write(text.getvalue().encode("utf-8", "surrogateescape"))  # file names keep their bytes


class _JsonWriter(_Writer):
    def write(self, rows: Sequence[Row]) -> None:
        lines = (json.dumps({name: _valid(row[name]) for name in self.columns}, ensure_ascii=False) for row in rows)
        self.file.write("".join(f"{line}\n" for line in lines).encode())


class _ParquetWriter(_Writer):
    def start(self) -> None:
        pyarrow, parquet = (importlib.import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
        types = {"text": pyarrow.string(), "number": pyarrow.float64(), "texts": pyarrow.list_(pyarrow.string())}
        self._schema = pyarrow.schema([(name, types[kind]) for name, kind in self.columns.items()])
        self._table = pyarrow.Table
        self._parquet: Any = parquet.ParquetWriter(self.file, self._schema)
        self._waiting: list[Row] = []

    def write(self, rows: Sequence[Row]) -> None:
        self._waiting += [{name: _valid(row[name]) for name in self.columns} for row in rows]
        if len(self._waiting) >= _ROWS_A_GROUP:
            self._put()

    def _put(self) -> None:
        self._parquet.write_table(self._table.from_pylist(self._waiting, schema=self._schema))
        self._waiting = []

    def close(self) -> None:
        self._put()
        self._parquet.close()

    def drop(self) -> None:
        self._parquet.is_open = False  # or it would write the end of a table when it is collected


_WRITERS: dict[str, type[_Writer]] = {"csv": _CsvWriter, "jsonl": _JsonWriter, "parquet": _ParquetWriter}


def _cell(value: Any) -> Any:
    return SET_MARK.join(value) if isinstance(value, list) else value


def _valid(value: Any) -> Any:
    """Return a text without the halves of characters that a file name which is no UTF-8 becomes."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if isinstance(value, str) else value
