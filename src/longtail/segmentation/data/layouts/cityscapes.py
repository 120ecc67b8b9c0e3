"""Cityscapes (Cordts et al. 2016) and trees laid out alike: ``leftImg8bit/SPLIT/CITY`` with ``gtFine/SPLIT/CITY``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from longtail.errors import UserError
from longtail.segmentation.data.class_files import ClassEntry
from longtail.segmentation.data.mask_listing import MaskListing, joined, list_images, pair_by_stem

# Training id, id, name and colour of the 19 classes that count, as the official scripts have them.
_CLASSES = """\
7 road 128 64 128
8 sidewalk 244 35 232
11 building 70 70 70
12 wall 102 102 156
13 fence 190 153 153
17 pole 153 153 153
19 traffic light 250 170 30
20 traffic sign 220 220 0
21 vegetation 107 142 35
22 terrain 152 251 152
23 sky 70 130 180
24 person 220 20 60
25 rider 255 0 0
26 car 0 0 142
27 truck 0 0 70
28 bus 0 60 100
31 train 0 80 100
32 motorcycle 0 0 230
33 bicycle 119 11 32"""
_LARGEST_ID = 33
_SPLITS = {"train": "train", "val": "test"}
_ANNOTATIONS = ("gtFine", "gtCoarse")
_KINDS = ("labelTrainIds", "labelIds")


def read_cityscapes(root: Path, name: str) -> MaskListing | None:
    """Return the pairs of such a tree: train on ``train``, test on ``val``, as the masks of ``test`` are not public.

    Masks are ``*_labelTrainIds.png``, or else ``*_labelIds.png``, whose ids become the 19 classes that count. Groups
    are cities, which are held out as a whole.

    Raises:
        UserError: it has images but no masks.
    """
    if not (root / "leftImg8bit").is_dir():
        return None
    annotations = next((folder for folder in _ANNOTATIONS if (root / folder).is_dir()), None)
    there = [split for split in _SPLITS if (root / "leftImg8bit" / split).is_dir()]
    if annotations is None or not there:
        raise UserError(
            f"{root} has leftImg8bit/ but lacks {'gtFine/' if annotations is None else 'leftImg8bit/train/'}; unpack "
            "both of Cityscapes' archives there."
        )
    found = {kind: any(f"_{kind}." in file for file in list_images(root, annotations)) for kind in _KINDS}
    kind = next((kind for kind in _KINDS if found[kind]), None)
    if kind is None:
        raise UserError(f"{root / annotations} holds no *_labelTrainIds.png and no *_labelIds.png.")
    parts = [
        (
            _SPLITS[split],
            pair_by_stem(
                name,
                root,
                f"leftImg8bit/{split}",
                f"{annotations}/{split}",
                "_leftImg8bit",
                f"_{annotations}_{kind}",
            ),
        )
        for split in there
    ]
    listing = joined(parts)
    return replace(
        listing,
        splits=listing.splits if len(there) == 2 else None,
        groups=[path.split("/")[-2] for path in listing.images],
        entries=cityscapes_classes(ids=kind == "labelIds"),
        ignored=tuple(void_ids()) if kind == "labelIds" else (),
        test_split="the val split, as its test masks are not public" if len(there) == 2 else "",
    )


def cityscapes_classes(ids: bool) -> tuple[ClassEntry, ...]:
    """Return the 19 classes with their colours; with ``ids`` the values are those of masks of the 34 ids."""
    entries = []
    for train_id, line in enumerate(_CLASSES.splitlines()):
        number, *words, red, green, blue = line.split()
        value = int(number) if ids else train_id
        entries.append(ClassEntry(" ".join(words), (int(red), int(green), int(blue)), value))
    return tuple(entries)


def void_ids() -> list[int]:
    """Return the ids of masks of ids that count nowhere."""
    used = {entry.value for entry in cityscapes_classes(ids=True)}
    return [number for number in range(_LARGEST_ID + 1) if number not in used]
