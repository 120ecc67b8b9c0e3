"""Mask files as they are stored: values, or colours, before anything is known of classes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from longtail.data.decode import BadImage, opened

Kind = Literal["value", "colour", "palette"]

_LOSSY = frozenset(("JPEG", "MPO"))


@dataclass(frozen=True)
class RawMask:
    """What a mask file holds.

    Attributes:
        kind: whether ``codes`` are values, colours, or places in a colour table of the file's own.
        codes: integers ``[H, W]``: gray levels, ``0xRRGGBB``, or places 0..255.
        colours: int32 ``[256]``, ``0xRRGGBB`` of each place of the file's own table (-1 = none); None without one.
    """

    kind: Kind
    codes: NDArray[Any]
    colours: NDArray[np.int32] | None = None


def read_raw_mask(path: str | os.PathLike[str]) -> RawMask:
    """Read a mask file exactly, at its own size; an alpha channel plays no part.

    Raises:
        BadImage: it cannot be read, is no integer image, or was stored as JPEG, which does not keep values.
    """
    with opened(path) as image:
        if image.format in _LOSSY:
            raise BadImage("a JPEG, which does not keep mask values; save masks as PNG")
        image.load()
        if image.mode in ("P", "PA"):
            table = np.full(256, -1, np.int32)
            colours = np.array(image.getpalette("RGB") or [], np.int32).reshape(-1, 3)
            table[: len(colours)] = pack(colours)
            places = image if image.mode == "P" else image.getchannel("P")
            return RawMask("palette", np.array(places), table)
        if image.mode in ("1", "L", "LA", "La"):
            gray = image if image.mode in ("1", "L") else image.getchannel("L")
            return RawMask("value", np.array(gray).astype(np.uint8, copy=False))
        if image.mode == "I" or image.mode.startswith("I;"):
            return RawMask("value", np.array(image).astype(np.int32))
        if image.mode == "F":
            raise BadImage("floating-point pixels, not mask values")
        rgb = np.array(image.convert("RGBX"))  # four bytes a pixel: one integer each
        return RawMask("colour", rgb.view(">u4")[..., 0].astype(np.uint32).view(np.int32) >> 8 & 0xFFFFFF)


def pack(colours: NDArray[Any]) -> NDArray[np.int32]:
    """Return ``0xRRGGBB``, int32 ``[...]``, of colours ``[..., 3]``, 0..255."""
    wide = colours.astype(np.int32)
    packed: NDArray[np.int32] = (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]
    return packed


def unpack(code: int) -> tuple[int, int, int]:
    """Return red, green and blue of ``0xRRGGBB``."""
    return code >> 16 & 255, code >> 8 & 255, code & 255


def is_gray(codes: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which colours ``0xRRGGBB`` have red, green and blue alike, bool ``[...]``."""
    gray: NDArray[np.bool_] = codes == (codes & 255) * 0x010101
    return gray
