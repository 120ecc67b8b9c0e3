"""ADE20K for scene parsing (SceneParse150, Zhou et al. 2017): ``images/`` and ``annotations/``, 150 classes."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from longtail.errors import UserError
from longtail.segmentation.data.class_files import ClassEntry
from longtail.segmentation.data.mask_listing import MaskListing, joined, pair_by_stem

NUM_CLASSES = 150
_SPLITS = {"training": "train", "validation": "test"}
_INFO = ("objectInfo150.csv", "objectInfo150.txt")


def read_ade20k(root: Path, name: str) -> MaskListing | None:
    """Return ADE20K's pairs: train on ``training``, test on ``validation``, whose figures are the published ones.

    The layout is known by ``objectInfo150``, or by file names that begin with ``ADE_``. Masks hold 1..150, 0 = other.

    Raises:
        UserError: ``objectInfo150`` cannot be understood, or a part of the tree is missing.
    """
    there = [split for split in _SPLITS if (root / "images" / split).is_dir()]
    info = next((root / file for file in _INFO if (root / file).is_file()), None)
    if not there or not (root / "annotations").is_dir():
        return None
    if info is None and next((root / "images" / there[0]).glob("ADE_*"), None) is None:
        return None
    for split in there:
        if not (root / "annotations" / split).is_dir():
            raise UserError(f"{root / 'annotations' / split} is missing, where the masks of images/{split} belong.")
    parts = [(_SPLITS[s], pair_by_stem(name, root, f"images/{s}", f"annotations/{s}")) for s in there]
    listing = joined(parts)
    return MaskListing(
        name,
        root,
        listing.images,
        listing.masks,
        listing.splits if "training" in there and "validation" in there else None,
        entries=tuple(ClassEntry(f"class {n}") for n in range(1, NUM_CLASSES + 1)) if info is None else read_info(info),
        zero_is_other=True,
        test_split="the validation split, as published" if len(there) == 2 else "",
        alone=listing.alone,
    )


def read_info(path: Path) -> tuple[ClassEntry, ...]:
    """Read the names of the 150 classes (the first of each one's synonyms), parted by commas or tabs.

    Raises:
        UserError: it does not list 150 names.
    """
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    rows = list(csv.reader(text.splitlines(), delimiter="\t" if "\t" in text.split("\n", 1)[0] else ","))
    column = next((n for n, head in enumerate(rows[0] if rows else []) if head.strip().lower() == "name"), None)
    if column is None:
        raise UserError(f"{path} has no column Name; take the file as ADE20K is published with.")
    names = [re.split(r"[;,]", row[column])[0].strip() for row in rows[1:] if len(row) > column]
    if len(names) != NUM_CLASSES:
        raise UserError(f"{path} lists {len(names)} classes, not {NUM_CLASSES}; take the file as ADE20K is published.")
    seen: dict[str, int] = {}
    for place, title in enumerate(names):  # "screen" and others are there twice
        seen[title] = seen.get(title, 0) + 1
        names[place] = title if seen[title] == 1 else f"{title} ({place + 1})"
    return tuple(map(ClassEntry, names))
