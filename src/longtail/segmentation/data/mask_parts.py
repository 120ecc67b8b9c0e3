"""One tree of images and masks, read: what it lists, what its files hold, and which classes that makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longtail.data.check_cache import default_cache
from longtail.data.path_table import PathTable
from longtail.errors import UserError
from longtail.segmentation.data.check_masks import Bad, check_masks
from longtail.segmentation.data.class_files import ClassEntry, find_classes
from longtail.segmentation.data.classes import ALWAYS_IGNORED, Classes, make_classes, numbered_entries
from longtail.segmentation.data.layouts import read_tree
from longtail.segmentation.data.mask_facts import PairFacts
from longtail.segmentation.data.mask_labels import UNKNOWN
from longtail.segmentation.data.mask_listing import MaskListing
from longtail.segmentation.data.mask_set import IGNORE, MaskFiles
from longtail.segmentation.data.raw_masks import is_gray, unpack
from longtail.segmentation_options import SegmentationOptions


@dataclass(frozen=True)
class MaskPart:
    """What a tree holds.

    Attributes:
        listing: its N good pairs.
        facts: of each.
        entries: the classes, where a file or the layout lists them.
        from_file: whether a file does; the colours that a layout knows are for overlays only.
        bad: files that cannot be used, with the reason.
    """

    listing: MaskListing
    facts: list[PairFacts]
    entries: Sequence[ClassEntry] | None
    from_file: bool
    bad: tuple[Bad, ...]


@dataclass(frozen=True)
class LabelledPart:
    """The same with labels.

    Attributes:
        listing: its N good pairs.
        classes: what its masks hold.
        pixels: int64 ``[N, C]``.
        sizes: int64 ``[N, 2]``, height and width.
        sums: int64 ``[N, 6]``, see :class:`PairFacts`.
        bad: files that cannot be used, with the reason.
    """

    listing: MaskListing
    classes: Classes
    pixels: Tensor
    sizes: Tensor
    sums: Tensor
    bad: tuple[Bad, ...]

    def files(self, size: tuple[int, int] | None) -> MaskFiles:
        """Return the good pairs, to be brought to ``size`` when they are read."""
        return MaskFiles(
            root=self.listing.root,
            images=PathTable(self.listing.images),
            masks=PathTable(self.listing.masks),
            read_mask=self.classes.reader,
            class_names=self.classes.names,
            palette=self.classes.palette,
            pixels=self.pixels,
            sizes=self.sizes,
            size=size,
        )


def read_part(
    folder: Path,
    name: str,
    options: SegmentationOptions,
    wanted: str | None,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> MaskPart:
    """List a tree and look at its files.

    Args:
        folder: the tree.
        name: what the user called it.
        options: how masks are to be read.
        wanted: the split to take alone, ``"train"`` or ``"test"``, where the tree is split; None = all of it.
        workers, progress: see :func:`check_masks`.

    Raises:
        UserError: see :func:`read_tree` and :func:`find_classes`; or there is no pair of the split.
    """
    listing = read_tree(folder, name)
    if listing.splits is not None and wanted is not None:
        places = [place for place, split in enumerate(listing.splits) if split == wanted]
        if not places:
            raise UserError(f"{name} holds no {wanted} image with a mask.")
        aside = len(listing) - len(places)
        note = f"{name}: its {aside} images of the other split are left aside."
        listing = replace(listing.select(places), splits=None, notes=(*listing.notes, note) if aside else listing.notes)
    entries: Sequence[ClassEntry] | None = listing.entries
    found = find_classes(folder, options.palette)
    from_file = found is not None and not _names_only(found[0], listing.entries)
    if found is not None and from_file:
        entries = found[0]
        listing = replace(listing, ignored=())
    looks = check_masks(listing, workers, default_cache(), progress)
    good = [place for place, look in enumerate(looks) if isinstance(look, PairFacts)]
    facts = [look for look in looks if isinstance(look, PairFacts)]
    bad = [look for look in looks if not isinstance(look, PairFacts)]
    return MaskPart(listing.select(good), facts, entries, from_file, (*listing.alone, *bad))


def label_parts(parts: Sequence[MaskPart], options: SegmentationOptions) -> list[LabelledPart]:
    """Return the parts with labels of the same classes: those of the first that lists them, or "class 0..max".

    Raises:
        UserError: two parts list other classes, or there are fewer than two that count; or no palette says what the
            colours of the masks stand for.
    """
    entries, from_file = next(
        ((part.entries, part.from_file) for part in parts if part.entries is not None), (None, False)
    )
    notes: tuple[str, ...] = ()
    if entries is None:
        entries, notes = _by_numbers(parts, options)
    labelled: list[LabelledPart] = []
    for part in parts:
        ignore = (*options.ignore, *part.listing.ignored)
        name = part.listing.name
        own, from_own = (part.entries, part.from_file) if part.entries else (entries, from_file)
        classes = make_classes(own, ignore, _zero_is_other(part.listing, options), name, from_own)
        if labelled and classes.names != labelled[0].classes.names:
            raise UserError(_other_classes(labelled[0], classes, name))
        classes = replace(classes, notes=() if labelled else (*classes.notes, *notes))
        labelled.append(_label(part, classes))
    return labelled


def _label(part: MaskPart, classes: Classes) -> LabelledPart:
    """Count the pixels of each class, and find masks that hold what is none."""
    pixels = np.zeros((len(part.facts), len(classes.names)), np.int64)
    bad: dict[int, Bad] = {}
    for place, fact in enumerate(part.facts):
        labels = classes.reader.labels_of(fact.kind, fact.codes, fact.own)
        unknown = labels == UNKNOWN
        if unknown.any():
            own = None if fact.own is None else fact.own[unknown]
            reason = classes.reader.complaint(fact.kind, fact.codes[unknown], fact.counts[unknown], own)
            bad[place] = (part.listing.masks[place], reason)
        counted = labels > IGNORE
        np.add.at(pixels[place], labels[counted], fact.counts[counted])
    good = [place for place in range(len(part.facts)) if place not in bad]
    return LabelledPart(
        part.listing.select(good),
        classes,
        torch.from_numpy(pixels[good]),
        torch.tensor([part.facts[place].size for place in good], dtype=torch.int64).view(-1, 2),
        torch.from_numpy(np.array([part.facts[place].sums for place in good], np.int64).reshape(-1, 6)),
        (*part.bad, *bad.values()),
    )


def _by_numbers(parts: Sequence[MaskPart], options: SegmentationOptions) -> tuple[list[ClassEntry], tuple[str, ...]]:
    """Return classes "class 0..max" after the values in the masks, and a note that says so."""
    values: set[int] = set()
    first = parts[0].listing
    for part in parts:
        for place, fact in enumerate(part.facts):
            codes = fact.codes
            if fact.kind == "colour":
                if not is_gray(codes).all():
                    code = int(codes[~is_gray(codes)][0])
                    raise UserError(
                        f"mask {part.listing.root / part.listing.masks[place]} holds colours, such as {unpack(code)}, "
                        "and no palette says what they stand for; write lines 'R G B name' into palette.txt in "
                        f"{part.listing.root}, or name such a file with --segmentation.palette."
                    )
                codes = codes & 255
            values.update(codes.tolist())
    zero_is_other = _zero_is_other(first, options)
    entries = numbered_entries(sorted(values), zero_is_other, options.ignore)
    if len(entries) < 2 and values == {0, ALWAYS_IGNORED}:
        raise UserError(
            f"the masks of {first.name} hold 0 and 255 only, and 255 counts nowhere; if it is a class, write the lines "
            f"'0 0 0 background' and '255 255 255 NAME' into palette.txt in {first.root}."
        )
    span = f"{entries[0].name}..{entries[-1].value!s}" if entries else "none"
    note = f"{first.name}: nothing names the classes, so they are {span} (classes.txt would name them)."
    return entries, (note,)


def _zero_is_other(listing: MaskListing, options: SegmentationOptions) -> bool:
    return listing.zero_is_other if options.zero_is_other is None else options.zero_is_other


def _names_only(found: Sequence[ClassEntry], built_in: Sequence[ClassEntry] | None) -> bool:
    """Return whether a file says nothing that the layout does not know better: the same names without colours."""
    if built_in is None or any(entry.colour is not None for entry in found):
        return False
    return [entry.name.lower() for entry in found] == [entry.name.lower() for entry in built_in]


def _other_classes(first: LabelledPart, classes: Classes, name: str) -> str:
    ours, theirs = first.classes.names, classes.names
    if len(ours) != len(theirs):
        difference = f"{len(theirs)} classes, not {len(ours)}"
    else:
        place = next(place for place, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
        difference = f"{theirs[place]!r} where that has {ours[place]!r}"
    return (
        f"--source.test {name} lists other classes than {first.listing.name} ({difference}); both must have the same "
        "classes in the same order."
    )
