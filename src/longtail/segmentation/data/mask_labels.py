"""From what a mask file holds to class labels: one lookup, whether it holds values or colours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtail.data.decode import BadImage
from longtail.segmentation.data.mask_set import IGNORE
from longtail.segmentation.data.raw_masks import Kind, is_gray, read_raw_mask, unpack

UNKNOWN = -2
"""Label of a value or colour that is neither a class nor to be ignored."""

_COLOURS = 1 << 24


@dataclass(frozen=True)
class MaskLabels:
    """A mask reader (see ``mask_set.MaskReader``): hashable, so that its tables are made once a process.

    Attributes:
        values: pairs (mask value, label); ``IGNORE`` for values that count nowhere.
        colours: pairs (``0xRRGGBB``, label), likewise; () where the classes have no colours in the masks.
        gray_is_colour: gray masks are looked up among ``colours`` (which are then all gray), not among ``values``.
    """

    values: tuple[tuple[int, int], ...]
    colours: tuple[tuple[int, int], ...] = ()
    gray_is_colour: bool = False

    def __call__(self, path: Path) -> Tensor:
        """Return the labels of a mask file, int16 ``[H, W]``.

        Raises:
            BadImage: the file cannot be read, or holds a value or colour that is no class.
        """
        raw = read_raw_mask(path)
        if raw.kind == "colour" and self.colours:
            labels = _colour_table(self)[raw.codes] + np.int16(UNKNOWN)
        else:
            codes = np.unique(raw.codes) if raw.codes.dtype != np.uint8 else np.arange(256)
            if raw.kind == "palette":  # how the table is understood hangs on the places that are used
                codes = np.flatnonzero(np.bincount(raw.codes.ravel(), minlength=256))
            own = None if raw.colours is None else raw.colours[codes]
            known = self.labels_of(raw.kind, codes, own)
            if raw.codes.dtype == np.uint8:
                table = np.full(256, UNKNOWN, np.int16)
                table[codes] = known
                labels = table[raw.codes]
            else:
                labels = known[np.searchsorted(codes, raw.codes)]
        if (labels == UNKNOWN).any():
            codes, counts = np.unique(raw.codes[labels == UNKNOWN], return_counts=True)
            own = None if raw.colours is None else raw.colours[codes]
            raise BadImage(self.complaint(raw.kind, codes, counts, own))
        return torch.from_numpy(labels)

    def labels_of(self, kind: Kind, codes: NDArray[Any], own: NDArray[np.int32] | None = None) -> NDArray[np.int16]:
        """Return the label of each of a mask's codes, int16 ``[K]``; ``UNKNOWN`` for what is no class.

        A mask with a colour table of its own (mode P) holds values, unless the classes have colours and all that the
        mask uses are among them: such files are colour masks that a program has made smaller. One that uses some of
        the classes' colours and some others is taken to hold values only if these agree with the colours.

        Args:
            kind: of the mask.
            codes: all codes that occur in it, once each, ``[K]``.
            own: the colours of ``codes`` in the mask's own table, int32 ``[K]``, for kind ``palette``.
        """
        by_value = _look_up(self.values, codes)
        if kind == "value":
            return _look_up(self.colours, codes * 0x010101) if self.gray_is_colour else by_value
        if kind == "colour":
            if self.colours:
                return _look_up(self.colours, codes)
            gray = is_gray(codes)
            return np.where(gray.all(), _look_up(self.values, codes & 255), np.int16(UNKNOWN)).astype(np.int16)
        if own is None or not self.colours or ((own[codes] == codes * 0x010101).all() and not self.gray_is_colour):
            return by_value
        by_colour = _look_up(self.colours, own[codes])
        known = by_colour != UNKNOWN
        if known.all() or (known.any() and bool((by_colour != by_value)[known].any())):
            return by_colour
        return by_value

    def complaint(
        self, kind: Kind, codes: NDArray[Any], counts: NDArray[Any], own: NDArray[np.int32] | None = None
    ) -> str:
        """Return in a few words which codes are no class; ``counts [K]`` are the pixels of ``codes [K]``."""
        first, more = int(counts.argmax()), ""
        if len(codes) > 1:
            more = f" (and {len(codes) - 1} more such)"
        code, pixels = int(codes[first]), int(counts[first])
        pixels_of = f"in {pixels} pixel{'s' * (pixels != 1)}{more}"
        if kind == "colour" and not self.colours:
            return f"colour {unpack(code)} {pixels_of}, but no palette says what it stands for"
        if kind == "colour":
            return f"colour {unpack(code)} {pixels_of} is none of the palette's"
        if kind == "palette" and own is not None and self.colours:
            return f"colour {unpack(int(own[first]))} {pixels_of} is none of the palette's"
        classes = sorted(value for value, label in self.values if label != IGNORE)
        span = f"{classes[0]}..{classes[-1]}" if classes else "none"
        if self.gray_is_colour:
            return f"gray level {code} {pixels_of} is none of the palette's"
        return f"mask value {code} {pixels_of} is no class (classes are {span})"


def _look_up(pairs: tuple[tuple[int, int], ...], codes: NDArray[Any]) -> NDArray[np.int16]:
    known = dict(pairs)
    return np.array([known.get(code, UNKNOWN) for code in codes.tolist()], np.int16)


@lru_cache(maxsize=4)
def _colour_table(reader: MaskLabels) -> NDArray[np.int16]:
    """Return label - ``UNKNOWN`` of every colour, int16 ``[2^24]``: 0 = not known, so that few pages are touched."""
    table = np.zeros(_COLOURS, np.int16)
    for code, label in reader.colours:
        table[code] = label - UNKNOWN
    return table
