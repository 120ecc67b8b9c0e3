"""Paths as manifests and split lists name them: tidied, freed of repeats, and seen from one folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtail.data.multi_label import multi_label_error
from longtail.data.splits import path_keys
from longtail.errors import UserError, counted


def base_folder(file: Path, root: Path | None) -> Path:
    """Return the folder that the paths in ``file`` are relative to: ``root``, or else its own."""
    if root is None:
        return file.expanduser().parent
    if not root.expanduser().is_dir():
        raise UserError(f"--root {root} is no folder; give the folder that the paths in {file} are relative to.")
    return root.expanduser()


def tidy_paths(file: Path, paths: list[str], notes: list[str]) -> list[str]:
    """Return ``paths`` with forward slashes and without ``./`` or doubled slashes; refuse web addresses."""
    joined = "\n".join(paths)  # one search each, instead of one a path
    if "\\" in joined:
        count = sum("\\" in path for path in paths)
        notes.append(backslash_note(file, count))
        paths = [path.replace("\\", "/") for path in paths]
        joined = "\n".join(paths)
    if "://" in joined:
        address = next((path for path in paths if "://" in path), "")
        raise UserError(f"{file}: {address} is a web address; fetch the images and name their files.")
    if "./" in joined or "//" in joined:
        paths = [os.path.normpath(path) if "./" in path or "//" in path else path for path in paths]
    return paths


def backslash_note(file: Path, count: int) -> str:
    """Return the note on ``count`` paths that were written with backslashes."""
    return f"{file}: backslashes in {counted(count, 'image')}' paths read as forward slashes."


def without_repeats(
    file: Path, paths: list[str], labels: list[str], splits: list[str] | None, lines: Sequence[int], unit: str
) -> list[int] | None:
    """Return the positions of first mentions if a path occurs again with the same label; None if none does.

    Args:
        file: for the sentences.
        paths, labels, splits: one a row.
        lines: where each row stands in the file, in ``unit`` (``"line"`` or ``"row"``).

    Raises:
        UserError: a path that occurs with different labels, or in different splits.
    """
    kept = first_mentions(file, paths, labels.__getitem__, splits, lines, unit)
    return None if kept is None else kept.tolist()


def first_mentions(
    file: Path,
    paths: Sequence[str],
    label: Callable[[int], str],
    splits: Sequence[str] | None,
    lines: Sequence[int],
    unit: str,
) -> NDArray[np.int64] | None:
    """Do what :func:`without_repeats` does, with 8 bytes a path in place of its text; ``label`` gives that of a row."""
    keys = path_keys(paths).numpy()
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    if not same.any():
        return None
    # The same hash, by one chance in 10^19 a pair, is not the same path: those few are looked at as text.
    suspects = np.unique(np.concatenate([order[1:][same], order[:-1][same]]))
    first: dict[str, int] = {}
    kept = np.ones(len(paths), dtype=bool)
    for i in suspects.tolist():
        path = paths[i]
        j = first.setdefault(path, i)
        kept[i] = i == j
        if label(i) != label(j):
            where = f"{file}, {unit} {lines[i]}"
            raise multi_label_error(where, f"{path} has label {label(i)!r}, but {label(j)!r} on {unit} {lines[j]}")
        if splits is not None and splits[i] != splits[j]:
            raise UserError(
                f"{file}, {unit} {lines[i]}: {path} is in {splits[i]}, but in {splits[j]} on {unit} {lines[j]}; an "
                "image belongs to one of them."
            )
    return None if kept.all() else np.flatnonzero(kept)


def repeats_note(file: Path, count: int, unit: str) -> str:
    """Return the note on ``count`` rows or lines (``unit``) that name an image again."""
    rows = f"1 {unit} names" if count == 1 else f"{count} {unit}s name"
    return f"{file}: {rows} an image again with the same label; kept once."


def join_test(
    base: Path, test_base: Path, paths: Sequence[str], test_paths: Sequence[str], test_file: Path
) -> Sequence[str]:
    """Return the test paths as seen from ``base`` (absolute if they are relative to another folder).

    Raises:
        UserError: an image is in training and in test.
    """
    if os.path.abspath(base) != os.path.abspath(test_base):
        place = Path(os.path.abspath(test_base)).as_posix()
        test_paths = [os.path.join(place, path) for path in test_paths]
    keys, test_keys = path_keys(paths).numpy(), path_keys(test_paths).numpy()
    suspects = {test_paths[i] for i in np.flatnonzero(np.isin(test_keys, keys)).tolist()}
    known = {paths[i] for i in np.flatnonzero(np.isin(keys, test_keys)).tolist()} if suspects else set()
    both = [path for path in test_paths if path in known] if suspects & known else []
    if both:
        raise UserError(
            f"{test_file}: {counted(len(both), 'image')} of the training set named again as test images, first "
            f"{both[0]}; an image belongs to one of them."
        )
    return test_paths
