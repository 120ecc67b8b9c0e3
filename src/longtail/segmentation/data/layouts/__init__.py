"""The layouts in which trees of images and masks are found. A new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from longtail.errors import UserError
from longtail.segmentation.data.layouts.ade20k import read_ade20k
from longtail.segmentation.data.layouts.cityscapes import read_cityscapes
from longtail.segmentation.data.layouts.plain import read_plain
from longtail.segmentation.data.layouts.segnet import read_segnet
from longtail.segmentation.data.mask_listing import MaskListing

Layout = Callable[[Path, str], MaskListing | None]
"""``layout(folder, name)``: what lies there; None if it is laid out otherwise."""

LAYOUTS: tuple[Layout, ...] = (read_cityscapes, read_ade20k, read_segnet, read_plain)
"""In the order in which they are tried: the special ones first."""

_SEEN = 4


def read_tree(root: Path, name: str) -> MaskListing:
    """Return the pairs in the folder ``root``, whatever its layout.

    Raises:
        UserError: it has none of the layouts, or holds no pair.
    """
    for layout in LAYOUTS:
        listing = layout(root, name)
        if listing is not None:
            break
    else:
        inside = sorted(entry.name for entry in root.iterdir() if entry.name[0] != ".")
        seen = ", ".join(inside[:_SEEN]) + (", ..." if len(inside) > _SEEN else "") if inside else "nothing"
        raise UserError(
            f"{root} has no layout of images with masks (it holds {seen}); put them into images/ and masks/, with or "
            "without train/ and test/ above or below, or give a tree laid out as ADE20K, Cityscapes or CamVid."
        )
    if not len(listing) and not listing.alone:
        raise UserError(f"{root} holds no image with a mask.")
    return listing
