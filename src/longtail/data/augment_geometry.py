"""Geometry of batched augmentation: every sample has its own map, the whole batch is one gather.

All kernels take uint8 images ``[B, C, H, W]`` and return the same shape and type. An affine map is written as
Pillow writes it, ``(a, b, c, d, e, f)``: the output pixel (x, y) reads the input at (a x + b y + c,
d x + e y + f), where pixel centres lie at half-integers. The results agree with ``PIL.Image.transform``. Its
bicubic kernel has a = -1 (``PIL.Image.resize`` uses -0.5, ``grid_sample`` -0.75), hence our own taps.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.data.augment_levels import choose, to_levels
from longtail.data.augment_tone import widest_float

Fill = int | Tensor  # the value outside the image: one for all channels, or uint8 ``[C]``

_FIXED = 1 << 16  # Pillow's nearest-neighbour transform counts in 16.16 fixed point


def gather_pixels(images: Tensor, rows: Tensor, columns: Tensor, fill: Fill) -> Tensor:
    """Read pixels at ``rows`` and ``columns``; what lies outside the image is ``fill``.

    Both are int64 and broadcast to ``[B, ...]``; the result is ``[B, C, ...]``.
    """
    batch, channels, height, width = images.shape
    # A frame of one fill pixel: clamping sends "outside" there, on whatever small shapes rows and columns have.
    if isinstance(fill, int):
        framed = F.pad(images, (1, 1, 1, 1), value=fill)
    else:
        framed = fill.view(1, channels, 1, 1).repeat(batch, 1, height + 2, width + 2)
        framed[:, :, 1:-1, 1:-1] = images
    return _take(framed, (rows.clamp(-1, height) + 1) * (width + 2) + (columns.clamp(-1, width) + 1))


def _take(images: Tensor, places: Tensor) -> Tensor:
    """Read pixels of images ``[B, C, H, W]`` by their places in a flattened channel, int64 ``[B, ...]``."""
    batch, channels = images.shape[:2]
    taken = images.flatten(2).gather(2, places.reshape(batch, 1, -1).expand(-1, channels, -1))
    return taken.view(batch, channels, *places.shape[1:])


def shift_flip(
    images: Tensor,
    top: Tensor,
    left: Tensor,
    flip: Tensor | None = None,
    fill: int = 0,
    reach: tuple[int, int] | None = None,
) -> Tensor:
    """Shift by whole pixels with ``fill`` outside, then mirror left-right where ``flip`` (bool ``[B]``) is true.

    ``top`` and ``left`` (int64 ``[B]``) say which input row and column comes first: zero padding by p, then a
    crop at offset o, is ``o - p``. A positive shift reads below and to the right: the picture moves up and left.
    No shift exceeds ``reach``, rows and columns; None takes the image's sides, beyond which all is ``fill``.
    """
    batch, channels, height, width = images.shape
    if reach is None:
        reach = height, width
        top, left = top.clamp(-height, height), left.clamp(-width, width)
    if flip is not None:
        images = choose(flip[:, None, None, None], images.flip(-1), images)
        left = torch.where(flip, -left, left)  # mirrored first, it moves the other way
    padded = F.pad(images, (reach[1], reach[1], reach[0], reach[0]), value=fill)
    plane, row = padded.stride()[1:3]
    # Every place of the padded batch is the corner of a window, and a window is copied row by row: a tenth of what
    # reading pixel by pixel costs.
    windows = padded.as_strided(
        (padded.numel() - (channels - 1) * plane - (height - 1) * row - width + 1, channels, height, width),
        (1, plane, row, 1),
    )
    first = torch.arange(batch, device=images.device) * (channels * plane) + (reach[0] * row + reach[1])
    return windows.index_select(0, first.add_(top * row).add_(left))


def affine_nearest(images: Tensor, maps: Tensor, fill: Fill) -> Tensor:
    """Apply affine ``maps [B, 6]`` with the nearest pixel, ``fill`` outside (Pillow's ``NEAREST``)."""
    a, b, c, d, e, f = maps.unbind(1)
    coefficients = torch.stack([a, b, c + 0.5 * a + 0.5 * b, d, e, f + 0.5 * d + 0.5 * e])
    fixed = torch.floor(coefficients * _FIXED + 0.5).to(torch.int64)[:, :, None, None]
    height, width = images.shape[-2:]
    y = torch.arange(height, device=images.device)[:, None]
    x = torch.arange(width, device=images.device)
    columns = ((fixed[0] * x + fixed[2]) + fixed[1] * y) >> 16
    rows = ((fixed[3] * x + fixed[5]) + fixed[4] * y) >> 16
    return gather_pixels(images, rows, columns, fill)


def shear_bicubic(images: Tensor, amounts: Tensor, fill: Fill) -> Tensor:
    """Shear left-right: row y reads ``amounts [B]`` * (y + 1/2) pixels to the right, ``fill`` outside.

    Agrees with Pillow's ``AFFINE`` map (1, amount, 0, 0, 1, 0) and ``BICUBIC``. No row mixes with another, so
    4 of its 16 taps do. Arithmetic is in the type of ``amounts``; float64 gives Pillow's bits. For an up-down
    shear transpose the images before and after.
    """
    width = images.shape[-1]
    y, x = _centres(images, amounts.dtype)
    source = x + amounts[:, None, None] * y
    left = torch.floor(source - 0.5)
    t = (source - 0.5).sub_(left)[:, None]
    tap = torch.arange(-1, 3, device=images.device)[:, None, None]
    places = (left.long()[:, None] + tap).clamp_(0, width - 1).add_(y.long() * width)
    # Differences of levels are exact in 16 bits: only what the fraction takes part in needs the wide type.
    v0, v1, v2, v3 = _take(images, places).to(torch.int16).unbind(2)
    value = (t * (v1 - v0 - v2 + v3)).add_(2 * (v0 - v1) + v2 - v3)
    value = value.mul_(t).add_(v2 - v0).mul_(t).add_(v1)
    return _fill_where((source < 0) | (source >= width), to_levels(value.clamp_(0, 255)), fill)


def affine_bilinear(images: Tensor, maps: Tensor, fill: Fill, extend: bool = False) -> Tensor:
    """Apply affine ``maps [B, 6]`` with 4 taps, to the nearest level.

    A tap outside the image counts as ``fill``, so the border fades. With ``extend`` the outermost pixels reach
    to the border instead, and only a point outside the image is ``fill``, as in Pillow's ``BILINEAR`` (which drops
    the fraction of a level).
    """
    y, x = _centres(images, maps.dtype)
    a, b, c, d, e, f = maps[:, :, None, None].unbind(1)
    if not extend:
        return _sample_bilinear(images, a * x + b * y + c, d * x + e * y + f, fill)
    x, y = (a * x + c) + b * y, d * x + (e * y + f)
    height, width = images.shape[-2:]
    outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
    # `grid_sample` numbers the image from -1 to 1, and in float32: a place is off by 1e-5 pixels at most.
    grid = torch.empty(*outside.shape, 2, device=images.device)
    torch.mul(x, 2 / width, out=grid[..., 0])
    torch.mul(y, 2 / height, out=grid[..., 1])
    inside = F.grid_sample(images.float(), grid.sub_(1), padding_mode="border", align_corners=False)
    return _fill_where(outside, to_levels(inside.add_(0.5)), fill)


def resize_boxes(images: Tensor, boxes: Tensor) -> Tensor:
    """Enlarge ``boxes [B, 4]`` (int64: left, top, width, height), one an image, to the images' size.

    Bilinear between pixel centres, to the nearest level. What lies beyond a box has no influence, as if it had been
    cut out first; a box is never larger than its image, so that nothing needs smoothing.
    """
    batch, channels, rows, columns = images.shape
    y, x = _centres(images, widest_float(images.device))
    left, top, width, height = boxes[:, :, None, None].unbind(1)
    x = left + (x * (width / columns)).clamp(min=0.5).minimum(width - 0.5) - 0.5
    y = top + (y * (height / rows)).clamp(min=0.5).minimum(height - 0.5) - 0.5
    # Every row of the image once along itself, then rows are mixed: a box is enlarged, so that one serves several.
    first, to_right = torch.floor(x), torch.frac(x).float()[:, None]
    place = first.long()[:, None].expand(-1, channels, rows, -1)
    lines = images.gather(3, place).float()
    lines.add_((images.gather(3, (place + 1).clamp_(max=columns - 1)).float() - lines).mul_(to_right))
    first, to_below = torch.floor(y), torch.frac(y).float()[:, None]
    start = torch.arange(0, batch * channels * rows, rows, device=images.device).view(batch, channels, 1)
    row = first.long()[:, None, :, 0]
    flat, shape = lines.view(-1, columns), images.shape
    upper = flat.index_select(0, (start + row).view(-1)).view(shape)
    lower = flat.index_select(0, (start + (row + 1).clamp_(max=rows - 1)).view(-1)).view(shape)
    return to_levels(lower.sub_(upper).mul_(to_below).add_(upper).add_(0.5).clamp_(0, 255))


def rotation_maps(degrees: Tensor, height: int, width: int, scale: Tensor | None = None) -> Tensor:
    """Return maps ``[B, 6]`` that turn the picture counter-clockwise by ``degrees [B]`` about its centre.

    ``scale [B]`` also enlarges the picture by that factor.
    """
    angle = degrees * (-math.pi / 180)
    shrink = torch.ones_like(angle) if scale is None else 1 / scale
    cos, sin = torch.cos(angle) * shrink, torch.sin(angle) * shrink
    x, y = width / 2, height / 2
    return torch.stack([cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y], dim=1)


def _sample_bilinear(images: Tensor, x: Tensor, y: Tensor, fill: Fill) -> Tensor:
    """Read the images at (x, y), which broadcast to ``[B, H, W]``; a tap outside counts as ``fill``."""
    top, left = torch.floor(y - 0.5), torch.floor(x - 0.5)
    tap = torch.arange(2, device=images.device)[:, None, None]
    rows, columns = top.long()[:, None] + tap, left.long()[:, None] + tap
    # Positions may need float64; mixing 8-bit levels does not.
    taps = gather_pixels(images, rows[:, :, None], columns[:, None, :], fill).float()
    to_right, to_below = (x - 0.5 - left).float()[:, None, None], (y - 0.5 - top).float()[:, None]
    lines = taps[:, :, :, 0] + to_right * (taps[:, :, :, 1] - taps[:, :, :, 0])
    value = lines[:, :, 0] + to_below * (lines[:, :, 1] - lines[:, :, 0])
    return to_levels(value.add_(0.5).clamp_(0, 255))


def _fill_where(outside: Tensor, images: Tensor, fill: Fill) -> Tensor:
    """Return the images ``[B, C, H, W]`` with ``fill`` where ``outside [B, H, W]``."""
    return choose(outside[:, None], fill if isinstance(fill, int) else fill[:, None, None], images)


def _centres(images: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the y ``[H, 1]`` and x ``[1, W]`` of the pixel centres."""
    height, width = images.shape[-2:]
    y = torch.arange(height, device=images.device, dtype=dtype)[:, None] + 0.5
    return y, torch.arange(width, device=images.device, dtype=dtype)[None, :] + 0.5
