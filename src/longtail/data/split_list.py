"""Split lists: text files of ``path label`` lines, as ImageNet-LT, Places-LT and iNaturalist 2018 are published."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from longtail.data.list_lines import ListLines, read_lines
from longtail.data.listed_paths import base_folder, join_test
from longtail.data.listing import Listing
from longtail.errors import UserError


def read_split_list(
    file: Path, name: str, *, root: Path | None, test: Path | None, cache: Path | None = None
) -> Listing:
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
        cache: folder that keeps what large lists say; None = nothing is kept.

    Raises:
        UserError: a list that cannot be read, or a line that is not as described.
    """
    file = file.expanduser()
    base = base_folder(file, root)
    train = read_lines(file, cache)
    labels = train.labels
    found = test.expanduser() if test is not None else _sibling(file)
    if found is None:
        return Listing(
            name,
            base,
            train.paths,
            labels,
            None,
            None,
            class_names=_class_names(train, train.texts),
            numbered=True,
            notes=tuple(train.notes),
        )
    if os.path.abspath(found) == os.path.abspath(file):
        raise UserError(f"{file}: --source.test names the training list itself; name another list.")
    held = read_lines(found, cache)
    test_paths = join_test(base, base_folder(found, root), train.paths, held.paths, found)
    notes = [*train.notes, *held.notes]
    if test is None:
        notes.append(f"{name}: the test images are those of {found.name} beside it.")
    labels += held.labels
    return Listing(
        name,
        base,
        train.paths + test_paths,
        labels,
        ["train"] * len(train.paths) + ["test"] * len(test_paths),
        None,
        class_names=_class_names(train, (*train.texts, *held.texts)),
        numbered=True,
        notes=tuple(notes),
    )


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


def _class_names(train: ListLines, labels: Sequence[str]) -> tuple[str, ...] | None:
    """Return the names of classes 0..C-1; None if the numbers have gaps, which is told when they are checked."""
    for known in (set(labels), set(train.texts)):
        if len(known) == 1 + max(int(label) for label in known):
            folders = _folders(train)
            return tuple(folders.get(str(c), str(c)) for c in range(len(known)))
    return None


def _folders(train: ListLines) -> dict[str, str]:
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
