"""Tables that hold the images themselves, of Parquet files or of the hub, to a list of labelled files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longtail.data.embedded_columns import EmbeddedColumns, class_names, find_columns, holds_images, is_text
from longtail.data.embedded_files import Part, cache_folder, write_images
from longtail.data.hub_sets import HUB_SET, hub_parts
from longtail.data.listed_paths import join_test
from longtail.data.listing import Listing
from longtail.data.manifest import SPLIT_WORDS
from longtail.data.parquet_images import PARQUET, parquet_files, parquet_parts
from longtail.data.tables import texts_of
from longtail.errors import UserError, counted
from longtail.option_groups import DataOptions

_CACHE = "hf"
_HIDDEN = "-1"
"""The label that hub sets give to test images whose class is kept back."""


@dataclass(frozen=True)
class _Table:
    """All rows of a source, N of them; ``splits`` are ``train``, ``test`` and ``val``, or "" where nothing is said.

    ``names`` are all classes that schemas name, None where none does; ``bare`` is where labels are numbers without
    names, None where all have them.
    """

    data: str
    parts: list[Part]
    columns: EmbeddedColumns
    names: tuple[str, ...] | None
    bare: str | None
    labels: list[str]
    splits: list[str]
    groups: list[str] | None

    def row(self, index: int) -> str:
        """Return where a row stands, for sentences."""
        for part in self.parts:
            if index < part.count:
                return f"{part.where}, row {part.first_row + index}"
            index -= part.count
        raise IndexError(index)


def is_embedded(data: str, path_column: str) -> bool:
    """Return whether ``data`` names a hub set, or Parquet that holds images: a file, or a folder of such files."""
    if data.startswith(HUB_SET):
        return True
    path = Path(data).expanduser()
    try:
        if path.is_dir():
            files = parquet_files(path)
            return bool(files) and holds_images(path / files[0], path_column)
        return path.suffix.lower() in PARQUET and path.is_file() and holds_images(path, path_column)
    except OSError:
        return False


def read_embedded(
    data: str,
    root: Path,
    source: DataOptions,
    training: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Listing:
    """Return the images of a hub set or of Parquet files that hold them, written as files below ``root/hf``.

    Splits are those of the source (names of files or folders, a split column), read as those of manifests: without test
    images, or where their labels are kept back, validation is the test set.

    Args:
        data: ``hf:owner/name[@revision][:subset]``, a Parquet file or a folder of them.
        root: folder of the cache.
        source: which columns hold what, and where test images are (``test``).
        training: whether something is to be trained on it: it must then have training images.
        progress: called with (images written, of how many).

    Raises:
        UserError: the table is not as described; the message names file, row and column.
    """
    table = _read(data, source)
    kept, notes = _choose(table, training)
    if source.test is None:
        return _listing(table, kept, root, notes, progress)
    aside = sum(split not in ("train", "") for split in kept.values())
    if aside:
        kept = {index: split for index, split in kept.items() if split in ("train", "")}
        notes = [f"{data}: {counted(aside, 'image')} not marked as train left aside."]
    train = _listing(table, kept, root, notes, progress)
    other = _read(source.test, source)
    _check_named_alike([table, other])
    kept, notes = _choose(other, training=False)
    if "test" in kept.values():
        kept = {index: split for index, split in kept.items() if split == "test"}
    test = _listing(other, kept, root, notes, progress)
    paths = join_test(train.root, test.root, train.paths, test.paths, Path(source.test))
    return replace(
        train,
        paths=[*train.paths, *paths],
        labels=train.labels + test.labels,
        splits=["train"] * len(train) + ["test"] * len(test),
        groups=None if train.groups is None else train.groups + (test.groups or [""] * len(test)),
        class_names=_present(table.names, train.labels + test.labels),
        notes=(*train.notes, *test.notes),
    )


def _read(data: str, source: DataOptions) -> _Table:
    """Return what all rows say beside their images."""
    if data.startswith(HUB_SET):
        parts = hub_parts(data)
    elif is_embedded(data, source.path_column):
        parts = parquet_parts(Path(data).expanduser())
    else:
        raise UserError(f"{data} holds no images in Parquet files as the training data does; give it in the same form.")
    parts = [part for part in parts if part.count]
    if not parts:
        raise UserError(f"{data} has no rows.")
    # Files that say what their columns are come before those that leave it to be guessed.
    first = next((part for part in parts if b"huggingface" in (part.schema.metadata or {})), parts[0])
    columns = find_columns(first.schema, first.where, source.path_column, source.label_column)
    labels: list[str] = []
    bare: str | None = None
    named = [name for part in parts for name in class_names(part.schema, columns.label) or ()]
    all_names = tuple(dict.fromkeys(named)) or None
    splits: list[str] = []
    groups: list[str] = []
    for part in parts:
        names = part.schema.names
        for name in (columns.image, columns.label):
            if name not in names:
                raise UserError(f"{part.where} has no column {name!r}, but {first.where} has; mend or remove it.")
        beside = [name for name in (source.split_column, source.group_column) if name not in (columns.image,)]
        table = part.read(list(dict.fromkeys([columns.label, *(name for name in beside if name in names)])))

        def texts(name: str, table: Any = table, part: Part = part) -> list[str]:
            found = texts_of(part.where, name, table.column(name))
            if "" in found:
                row = part.first_row + found.index("")
                raise UserError(f"{part.where}, row {row}: column {name!r} is empty; fill it in or remove the row.")
            return found

        found = texts(columns.label)
        if _is_bare(part, columns, found):
            bare = bare or part.where
        else:
            found = _labels(part, columns, found, all_names)
        labels += found
        word = SPLIT_WORDS.get(part.split.lower(), "")
        splits += _row_splits(part, source, texts) if not word and _has(part, "split", source) else [word] * part.count
        if _has(part, "group", source):
            groups += texts(source.group_column)
        if len(groups) not in (0, len(labels)):  # some files alone would leave the others' images ungrouped
            with_groups = next(part for part in parts if source.group_column in part.schema.names)
            without = next(part for part in parts if source.group_column not in part.schema.names)
            raise UserError(
                f"{without.where} has no column {source.group_column!r} of groups, but {with_groups.where} has; add it "
                "there, or remove it from the others."
            )
    table = _Table(data, parts, columns, all_names, bare, labels, splits, groups or None)
    _check_named_alike([table])
    return table


def _is_bare(part: Part, columns: EmbeddedColumns, texts: list[str]) -> bool:
    """Return whether a part's labels, unless all are kept back, are numbers of classes that it does not name."""
    if class_names(part.schema, columns.label) is not None or is_text(part.schema.field(columns.label).type):
        return False
    return any(text != _HIDDEN for text in texts)


