"""Files that name the classes of masks, with or without colours: ``classes.txt``, and palettes as text, CSV or JSON."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtail.errors import UserError

Colour = tuple[int, int, int]

PALETTE_FILES = ("palette.txt", "palette.csv", "palette.tsv", "palette.json")
"""Looked for in the folder of the data, then those that other tools write there."""
_OF_OTHERS = ("class_dict.csv", "label_colors.txt", "labelmap.txt")
_CLASSES = "classes.txt"

_FORMS = "lines 'R G B name' or 'name R G B', a CSV file with a header (name, r, g, b), or JSON"
_NUMBERS_FIRST = re.compile(r"((?:\d+[\s,;]+){2,3}\d+)(?:[\s,;:]+(.*))?")
_NUMBERS_LAST = re.compile(r"(.+?)[\s,;:]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)(?::.*)?")
_NAME_KEYS, _VALUE_KEYS = ("name", "class", "label", "category"), ("value", "id", "index")
_COLOUR_KEYS = ("color", "colour", "rgb")
_CHANNELS = (("r", "red"), ("g", "green"), ("b", "blue"))


@dataclass(frozen=True)
class ClassEntry:
    """One class as a file or a layout lists it.

    Attributes:
        name: as written; "" if it is not named.
        colour: red, green and blue, 0..255, in colour masks and overlays; None = not given.
        value: in masks that hold values; None = its place in the list.
    """

    name: str
    colour: Colour | None = None
    value: int | None = None


def find_classes(folder: Path, palette: str | None) -> tuple[list[ClassEntry], Path] | None:
    """Return the classes that files name, and the file: ``palette`` if given, else what lies in ``folder``.

    A palette without names takes them from ``classes.txt``, in order.

    Raises:
        UserError: a file cannot be read or understood.
    """
    named = folder / _CLASSES
    chosen = Path(palette).expanduser() if palette else None
    if chosen is None:
        chosen = next((folder / name for name in (*PALETTE_FILES, *_OF_OTHERS) if (folder / name).is_file()), None)
    if chosen is None:
        return (read_class_names(named), named) if named.is_file() else None
    entries = read_palette(chosen)
    if any(not entry.name for entry in entries) and named.is_file():
        names = read_class_names(named)
        if len(names) != len(entries):
            raise UserError(f"{chosen} lists {len(entries)} colours and {named} {len(names)} classes; make them agree.")
        entries = [
            ClassEntry(entry.name or name.name, entry.colour, entry.value)
            for entry, name in zip(entries, names, strict=True)
        ]
    return entries, chosen


def read_class_names(path: Path) -> list[ClassEntry]:
    """Read ``classes.txt``: a class a line, in the order of the masks' values; blank lines and ``#`` lines are none.

    Lines with colours are read as a palette.
    """
    lines = [line for _, line in _lines(path)]
    if lines and all(_parse_line(line) is not None for line in lines):
        return read_palette(path)
    return _checked([ClassEntry(line) for line in lines], path)


def read_palette(path: Path) -> list[ClassEntry]:
    """Read the classes and colours of a palette file, in order.

    Text has a class a line, ``R G B name`` or ``name R G B`` (or ``value R G B name``; commas, semicolons and colons
    part like blanks, as in CVAT's ``labelmap.txt``). CSV has a header with ``name`` and ``r``, ``g``, ``b`` (or one
    column ``color``, ``#rrggbb``), maybe ``value``. JSON is a list of such objects, their ``color`` three numbers or
    ``#rrggbb``, or an object of name to colour. Numbers are 0..255.

    Raises:
        UserError: the file is not there, has another form, or names a class or colour twice.
    """
    if path.suffix.lower() == ".json":
        entries = _from_json(path)
    elif path.suffix.lower() in (".csv", ".tsv"):
        entries = _from_table(path)
    else:
        entries = []
        for number, line in _lines(path):
            entry = _parse_line(line)
            if entry is None:
                raise UserError(f"{path} line {number} ({line[:40]!r}) is no class with a colour; write {_FORMS}.")
            entries.append(entry)
    return _checked(entries, path)


def _parse_line(line: str) -> ClassEntry | None:
    first = _NUMBERS_FIRST.fullmatch(line)
    if first is not None:
        numbers = [int(text) for text in re.findall(r"\d+", first[1])]
        value = numbers[0] if len(numbers) == 4 else None
        return ClassEntry((first[2] or "").strip(), (numbers[-3], numbers[-2], numbers[-1]), value)
    last = _NUMBERS_LAST.fullmatch(line)
    return None if last is None else ClassEntry(last[1].strip(), (int(last[2]), int(last[3]), int(last[4])))


def _from_table(path: Path) -> list[ClassEntry]:
    lines = [line for _, line in _lines(path)]
    if not lines:
        return []
    separator = next((sign for sign in "\t;," if sign in lines[0]), ",")
    head = [column.strip().lower() for column in next(csv.reader(lines[:1], delimiter=separator))]
    if all(_parse_line(line.replace("\t", " ")) is not None for line in lines):  # text with another ending
        return [entry for line in lines if (entry := _parse_line(line.replace("\t", " "))) is not None]
    rows = list(csv.reader(lines[1:], delimiter=separator, skipinitialspace=True))
    return [_from_mapping(dict(zip(head, row, strict=False)), path, number) for number, row in enumerate(rows, 2)]


def _from_json(path: Path) -> list[ClassEntry]:
    try:
        held = json.loads(_text(path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); write {_FORMS}.") from None
    if isinstance(held, dict) and isinstance(held.get("classes"), list):
        held = held["classes"]
    if isinstance(held, dict):
        held = [{"name": name, "color": colour} for name, colour in held.items()]
    if not isinstance(held, list):
        raise UserError(f"{path} holds no list of classes; write {_FORMS}.")
    entries = []
    for number, item in enumerate(held, 1):
        if isinstance(item, str):
            item = {"name": item}
        if not isinstance(item, dict):
            raise UserError(f"{path}: entry {number} is no class with a colour; write {_FORMS}.")
        entries.append(_from_mapping({str(key).lower(): value for key, value in item.items()}, path, number))
    return entries


def _from_mapping(item: Mapping[str, Any], path: Path, number: int) -> ClassEntry:
    name = _first(item, _NAME_KEYS)
    colour: Any = _first(item, _COLOUR_KEYS)
    value = _first(item, _VALUE_KEYS)
    channels = [_first(item, keys) for keys in _CHANNELS]
    try:
        if all(channel is not None for channel in channels):
            colour = channels
        if isinstance(colour, str):
            text = colour.strip()
            colour = bytes.fromhex(text[1:]) if text.startswith("#") else re.findall(r"\d+", text)
        parts = None if colour is None else [int(part) for part in colour]
        if parts is not None and len(parts) != 3:
            raise ValueError
        return ClassEntry(
            str(name or "").strip(),
            None if parts is None else (parts[0], parts[1], parts[2]),
            None if value in (None, "") else int(str(value)),
        )
    except (ValueError, TypeError):
        raise UserError(f"{path}: entry {number} is no class with a colour; write {_FORMS}.") from None


def _first(item: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _checked(entries: list[ClassEntry], path: Path) -> list[ClassEntry]:
    if not entries:
        raise UserError(f"{path} lists no class; write a class a line.")
    for entry in entries:
        if entry.colour is not None and max(entry.colour) > 255:
            raise UserError(f"{path}: the colour {entry.colour} of {entry.name!r} is not within 0..255.")
    kinds: tuple[tuple[str, list[Any]], ...] = (
        ("class", [entry.name for entry in entries if entry.name]),
        ("colour", [entry.colour for entry in entries if entry.colour is not None]),
        ("mask value", [entry.value for entry in entries if entry.value is not None]),
    )
    for what, values in kinds:
        twice = next((value for index, value in enumerate(values) if value in values[:index]), None)
        if twice is not None:
            raise UserError(f"{path} lists the {what} {twice!r} twice; each must be there once.")
    if 0 < len(kinds[2][1]) < len(entries):
        raise UserError(f"{path} gives mask values to some classes only; give them to all or to none.")
    return entries


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines that say something, each with its number."""
    lines = [(number, line.strip()) for number, line in enumerate(_text(path).splitlines(), 1)]
    return [(number, line) for number, line in lines if line and not re.match(r"#(?![0-9a-fA-F]{6})|//", line)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no such palette file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a list of classes ({error}).") from None
