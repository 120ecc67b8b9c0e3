"""Manifests: a CSV or Parquet table with one image a row, to a list of labelled files."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from longtail.data.listed_paths import base_folder, join_test, repeats_note, tidy_paths, without_repeats
from longtail.data.listing import Listing
from longtail.data.multi_label import multi_label_error
from longtail.data.tables import flag_columns, read_table
from longtail.errors import UserError, counted

SPLIT_WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "val"
)
"""Words of a split column, in lower case."""

_STAT_UP_TO = 8  # files in one folder that are looked up one by one rather than by listing the folder


@dataclass(frozen=True)
class _Rows:
    """The rows of one manifest; ``splits`` holds train, test and val."""

    file: Path
    paths: list[str]
    labels: list[str]
    splits: list[str] | None
    groups: list[str] | None
    lines: Sequence[int]
    unit: str
    notes: tuple[str, ...] = ()

    def take(self, kept: Sequence[int], note: str) -> _Rows:
        """Return the rows at positions ``kept``, with one more note."""

        def pick(values: list[str]) -> list[str]:
            return [values[i] for i in kept]

        return replace(
            self,
            paths=pick(self.paths),
            labels=pick(self.labels),
            splits=None if self.splits is None else pick(self.splits),
            groups=None if self.groups is None else pick(self.groups),
            lines=[self.lines[i] for i in kept],
            notes=(*self.notes, note),
        )


def read_manifest(
    file: Path,
    name: str,
    *,
    root: Path | None,
    path_column: str,
    label_column: str,
    split_column: str,
    group_column: str,
    test: Path | None,
    training: bool = True,
) -> Listing:
    """Return the images that a CSV or Parquet table names.

    The split and the group column are read if they are there. Where the splits are train, test and
    validation, the validation images are left aside and counted in a note; without test images,
    validation is the test set.

    Args:
        file: the table (see ``read_table``).
        name: what the user called it.
        root: folder that paths are relative to; None: the table's own.
        path_column, label_column, split_column, group_column: the names of the columns.
        test: a second table of test images; their paths are absolute if it lies in another folder.
        training: whether something is to be trained on it: some rows must then be for training, and a split column of
            another name than ``split`` must be there.

    Raises:
        UserError: the table is not as described, or is multi-label; the message names file and line.
    """
    file = file.expanduser()
    base = base_folder(file, root)
    columns = (path_column, label_column, split_column, group_column)
    rows = _one_test_split(_read_rows(file, columns, split_needed=training))
    if test is not None:
        rows = _with_test(
            rows, base, _read_rows(test.expanduser(), columns, split_needed=False), base_folder(test, root)
        )
    elif rows.splits is not None:
        if training and "train" not in rows.splits:
            raise UserError(f"{file}: column {split_column!r} marks no row as train.")
        if "test" not in rows.splits:
            note = f"{name}: column {split_column!r} marks every image as train, so test images are held out from them."
            rows = replace(rows, splits=None, notes=(*rows.notes, note) if training else rows.notes)
    return Listing(name, base, rows.paths, rows.labels, rows.splits, rows.groups, notes=rows.notes)


def check_exists(listing: Listing) -> None:
    """Raise ``UserError`` unless every listed path is a file; folders are listed once, not files looked up singly."""
    by_folder: dict[str, list[str]] = defaultdict(list)
    for path in listing.paths:
        folder, _, file = path.rpartition("/")
        by_folder["/" if path.startswith("/") and not folder else folder].append(file)
    missing: set[str] = set()
    for folder, files in by_folder.items():
        place = os.path.join(listing.root, folder)
        if len(files) <= _STAT_UP_TO:
            lost = {file for file in files if not os.path.isfile(os.path.join(place, file))}
        else:
            lost = set(files).difference(_files_in(place))
        missing.update(f"{folder.rstrip('/')}/{file}" if folder else file for file in lost)
    if missing:
        first = next(path for path in listing.paths if path in missing)
        those = (
            f"{len(missing)} of {counted(len(listing), 'image')} that it names {'is' if len(missing) == 1 else 'are'}"
        )
        raise UserError(
            f"{listing.name}: {those} missing, first {first} "
            f"(looked for in {listing.root}{_near(listing.root, first)}); give the folder that paths are relative to "
            "by --root, or mend the paths."
        )


def _read_rows(file: Path, columns: tuple[str, str, str, str], split_needed: bool) -> _Rows:
    table = read_table(file, columns)
    _check_columns(file, table.found, columns, split_needed)
    for column, values in table.columns.items():
        if "" in values:
            line = table.lines[values.index("")]
            raise UserError(f"{file}, {table.unit} {line}: column {column!r} is empty; fill it in or remove the row.")
    notes: list[str] = []
    path_column, label_column, split_column, group_column = columns
    paths = tidy_paths(file, table.columns[path_column], notes)
    splits = table.columns.get(split_column)
    if splits is not None:
        meaning = {word: SPLIT_WORDS.get(word.lower()) for word in set(splits)}
        unknown = next((i for i, word in enumerate(splits) if meaning[word] is None), None)
        if unknown is not None:
            raise UserError(
                f"{file}, {table.unit} {table.lines[unknown]}: split {splits[unknown]!r} in column {split_column!r} is "
                "none of train, val and test."
            )
        splits = [meaning[word] or "" for word in splits]
    labels = table.columns[label_column]
    rows = _Rows(
        file, paths, labels, splits, table.columns.get(group_column), table.lines, table.unit, notes=tuple(notes)
    )
    kept = without_repeats(file, paths, labels, splits, table.lines, table.unit)
    if kept is None:
        return rows
    return rows.take(kept, repeats_note(file, len(paths) - len(kept), "row"))


def _check_columns(file: Path, found: tuple[str, ...], columns: tuple[str, str, str, str], split_needed: bool) -> None:
    path_column, label_column, split_column, group_column = columns
    shown = ", ".join(repr(name) for name in found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
    for kind, column, needed in (
        ("path", path_column, True),
        ("label", label_column, True),
        ("split", split_column, split_needed and split_column != "split"),
        ("group", group_column, group_column != "group"),
    ):
        if column in found or not needed:
            continue
        if kind == "label":
            flags = flag_columns(file, columns)
            if len(flags) > 1:
                names = ", ".join(flags[:3]) + (", ..." if len(flags) > 3 else "")
                raise multi_label_error(
                    str(file), f"no column {column!r}, but {len(flags)} columns of 0 and 1 ({names})"
                )
        raise UserError(
            f"{file}: no column {column!r}; its header names {shown}; say which column holds the {kind} of each image "
            f"by --source.{kind}_column."
        )


def _one_test_split(rows: _Rows) -> _Rows:
    """Make validation the test set if there is no other, or leave it aside."""
    if rows.splits is None or "val" not in rows.splits:
        return rows
    if "test" not in rows.splits:
        return replace(rows, splits=["test" if split == "val" else split for split in rows.splits])
    kept = [i for i, split in enumerate(rows.splits) if split != "val"]
    aside = len(rows.splits) - len(kept)
    return rows.take(
        kept, f"{rows.file}: {counted(aside, 'image')} of the validation split left aside beside the test split."
    )


def _with_test(train: _Rows, base: Path, test: _Rows, test_base: Path) -> _Rows:
    """Return the training rows of one manifest followed by all rows of another as test images."""
    if train.splits is not None:
        kept = [i for i, split in enumerate(train.splits) if split == "train"]
        aside = len(train.splits) - len(kept)
        if not kept:
            raise UserError(f"{train.file}: no row is marked as train.")
        if aside:
            train = train.take(kept, f"{train.file}: {counted(aside, 'image')} not marked as train left aside.")
    paths = join_test(base, test_base, train.paths, test.paths, test.file)
    groups = None if train.groups is None else train.groups + (test.groups or [""] * len(paths))
    return _Rows(
        train.file,
        [*train.paths, *paths],
        train.labels + test.labels,
        ["train"] * len(train.paths) + ["test"] * len(paths),
        groups,
        train.lines,
        train.unit,
        train.notes + test.notes,
    )


def _files_in(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if not entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read ({error.strerror}); change its permissions.") from None


def _near(root: Path, path: str) -> str:
    """Return a remark on a file beside a missing one whose name differs only by its ending or letter case."""
    folder, _, wanted = os.path.join(root, path).rpartition("/")
    if not os.path.isdir(folder):
        return f", where there is no folder {os.path.dirname(path)}" if os.path.dirname(path) else ""
    stem = wanted.lower()
    for file in sorted(_files_in(folder)):
        if file.lower() == stem or os.path.splitext(file)[0].lower() in (stem, os.path.splitext(stem)[0]):
            return f", which has {file}"
    return ""