def _check_named_alike(tables: Sequence[_Table]) -> None:
    """Raise if some labels are numbers without names beside classes with names: which is which cannot be known."""
    bare = next((table.bare for table in tables if table.bare is not None), None)
    for table in tables:
        named = (part for part in table.parts if class_names(part.schema, table.columns.label) is not None)
        where = next((part.where for part in named), None)
        if bare is not None and where is not None:
            raise UserError(
                f"{bare} does not name the classes of its numbers in column {table.columns.label!r}, but {where} does; "
                "write it again with the same ClassLabel, or with the classes' names."
            )


def _has(part: Part, kind: str, source: DataOptions) -> bool:
    """Whether a part has the column of splits or of groups; one of another name than the usual must be there."""
    option = f"{kind}_column"
    name = getattr(source, option)
    if name in part.schema.names:
        return True
    if name != getattr(DataOptions(), option):
        shown = ", ".join(part.schema.names[:10])
        raise UserError(f"{part.where}: no column {name!r}; it has {shown}; name the {kind}s by --source.{option}.")
    return False


def _row_splits(part: Part, source: DataOptions, texts: Callable[[str], list[str]]) -> list[str]:
    words = texts(source.split_column)
    found = [SPLIT_WORDS.get(word.lower(), "") for word in words]
    if "" in found:
        index = found.index("")
        raise UserError(
            f"{part.where}, row {part.first_row + index}: split {words[index]!r} in column {source.split_column!r} is "
            "none of train, val and test."
        )
    return found


def _labels(part: Part, columns: EmbeddedColumns, texts: list[str], all_names: tuple[str, ...] | None) -> list[str]:
    """Return the labels by name, ``-1`` where they are kept back; each part numbers the classes in its own way."""
    if all_names is None:
        return texts
    own = class_names(part.schema, columns.label)
    names = all_names if own is None else own
    known = {name: name for name in names}
    if own is not None:
        known |= {str(number): name for number, name in enumerate(own)}
    known[_HIDDEN] = _HIDDEN
    wrong = next((index for index, text in enumerate(texts) if text not in known), None)
    if wrong is not None:
        of = f"its {len(names)} classes, 0 to {len(names) - 1}"
        of = f"the {len(names)} classes that other files name" if own is None else of
        raise UserError(
            f"{part.where}, row {part.first_row + wrong}: label {texts[wrong]} in column {columns.label!r} is none of "
            f"{of}; mend it."
        )
    return [known[text] for text in texts]


