"""Image files as they really are: any kind that Pillow reads becomes upright RGB, any failure one short reason.

Colour profiles are not applied: a CMYK or wide-gamut file is converted by Pillow's plain formulas.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import io
import logging
import math
import os
import re
import stat
import warnings
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.Image import Resampling, Transpose

from longtail.data.image_set import Framing
from longtail.data.tar_members import member_at

# What is read, in the order tried. Kinds that run other programs (EPS), draw vectors or are recognised by a byte or
# two, so that rubbish passes for them (TGA, PCX), are left out.
_PLUGINS = "Jpeg Png WebP Tiff Bmp Gif Ppm Jpeg2K Avif Mpo Ico Psd Sgi Qoi".split()
_FORMATS = "JPEG PNG WEBP TIFF BMP GIF PPM JPEG2000 AVIF MPO ICO PSD SGI QOI".split()

_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_FILTERS = {"bilinear": Resampling.BILINEAR, "bicubic": Resampling.BICUBIC}
_DEPTHS = (8, 12, 16, 24, 31)  # bits; 31 because Pillow holds 32-bit integers as signed ones
_WIDEST_ASPECT = 4 / 3  # of a random resized crop, as published
_OUT_OF_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))

# Pillow tells of odd TIFF files through this logger; without a handler Python prints that on stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class BadImage(Exception):
    """A file that gives no image.

    Attributes:
        reason: why, in a few words, without the path: ``"cut off"``, ``"no such file"``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_image(path: str | os.PathLike[str], least_side: int | None = None) -> Image.Image:
    """Return the file's first frame or page in mode RGB, upright (EXIF or XMP orientation applied).

    Transparent pixels are laid over white. Gray images of more than 8 bits a pixel are scaled as
    :func:`gray_levels` says; colour images of 16 bits a channel keep the upper 8. The ending of the name plays no part.

    Args:
        path: the file, or ``TAR::OFFSET:LENGTH:NAME`` for one inside a tar file.
        least_side: a JPEG may come at a half, a quarter or an eighth of its size as long as its shorter side keeps this
            many pixels, which is faster. Which one it is follows from the image's size and this number alone.

    Raises:
        BadImage: missing, not a file, not an image, cut off, damaged, without pixels, or beyond the number of pixels
            that Pillow takes for an attack.
    """
    with opened(path) as image:
        if least_side is not None:
            image.draft(None, (max(1, least_side), max(1, least_side)))
        return upright_rgb(image)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Open an image file without decoding it; what fails in the ``with`` block is a :class:`BadImage` too.

    The file is closed when the block ends.
    """
    _keep_pillow_quiet()
    start = b""
    try:
        with _bytes_of(path) as file:
            start = file.read(16)
            if not start:
                raise BadImage("empty, 0 bytes")
            with Image.open(file, formats=_formats()) as image:
                if min(image.size) < 1:
                    raise BadImage("no pixels")
                yield image
    except BadImage:
        raise
    except Exception as error:  # Pillow's readers raise whatever broken bytes lead them to, AttributeError included
        if isinstance(error, OSError) and error.errno in _OUT_OF_RESOURCES:
            raise  # says nothing about the file
        raise BadImage(_reason(error, start)) from error


def _bytes_of(path: str | os.PathLike[str]) -> IO[bytes]:
    member = member_at(path)
    if member is not None:
        data = member.read()
        if len(data) < member.length:
            raise BadImage("cut off, as its shard is")
        return io.BytesIO(data)
    kind = os.stat(path).st_mode
    if not stat.S_ISREG(kind):  # opening a pipe would wait for ever
        raise BadImage("a folder" if stat.S_ISDIR(kind) else "not a regular file")
    return open(path, "rb")


def _keep_pillow_quiet() -> None:
    """Ignore the warnings of Pillow's modules in this process: large images, corrupt EXIF, cut tags.

    ``warnings.catch_warnings`` cannot do this: it swaps the filters of all threads, and files are read in several.
    """
    quiet = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    if quiet not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return the names of the formats that this Pillow reads, loading their readers (not all of Pillow's)."""
    for plugin in _PLUGINS:
        with contextlib.suppress(ImportError):
            importlib.import_module(f"PIL.{plugin}ImagePlugin")
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _reason(error: Exception, start: bytes) -> str:
    """Put in a few words what ``error`` says of a file whose first bytes are ``start``."""
    text = " ".join(str(error).split())
    if isinstance(error, UnidentifiedImageError):
        accepts = (Image.OPEN[name][1] for name in _formats())
        return "cut off or damaged" if any(accept and accept(start) is True for accept in accepts) else "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return f"too large, over {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} million pixels"
    if isinstance(error, OSError) and error.strerror:
        return "no such file" if error.errno == errno.ENOENT else error.strerror.lower()
    if isinstance(error, MemoryError):
        return "too large for the memory there is"
    if isinstance(error, EOFError) or re.search(r"truncated|but only got|reached eof", text, re.IGNORECASE):
        return "cut off"
    if not text or re.search(r"decoder|data stream|invalid literal", text):  # says no more than that it went wrong
        return "cut off or damaged"
    return f"damaged: {text[:60]}"


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decode an opened image into RGB, upright, over white; a new image without metadata.

    Raises:
        BadImage: floating-point pixels with NaN or infinity. Pillow's own errors pass through.
    """
    image.load()
    method = _UPRIGHT.get(orientation(image))
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        rgb = Image.fromarray(_over_white(image)).convert("RGB")
    elif image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image
        rgba = straight.convert("RGBA")
        rgb = Image.new("RGB", rgba.size, "white")
        rgb.paste(rgba, mask=rgba.getchannel("A"))
    else:
        rgb = image.convert("RGB")
    if method is not None:
        rgb = rgb.transpose(method)
    rgb.info = {}
    return rgb


def orientation(image: Image.Image) -> int:
    """Return how an opened image is to be turned, 1..8 as EXIF counts; 1 where the metadata are broken."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a good image with a corrupt EXIF block stays a good image
        return 1


