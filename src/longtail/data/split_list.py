"""Split lists: text files of ``path label`` lines, as ImageNet-LT, Places-LT and iNaturalist 2018 are published."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longtail.data.listed_paths import base_folder, join_test, repeats_note, tidy_paths, without_repeats
from longtail.data.listing import Listing
from longtail.data.tables import open_text
from longtail.errors import UserError

_FORM = "a line is an image path and a class number, such as: train/n01440764/n01440764_762.JPEG 0"


@dataclass(frozen=True)
class _Lines:
    """The images of one list."""

    paths: list[str]
    labels: list[str]
    notes: list[str]


def read_split_list(file: Path, name: str, *, root: Path | None, test: Path | None) -> Listing:
    """Return the images that one list names for training and another for testing.

    A line is a path (which may contain blanks), a blank or a comma, and a class number 0..C-1; blank lines and
    lines that start with ``#`` are passed over. Classes are named after their folder below the folder common to
    all training images, if each class has one of its own, and else by their number.

    Args:
        file: the training list.
        name: what the user called it.
        root: folder that paths are relative to; None: the list's own.
        test: the test list; None: the file beside ``file`` with ``test`` or else ``val`` in place of the last
            ``train`` in its name. Without either, the listing has no splits.

    Raises:
        UserError: a list that cannot be read, or a line that is not as described.
    """
    file = file.expanduser()
    base = base_folder(file, root)
    train = _read(file)
    found = test.expanduser() if test is not None else _sibling(file)
    if found is None:
        return Listing(
            name,
            base,
            train.paths,
            train.labels,
            None,
            None,
            class_names=_class_names(train, train.labels),
            numbered=True,
            notes=tuple(train.notes),
        )
    if os.path.abspath(found) == os.path.abspath(file):
        raise UserError(f"{file}: --source.test names the training list itself; name another list.")
    held = _read(found)
    test_paths = join_test(base, base_folder(found, root), train.paths, held.paths, found)
    notes = [*train.notes, *held.notes]
    if test is None:
        notes.append(f"{name}: the test images are those of {found.name} beside it.")
    labels = train.labels + held.labels
    return Listing(
        name,
        base,
        train.paths + test_paths,
        labels,
        ["train"] * len(train.paths) + ["test"] * len(test_paths),
        None,
        class_names=_class_names(train, labels),
        numbered=True,
        notes=tuple(notes),
    )


def _read(file: Path) -> _Lines:
    paths: list[str] = []
    labels: list[str] = []
    numbers = array("q")
    texts: dict[str, str] = {}  # one text a class instead of one an image
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
                raise UserError(f"{file}, line {number}: {_shown(line)} is not understood; {_FORM}.")
            paths.append(path)
            labels.append(texts.setdefault(label, str(int(label))))
            numbers.append(number)
    if not paths:
        raise UserError(f"{file} names no image; {_FORM}.")
    notes: list[str] = []
    paths = tidy_paths(file, paths, notes)
    kept = without_repeats(file, paths, labels, None, numbers, "line")
    if kept is not None:
        notes.append(repeats_note(file, len(paths) - len(kept), "line"))
        paths, labels = [paths[i] for i in kept], [labels[i] for i in kept]
    return _Lines(paths, labels, notes)


def _shown(line: str) -> str:
    return repr(line if len(line) <= 80 else line[:77] + "...")


def _sibling(file: Path) -> Path | None:
    """Return the test list beside a training list; None if there is none."""
    at = file.name.lower().rfind("train")
    if at < 0:
        return None
    word = file.name[at : at + 5]
    for other in ("test", "val"):
        in_case = other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other
        candidate = file.with_name(file.name[:at] + in_case + file.name[at + 5 :])
        if candidate.is_file():
            return candidate
    return None


def _class_names(train: _Lines, labels: Sequence[str]) -> tuple[str, ...] | None:
    """Return the names of classes 0..C-1; None if the numbers have gaps, which is told when they are checked."""
    for known in (set(labels), set(train.labels)):
        if len(known) == 1 + max(int(label) for label in known):
            folders = _folders(train)
            return tuple(folders.get(str(c), str(c)) for c in range(len(known)))
    return None


def _folders(train: _Lines) -> dict[str, str]:
    """Return the folder of each class below the common one; nothing unless each class has one of its own."""
    parents: dict[str, str] = {}
    for path, label in zip(train.paths, train.labels, strict=True):
        parent = path.rpartition("/")[0]
        if parents.setdefault(label, parent) != parent:
            return {}
    if len(set(parents.values())) < len(parents) or "" in parents.values():
        return {}
    if len({parent.startswith("/") for parent in parents.values()}) > 1:
        return {}
    common = os.path.commonpath(parents.values())
    if common in parents.values():
        return {}
    return {label: parent[len(common) :].lstrip("/") for label, parent in parents.items()}