def _choose(table: _Table, training: bool) -> tuple[dict[int, str], list[str]]:
    """Return the split of each row that counts, by its position ("" = to be dealt), and notes.

    Raises:
        UserError: there is nothing to train on, or a label is kept back.
    """
    data, notes = table.data, []
    by_split: dict[str, list[int]] = {}
    for index, split in enumerate(table.splits):
        by_split.setdefault(split, []).append(index)
    others = list(dict.fromkeys(part.split for part in table.parts if part.split.lower() not in SPLIT_WORDS))
    if list(by_split) == [""]:
        _check_known(table, by_split[""], numbers_too=False)
        if len(others) > 1:
            shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
            notes.append(f"{data}: none of {shown} is called train or test, so they are taken together.")
        return dict.fromkeys(by_split[""], ""), notes
    if "" in by_split:
        aside = counted(len(by_split[""]), "image")
        notes.append(f"{data}: {aside} of {', '.join(map(repr, others[:5]))} left aside beside the usual splits.")
    train, val, test = (by_split.get(split, []) for split in ("train", "val", "test"))
    if training and not train:
        there = " and ".join(split for split in ("val", "test") if split in by_split)
        raise UserError(f"{data} has no images to train on, only the splits {there}; add a split train.")
    _check_known(table, train, numbers_too=False)
    plain = any(table.labels[index] == _HIDDEN for index in train)  # a number as any other
    kept_back = [name for name, rows in (("test", test), ("validation", val)) if not plain and _all_hidden(table, rows)]
    test, val = ([] if name in kept_back else rows for name, rows in (("test", test), ("validation", val)))
    if kept_back:
        instead = "the validation split is tested on" if val else "test images are held out from the training images"
        instead = "the test split is tested on" if test else instead
        notes.append(f"{data}: all labels of its {' and '.join(kept_back)} split are -1, kept back: {instead}.")
    elif val and not test:
        notes.append(f"{data}: it has no test split, so its validation split is tested on.")
    if val and test:
        notes.append(f"{data}: {counted(len(val), 'image')} of the validation split left aside beside the test split.")
    test = test or val
    _check_known(table, test, numbers_too=not plain)
    if not train and not test:
        raise UserError(f"{data} has no image whose label is given: all are -1.")
    return dict.fromkeys(train, "train" if test else "") | dict.fromkeys(test, "test"), notes


def _all_hidden(table: _Table, rows: Sequence[int]) -> bool:
    return bool(rows) and all(table.labels[index] == _HIDDEN for index in rows)


def _check_known(table: _Table, rows: Sequence[int], numbers_too: bool) -> None:
    """Raise if a label is -1 where that is no class: the schema names the classes, or no training image has it."""
    if table.names is None and not numbers_too:
        return
    first = next((index for index in rows if table.labels[index] == _HIDDEN), None)
    if first is not None:
        raise UserError(f"{table.row(first)}: label -1 names no class; give the class or remove the row.")


def _listing(
    table: _Table,
    kept: dict[int, str],
    root: Path,
    notes: Sequence[str],
    progress: Callable[[int, int], None] | None,
) -> Listing:
    """Write the images of the parts that hold rows of ``kept`` (position -> split) and list those rows."""
    folder = cache_folder(root / _CACHE, _plain_name(table.data), table.columns.image, table.parts)
    starts = [0]
    for part in table.parts:
        starts.append(starts[-1] + part.count)
    used = [(part, range(start, start + part.count)) for part, start in zip(table.parts, starts, strict=False)]
    used = [(part, rows) for part, rows in used if any(index in kept for index in rows)]
    total, done = sum(part.count for part, _ in used), 0
    paths: dict[int, str] = {}
    for part, rows in used:

        def tick(written: int, done: int = done) -> None:
            if progress is not None:
                progress(done + written, total)

        paths |= zip(rows, write_images(folder, part, table.columns.image, tick), strict=True)
        done += part.count
    order = sorted(kept)
    labels = [table.labels[index] for index in order]
    splits = [kept[index] for index in order]
    return Listing(
        table.data,
        folder,
        [paths[index] for index in order],
        labels,
        splits if "" not in splits else None,
        None if table.groups is None else [table.groups[index] for index in order],
        class_names=_present(table.names, labels),
        notes=tuple(notes),
    )


def _plain_name(data: str) -> str:
    """Return the name of the cache folder: a hub set's, or that of the file or folder."""
    return data.removeprefix(HUB_SET) if data.startswith(HUB_SET) else Path(data).expanduser().resolve().stem


def _present(names: tuple[str, ...] | None, labels: Sequence[str]) -> tuple[str, ...] | None:
    """Return those of the named classes that some image has."""
    found = set(labels)
    return None if names is None else tuple(name for name in names if name in found)
