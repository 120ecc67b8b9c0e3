"""SegNet's layout of CamVid, ``train`` beside ``trainannot``, and its like with ``train_labels`` or ``train_masks``."""

from __future__ import annotations

from pathlib import Path

from longtail.segmentation.data.layouts.camvid import as_camvid
from longtail.segmentation.data.layouts.plain import splits_of
from longtail.segmentation.data.mask_listing import MaskListing, list_images, pair_by_stem

_MASKS = ("annot", "_labels", "_label", "_masks", "_mask")


def read_segnet(root: Path, name: str) -> MaskListing | None:
    """Return the pairs of such a tree; tested on ``test``, or on ``val`` where there is no test."""
    ending = next((ending for ending in _MASKS if (root / f"train{ending}").is_dir()), None)
    if ending is None or not (root / "train").is_dir():
        return None
    there = {word: word for word in ("train", "val", "test") if (root / f"{word}{ending}").is_dir()}
    return as_camvid(
        splits_of(
            name,
            there,
            lambda word: pair_by_stem(name, root, word, f"{word}{ending}"),
            lambda word: len(list_images(root, word)),
        )
    )
