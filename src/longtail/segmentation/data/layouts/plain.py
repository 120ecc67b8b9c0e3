"""Folders of images beside folders of masks, with or without ``train``, ``val`` and ``test`` above or below."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from longtail.data.folder import SPLIT_WORDS
from longtail.errors import UserError
from longtail.segmentation.data.layouts.camvid import as_camvid
from longtail.segmentation.data.mask_listing import MaskListing, joined, list_images, pair_by_stem

IMAGES = ("images", "image", "imgs", "img")
MASKS = ("masks", "mask", "labels", "label", "annotations", "annotation", "gt")


def read_plain(root: Path, name: str) -> MaskListing | None:
    """Return the pairs of ``images/`` and ``masks/`` (or ``labels/``, ``annotations/``), whole or split.

    ``train``, ``val`` and ``test`` may lie in both of them, or hold both of them; letter case plays no part. Tested on
    ``test``, or on ``val`` where there is none.

    Raises:
        UserError: the two folders are split otherwise, or there are several of one kind.
    """
    images, masks = _one_of(root, IMAGES), _one_of(root, MASKS)
    if images is not None and masks is not None:
        below, of_masks = _splits_in(root / images), _splits_in(root / masks)
        if not below:
            return as_camvid(pair_by_stem(name, root, images, masks))
        if missing := next((split for split in below if split not in of_masks), None):
            raise UserError(
                f"{root / masks} has no folder {below[missing]}, where the masks of {images}/{below[missing]} belong."
            )
        return as_camvid(
            splits_of(
                name,
                below,
                lambda split: pair_by_stem(name, root, f"{images}/{below[split]}", f"{masks}/{of_masks[split]}"),
                lambda split: len(list_images(root, f"{images}/{below[split]}")),
            )
        )
    above = {
        split: folder
        for split, folder in _splits_in(root).items()
        if _one_of(root / folder, IMAGES) and _one_of(root / folder, MASKS)
    }
    if not above:
        return None
    places = {s: (f"{d}/{_one_of(root / d, IMAGES)}", f"{d}/{_one_of(root / d, MASKS)}") for s, d in above.items()}
    return as_camvid(
        splits_of(
            name,
            above,
            lambda split: pair_by_stem(name, root, *places[split]),
            lambda split: len(list_images(root, places[split][0])),
        )
    )


def splits_of(
    name: str, there: Mapping[str, str], pairs: Callable[[str], MaskListing], count: Callable[[str], int]
) -> MaskListing:
    """Return train and test of a tree that has the splits ``there``, one or more of ``train``, ``val`` and ``test``.

    Where there is a test split, ``val`` is only counted: what is chosen by is held out of the training images.
    """
    tested = next((split for split in ("test", "val") if split in there), None)
    if tested is None:
        return pairs("train")
    left = count("val") if tested == "test" and "val" in there else 0
    note = (
        f"{name}: the {left} images of {there.get('val')} are left aside; images to choose by are held out of the "
        "training images (--val_fraction)."
    )
    words = "given" if tested == "test" else "the validation split, as there is no test split"
    listing = joined([(split, pairs(word)) for split, word in (("train", "train"), ("test", tested)) if word in there])
    return replace(listing, test_split=words, left_aside=left, notes=(note,) if left else ())


def _splits_in(folder: Path) -> dict[str, str]:
    """Return which folders within ``folder`` are splits: ``train``, ``val`` or ``test``, and what each is called."""
    found: dict[str, str] = {}
    for inner in _folders(folder):
        split = SPLIT_WORDS.get(inner.lower())
        if split is not None:
            if split in found:
                raise UserError(f"{folder} holds both {found[split]} and {inner}; keep one of them.")
            found[split] = inner
    return found


def _one_of(folder: Path, words: tuple[str, ...]) -> str | None:
    """Return the folder within ``folder`` that has one of these names, in any letter case."""
    found = [inner for inner in _folders(folder) if inner.lower() in words]
    if len(found) > 1:
        raise UserError(f"{folder} holds both {found[0]} and {found[1]}; keep one of them, or move it elsewhere.")
    return found[0] if found else None


def _folders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read ({error.strerror}); change its permissions.") from None
