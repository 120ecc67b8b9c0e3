"""CamVid (Brostow et al. 2009) as segmentation papers use it: 701 frames, 11 classes, in either of two layouts."""

from __future__ import annotations

import re
from dataclasses import replace

from longtail.segmentation.data.class_files import ClassEntry
from longtail.segmentation.data.mask_listing import MaskListing

_FRAME = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_[^/]*$")
_CLASSES = """\
Sky 128 128 128
Building 128 0 0
Pole 192 192 128
Road 128 64 128
Pavement 60 40 222
Tree 128 128 0
SignSymbol 192 128 128
Fence 64 64 128
Car 64 0 128
Pedestrian 64 64 0
Bicyclist 0 128 192
Unlabelled 0 0 0"""


def camvid_classes() -> tuple[ClassEntry, ...]:
    """Return the 11 classes of SegNet's masks (values 0..10) with their colours, and void (11)."""
    parts = (line.split() for line in _CLASSES.splitlines())
    return tuple(ClassEntry(title, (int(red), int(green), int(blue))) for title, red, green, blue in parts)


def as_camvid(listing: MaskListing) -> MaskListing:
    """Return the listing with what is known of CamVid, if all its images are CamVid's frames by their names.

    Groups are the films, whose neighbouring frames are near copies. The official validation split stays unread.
    """
    films = [match[1] for match in map(_FRAME.search, listing.images) if match]
    if not films or len(films) < len(listing):
        return listing
    notes = listing.notes
    if listing.left_aside:
        notes = (
            f"{listing.name}: CamVid's official val split ({listing.left_aside} images) is left unread, because its "
            "classes are far from as frequent as in training and test (bicyclist 2.3 % of its pixels, 0.2 % of the "
            "test's), so that nothing should be chosen by it; --val_fraction holds out training frames.",
        )
    return replace(listing, groups=films, frames=True, entries=camvid_classes(), notes=notes)
