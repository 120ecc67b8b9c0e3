"""A folder of several files that is there whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from longtail.errors import UserError
from longtail.files import sync_folder


def check_replaceable(path: Path, ours: Collection[str], overwrite: bool) -> None:
    """Raise unless ``path`` is free, or holds nothing but files named ``ours`` and may be overwritten.

    Raises:
        UserError: something is there that must stay.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_dir():
        raise UserError(f"--out {path} is a file; name a folder.")
    inside = sorted(entry.name for entry in path.iterdir())
    foreign = [name for name in inside if name not in ours]
    if foreign:
        raise UserError(f"--out {path} holds other files ({foreign[0]}); choose another folder.")
    if inside and not overwrite:
        raise UserError(f"--out {path} already holds {inside[0]}; add --overwrite or choose another folder.")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a new folder to write into, which takes the place of ``path`` (and of what is there) if the block ends well.

    A folder that is there stays, and its files are exchanged: it may be a link, or the one that the user is in.

    Raises:
        UserError: the disk is full, or nothing may be written there.
    """
    place = path.resolve()
    fresh, old = (place.with_name(f".{place.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    made = not place.parent.exists()
    try:
        fresh.mkdir(parents=True)
        yield fresh
        for file in fresh.iterdir():
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        if place.exists():
            _exchange(place, fresh, old)
            sync_folder(place)
        else:
            fresh.rename(place)
        sync_folder(place.parent)
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror or error}.") from None
    finally:
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        if made:
            with suppress(OSError):  # it holds something
                place.parent.rmdir()


def _exchange(place: Path, fresh: Path, old: Path) -> None:
    """Move the files in ``place`` into the new folder ``old`` and those in ``fresh`` into ``place``, or leave all."""
    old.mkdir()
    try:
        _move(place, old)
        try:
            _move(fresh, place)
        except BaseException:
            _move(place, fresh)
            raise
    except BaseException:
        _move(old, place)
        raise


def _move(source: Path, target: Path) -> None:
    for file in list(source.iterdir()):
        file.rename(target / file.name)
