"""The folder that predicted masks are written into: what lies there, under which names, and what may be deleted."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from longtail.deployment.whole_folder import check_replaceable
from longtail.errors import UserError
from longtail.files import write_bytes
from longtail.segmentation.overlays import hex_colour

CLASSES, SHARES, MASKS, OVERLAYS = "classes.csv", "shares.csv", "masks", "overlays"
_CLASSES_HEAD = ("index_in_mask", "class", "colour", "red", "green", "blue")
_ENDINGS = {MASKS: ".png", OVERLAYS: ".jpg"}


def check_place(place: Path, overwrite: bool) -> None:
    """Raise unless ``place`` is free, or holds an earlier call's results (and nothing else) and may be overwritten."""
    check_replaceable(place, (CLASSES, SHARES, MASKS, OVERLAYS), overwrite)
    if not place.exists() or not any(place.iterdir()):
        return
    try:
        ours = (place / CLASSES).read_text(encoding="utf-8").startswith(",".join(_CLASSES_HEAD))
    except (OSError, UnicodeDecodeError):
        ours = False
    if not ours:  # masks made by hand may well lie in a folder of that name
        raise UserError(f"--out {place} was not written by this command, so nothing there is deleted; choose another.")
    for folder, ending in _ENDINGS.items():
        for file in sorted((place / folder).iterdir()) if (place / folder).exists() else ():
            if file.suffix != ending or not file.is_file():
                raise UserError(f"--out {place} holds another file ({folder}/{file.name}); choose another folder.")


def clear_place(place: Path) -> None:
    """Delete what an earlier call wrote; ``classes.csv`` is replaced, so that the rest is known as ours until then."""
    (place / SHARES).unlink(missing_ok=True)
    for folder in _ENDINGS:
        for file in (place / folder).iterdir() if (place / folder).exists() else ():
            file.unlink()


def check_apart(files: Sequence[str], place: Path) -> None:
    """Raise if one of the images lies where masks are written."""
    for file in files:
        if Path(os.path.abspath(file)).is_relative_to(place.absolute()):
            raise UserError(f"{file} lies in --out {place}, where masks are written; choose another folder.")


def mask_names(files: Sequence[str]) -> list[str]:
    """Return a name for the mask of each image, unlike all others also where upper and lower case are one.

    The image's name without its ending; where that is not enough with the name of its folder before it, then with its
    ending, then with a number.
    """
    paths = [Path(file) for file in files]
    names = [path.stem for path in paths]
    in_folder = [path.absolute().parent.name for path in paths]
    for ends in (names, [path.name.replace(".", "_") for path in paths]):
        times = Counter(name.casefold() for name in names)
        names = [
            f"{folder}_{end}" if times[name.casefold()] > 1 else name
            for folder, end, name in zip(in_folder, ends, names, strict=True)
        ]
    taken = {name.casefold() for name in names}
    seen: set[str] = set()
    for place, name in enumerate(names):
        number, other = 1, name
        while other.casefold() in seen or (number > 1 and other.casefold() in taken):
            number += 1
            other = f"{name}_{number}"
        seen.add(other.casefold())
        names[place] = other
    return names


def class_table(class_names: Sequence[str], palette: Tensor) -> bytes:
    """Return ``classes.csv``: what the values of a mask mean, which are 0..C-1 in the model's order."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_CLASSES_HEAD)
    for index, (name, colour) in enumerate(zip(class_names, palette.cpu(), strict=True)):
        rows.writerow([index, name, hex_colour(colour), *colour.tolist()])
    return text.getvalue().encode("utf-8", "surrogateescape")


def write_file(path: Path, data: bytes) -> None:
    """Write one file of the folder, whole or not at all; a full disk is a :class:`UserError`."""
    try:
        write_bytes(path, data)
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror or error}.") from None
