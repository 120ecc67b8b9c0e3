"""Columns of text out of a CSV or Parquet file, with the line of each row for error sentences."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from longtail.data.multi_label import multi_label_error
from longtail.errors import UserError, counted

_FLAGS = frozenset(("0", "1", "0.0", "1.0", "true", "false"))
_FLAG_ROWS = 1000


@dataclass(frozen=True)
class Table:
    """Some columns of a table.

    Attributes:
        found: the names of all its columns.
        columns: texts without blanks around them, one a row, for each column that was asked for and is there.
        lines: where each row stands in the file, counted from 1.
        unit: what ``lines`` counts: ``"line"`` or ``"row"``.
    """

    found: tuple[str, ...]
    columns: dict[str, list[str]]
    lines: Sequence[int]
    unit: str


def is_parquet(file: Path) -> bool:
    """Return whether ``file`` is Parquet, by its ending or its first bytes."""
    return file.suffix.lower() in (".parquet", ".pq") or _first_bytes(file)[:4] == b"PAR1"


def read_table(file: Path, names: Sequence[str]) -> Table:
    """Return those of the columns ``names`` that the CSV or Parquet file has.

    CSV is UTF-8 (a byte order mark is passed over) with a header line; comma, semicolon or tab, whichever
    makes the header hold most of ``names``. Rows that are blank are passed over.

    Raises:
        UserError: no such file, no table, no row, a row of another width, or text that is not UTF-8.
    """
    return _read_parquet(file, names) if is_parquet(file) else _read_csv(file, names)


def flag_columns(file: Path, besides: Sequence[str]) -> list[str]:
    """Return the columns that hold 0 and 1 only (in the first 1000 rows), as multi-label tables have them."""
    found = read_table(file, ()).found
    table = read_table(file, [name for name in found if name not in besides])
    return [
        name for name, values in table.columns.items() if {value.lower() for value in values[:_FLAG_ROWS]} <= _FLAGS
    ]


@contextmanager
def open_text(file: Path) -> Iterator[TextIO]:
    """Open a UTF-8 text file, a byte order mark passed over; what is no text is a ``UserError`` with its line."""
    start = _first_bytes(file)
    if not start.strip():
        raise UserError(f"{file} is empty.")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{file} is UTF-16 text; save it as UTF-8.")
    if start[:4] == b"PK\x03\x04":
        raise UserError(f"{file} is an Excel or zip file, not text; save the table as CSV in UTF-8.")
    if b"\0" in start:
        raise UserError(f"{file} is not a text file; a table is CSV in UTF-8, or Parquet.")
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            yield text
    except UnicodeDecodeError:
        raise UserError(f"{file}, line {_undecodable_line(file)}: not UTF-8 text; save the file as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}).") from None


def _first_bytes(file: Path) -> bytes:
    try:
        with open(file, "rb") as raw:
            return raw.read(65536)
    except FileNotFoundError:
        raise UserError(f"no such file: {file}") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}).") from None


def _undecodable_line(file: Path) -> int:
    with open(file, "rb") as raw:
        for number, line in enumerate(raw, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    raise AssertionError("every line is UTF-8")


def _read_csv(file: Path, names: Sequence[str]) -> Table:
    with open_text(file) as text:
        head = text.readline()
        while head and not head.strip():
            head = text.readline()
        text.seek(0)
        rows = csv.reader(text, delimiter=_delimiter(head, names), skipinitialspace=True, strict=True)
        try:
            return _rows_of(file, rows, names)
        except csv.Error as error:
            raise UserError(
                f'{file}, line {rows.line_num}: not a well-formed row ({error}); quote fields like "a, b".'
            ) from None


def _delimiter(head: str, names: Sequence[str]) -> str:
    def fit(delimiter: str) -> tuple[int, int]:
        fields = [field.strip().strip('"') for field in head.split(delimiter)]
        return len(set(fields) & set(names)), len(fields)

    return max(",;\t", key=fit)


def _rows_of(file: Path, rows: Any, names: Sequence[str]) -> Table:
    found: tuple[str, ...] = ()
    for header in rows:
        found = tuple(cell.strip() for cell in header)
        if any(found):
            break
    _check_once(file, found, names)
    places = [found.index(name) for name in names if name in found]
    values: list[list[str]] = [[] for _ in places]
    lines: list[int] = []
    width = len(found)
    for row in rows:
        if len(row) != width:
            if not any(cell.strip() for cell in row):
                continue
            raise UserError(
                f"{file}, line {rows.line_num}: {counted(len(row), 'field')}, but the header names "
                f"{counted(width, 'column')}; quote fields that contain the separator."
            )
        if not row[0] and not any(cell.strip() for cell in row):
            continue
        for column, place in zip(values, places, strict=True):
            column.append(row[place].strip())
        lines.append(rows.line_num)
    if not lines:
        raise UserError(f"{file} has a header (columns {', '.join(found[:10])}) but no rows.")
    return Table(found, {found[place]: column for place, column in zip(places, values, strict=True)}, lines, "line")


def _check_once(file: Path, found: Sequence[str], names: Sequence[str]) -> None:
    twice = next((name for name in names if found.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{file} has two columns named {twice!r}; rename one.")


def _read_parquet(file: Path, names: Sequence[str]) -> Table:
    _first_bytes(file)  # missing and unreadable files have their sentence there
    try:
        pa: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(
            f"{file}: reading Parquet needs pyarrow; install it (pip install pyarrow) or use CSV."
        ) from None
    try:
        with parquet.ParquetFile(file) as source:
            found = tuple(source.schema_arrow.names)
            _check_once(file, found, names)
            wanted = [name for name in names if name in found]
            table = source.read(columns=wanted)
            count = source.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{file} is not a readable Parquet file ({reason[:200].rstrip('.')}); write it again."
        ) from None
    if count == 0:
        raise UserError(f"{file} has columns {', '.join(found[:10])} but no rows.")
    columns = {name: texts_of(str(file), name, table.column(name)) for name in wanted}
    return Table(found, columns, range(1, count + 1), "row")


def texts_of(file: str, name: str, column: Any) -> list[str]:
    """Return a column of pyarrow as text: whole numbers without a point, missing values as empty text.

    Raises:
        UserError: it holds lists, structures or bytes; ``file`` and ``name`` are for the sentence.
    """
    pa: Any = importlib.import_module("pyarrow")
    compute: Any = importlib.import_module("pyarrow.compute")
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        column = column.cast(kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        raise multi_label_error(file, f"column {name!r} holds lists")
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise UserError(f"{file}: column {name!r} holds {kind}, not text; name a column of file paths or labels.")
    if pa.types.is_floating(kind):
        # pandas writes a missing number as NaN; the sentence on empty values says where it is.
        column = compute.if_else(compute.is_nan(column), None, column)
        whole = compute.and_(compute.equal(compute.floor(column), column), compute.less(compute.abs(column), 2.0**53))
        if compute.all(whole).as_py():
            column = column.cast(pa.int64())
    return [(text or "").strip() for text in column.cast(pa.string()).to_pylist()]