def _over_white(image: Image.Image) -> NDArray[np.uint8]:
    """Return an image of more than 8 bits a pixel as gray levels ``[H, W]``."""
    values = np.asarray(image)
    levels = gray_levels(values)
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # the one gray value that a PNG file says is transparent
        levels[values == clear] = 255
    return levels


def gray_levels(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale gray values ``[H, W]`` of any depth to 0..255, uint8.

    Integers: the file does not say how many of its bits are used, so the image's maximum tells: the smallest of 8, 12,
    16, 24 and 31 bits that holds it becomes 255. The steps are few so that the images of one set share one scale as a
    rule, dark ones too. Where they do not, as in a 12-bit set with an image whose brightest pixel is below 256, that
    image comes out 16 times too bright: convert such sets to 8 bits with a scale of your own. Values below 0 are black.
    Floating point: a maximum of 2 or less means 0..1 (interpolation overshoots 1 a little), else the rule above.

    Raises:
        BadImage: NaN or infinity.
    """
    highest = float(values.max())  # NaN if any value is
    if not np.isfinite([highest, float(values.min())]).all():
        raise BadImage("holds NaN or infinity")
    if values.dtype.kind == "f" and highest <= 2:
        full = 1.0
    else:
        full = next((2.0**bits - 1 for bits in _DEPTHS if highest <= 2.0**bits - 1), highest)
    # Float32 holds 16-bit values exactly; wider ones would be rounded before they are scaled.
    levels = np.multiply(values, 255 / full, dtype=np.float32 if values.dtype.itemsize <= 2 else np.float64)
    rounded: NDArray[np.uint8] = levels.clip(0, 255, out=levels).round(out=levels).astype(np.uint8)
    return rounded


def fit(image: Image.Image, framing: Framing, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Resize the shorter side to ``framing.resize`` and cut out the centre: uint8 ``[H, W, 3]``, in ``out`` if given.

    One antialiased resize reads only what the crop shows, so an image of 1 x 5000 pixels costs no more than others.
    Sizes and offsets are rounded as torchvision's Resize and CenterCrop round them. An image that already has the
    framing's size, and whose shorter side is ``framing.resize``, keeps its pixels. Equal to the two steps but for
    rounding, and for noise that bicubic enlarges: Pillow may take the two directions in the other order, and what
    overshoots 0..255 is clipped in between.
    """
    height, width = framing.size
    short, long = sorted(image.size)
    longer = framing.resize * long // short
    whole = (framing.resize, longer) if image.width <= image.height else (longer, framing.resize)  # width, height
    left, top = round((whole[0] - width) / 2), round((whole[1] - height) / 2)
    across, down = image.width / whole[0], image.height / whole[1]  # source pixels for one pixel here
    return crop(image, (left * across, top * down, width * across, height * down), framing, out)


def crop(
    image: Image.Image,
    box: tuple[float, float, float, float],
    framing: Framing,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Resize a box of the image to ``framing.size`` with antialiasing: uint8 ``[H, W, 3]``.

    Args:
        image: mode RGB.
        box: left, top, width and height, in pixels of ``image`` as it is (fewer where it was read at reduced size);
            fractions are fine. Filter taps at the border see the pixels next to the box.
        framing: the size and the interpolation.
        out: where the pixels go, uint8 ``[H, W, 3]`` of any strides, which saves a copy; None = a new array.
    """
    left, top, width, height = box
    # A sum of fractions may pass the edge by a rounding error.
    corners = (max(0, left), max(0, top), min(left + width, image.width), min(top + height, image.height))
    resized = image.resize(framing.size[::-1], _FILTERS[framing.interpolation], box=corners)
    if out is None:
        return np.array(resized)
    out[...] = np.asarray(resized)
    return out


def reduced_side(framing: Framing, lowest_area: float | None = None) -> int:
    """Return the shorter side that images must keep when read (see :func:`read_image`), in pixels.

    Enough for :func:`fit`, and for a random resized crop with aspect 3/4..4/3 whose area is at least ``lowest_area``
    (a share, 0..1) of the image: no crop then has fewer pixels than it is resized to.
    """
    if lowest_area is None:
        return framing.resize
    return max(framing.resize, math.ceil(max(framing.size) / math.sqrt(lowest_area / _WIDEST_ASPECT)))
