"""Which mask values and colours are classes, and which count nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longtail.errors import UserError
from longtail.segmentation.data.class_files import ClassEntry
from longtail.segmentation.data.mask_labels import MaskLabels
from longtail.segmentation.data.mask_set import IGNORE
from longtail.segmentation.data.raw_masks import pack

ALWAYS_IGNORED = 255
_VOID = frozenset("void ignore ignored unlabelled unlabeled".split())
_VOID_AT_AN_END = "other"
_MOST_CLASSES = 32_000  # labels are int16


@dataclass(frozen=True)
class Classes:
    """The classes of a set of masks.

    Attributes:
        names: C names, in label order.
        palette: uint8 ``[C, 3]``.
        reader: makes labels of mask files.
        notes: sentences for the user, on what counts nowhere.
    """

    names: tuple[str, ...]
    palette: Tensor
    reader: MaskLabels
    notes: tuple[str, ...]


def make_classes(entries: Sequence[ClassEntry], ignore: Sequence[int], zero_is_other: bool, name: str) -> Classes:
    """Return what the entries of a list stand for.

    Entries without a mask value have their place in the list, from 0, or from 1 where 0 is other. One named void,
    ignore(d) or unlabel(l)ed counts nowhere, and so does ``other`` at either end of the list; those after it close up.

    Args:
        entries: as listed.
        ignore: mask values that count nowhere, beside 255.
        zero_is_other: whether the masks hold 1..C, and 0 counts nowhere.
        name: of the data, for errors.

    Raises:
        UserError: fewer than two classes are left, or far too many.
    """
    ends = {0, len(entries) - 1}
    starts_void = _is_void(entries[0].name, True)
    first = 1 if zero_is_other and not starts_void else 0
    none = {ALWAYS_IGNORED, *ignore} | ({0} if zero_is_other else set())
    values: dict[int, int] = dict.fromkeys(sorted(none), IGNORE)
    colours: dict[int, int] = {}
    kept: list[ClassEntry] = []
    notes: list[str] = []
    for place, entry in enumerate(entries):
        value = place + first if entry.value is None else entry.value
        void = _is_void(entry.name, place in ends)
        if void or value in none:
            label = IGNORE
            why = "because of its name" if void else f"because mask value {value} does not"
            notes.append(f"{name}: {entry.name or 'a class'!r} (mask value {value}) counts nowhere, {why}.")
        else:
            label = len(kept)
            kept.append(ClassEntry(entry.name or f"class {value}", entry.colour, value))
        values[value] = label
        if entry.colour is not None:
            colours[int(pack(np.array(entry.colour)))] = label
    if len(kept) < 2:
        raise UserError(
            f"{name} has {len(kept)} class{'es' * (len(kept) != 1)} that count; segmentation needs two or more "
            "(what counts nowhere: --segmentation.ignore, --segmentation.zero_is_other, and classes named void)."
        )
    if len(kept) > _MOST_CLASSES:
        raise UserError(f"{name} has {len(kept)} classes; at most {_MOST_CLASSES} can be told apart.")
    gray = bool(colours) and all(code == (code & 255) * 0x010101 for code in colours)
    reader = MaskLabels(tuple(sorted(values.items())), tuple(sorted(colours.items())), gray)
    return Classes(tuple(entry.name for entry in kept), _palette(kept), reader, tuple(notes))


def numbered_entries(values: Sequence[int], zero_is_other: bool, ignore: Sequence[int]) -> list[ClassEntry]:
    """Return entries "class 0..max" for masks whose classes nothing names.

    Args:
        values: all that occur in them.
        zero_is_other, ignore: see :func:`make_classes`; values that count nowhere make no class.
    """
    none = {ALWAYS_IGNORED, *ignore}
    first = 1 if zero_is_other else 0
    last = max((value for value in values if value not in none), default=first)
    return [ClassEntry(f"class {value}", None, value) for value in range(first, last + 1) if value not in none]


def default_palette(count: int) -> Tensor:
    """Return ``count`` distinct colours, none of them black: uint8 ``[count, 3]``, those of PASCAL VOC in its order.

    The three lowest bits of a class's number become the highest bits of red, green and blue, and so on.
    """
    numbers = torch.arange(1, count + 1)
    bits = (numbers[:, None] >> torch.arange(24)) & 1
    weights = 128 >> torch.arange(8)
    return (bits.view(count, 8, 3) * weights[:, None]).sum(1).to(torch.uint8)


def _palette(entries: Sequence[ClassEntry]) -> Tensor:
    """Return the colours given; classes without one get those of the default palette that are not taken."""
    taken = {entry.colour for entry in entries}
    free = (tuple(colour) for colour in default_palette(2 * len(entries)).tolist() if tuple(colour) not in taken)
    return torch.tensor([entry.colour or next(free) for entry in entries], dtype=torch.uint8)


def _is_void(name: str, at_an_end: bool) -> bool:
    plain = name.strip().lower()
    return plain in _VOID or (at_an_end and plain == _VOID_AT_AN_END)
