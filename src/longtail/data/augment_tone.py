"""Tone and colour of batched augmentation, level by level as Pillow's ``ImageOps`` and ``ImageEnhance``.

An operation that maps one channel value to another returns uint8 lookup tables ``[B, C, 256]``, or
``[B, 1, 256]`` if the channels share them, so that many operations share one lookup. Colour and
sharpness mix several values and return images. Images are uint8 ``[B, C, H, W]``: C = 1 gray, 3 RGB.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from longtail.data.augment_levels import choose, table_places, to_levels


@lru_cache(maxsize=16)
def widest_float(device: torch.device) -> torch.dtype:
    """Return float64 where the device has it (Pillow computes in it), else float32."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.float32
    return torch.float64


def invert(images: Tensor) -> Tensor:
    """Return the lookup table ``[1, 1, 256]`` that turns black to white and back."""
    return (255 - _levels(images)).to(torch.uint8)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Return tables ``[B, 1, 256]`` that keep the highest ``bits [B]`` (0, which is black, to 8) of a value."""
    dropped = (8 - bits).to(torch.int64)[:, None, None]
    return ((_levels(images) >> dropped) << dropped).to(torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Return tables ``[B, 1, 256]`` that invert the values not below ``threshold [B]`` (0 to 256)."""
    level = _levels(images)
    return torch.where(level < threshold[:, None, None], level, 255 - level).to(torch.uint8)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Return tables ``[B, 1, 256]`` that blend with black: ``factor [B]`` 0 is black, 1 the image."""
    return _blend(torch.zeros(1, device=images.device), _levels(images).float(), factor[:, None, None])


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Return tables ``[B, 1, 256]`` that blend with the mean gray: ``factor [B]`` 0 is flat, 1 the image."""
    count = images.shape[-2] * images.shape[-1]
    total = luma(images).to(torch.int32).sum(dim=(2, 3), dtype=torch.int64)
    mean = (2 * total + count) // (2 * count)  # rounds half up
    return _blend(mean[:, :, None].float(), _levels(images).float(), factor[:, None, None])


def solarize_add(images: Tensor, added: Tensor) -> Tensor:
    """Return tables ``[B, 1, 256]`` that add ``added [B]`` (whole, not negative) to the values under 128."""
    level = _levels(images)
    raised = (level + added.to(torch.int64)[:, None, None]).clamp(max=255)
    return torch.where(level < 128, raised, level).to(torch.uint8)


def autocontrast(images: Tensor) -> Tensor:
    """Return tables ``[B, C, 256]`` that stretch each channel's values to 0..255; a flat channel stays."""
    pixels = images.flatten(2)
    low, high = pixels.amin(dim=2, keepdim=True).to(torch.int64), pixels.amax(dim=2, keepdim=True).to(torch.int64)
    stretches = high > low
    scale = torch.where(stretches, 255.0 / (high - low).to(widest_float(images.device)), 1.0)
    return to_levels((_levels(images) * scale).add_(-low * stretches * scale).clamp_(0, 255))


def equalize(images: Tensor) -> Tensor:
    """Return tables ``[B, C, 256]`` that flatten each channel's histogram; the identity under 256 pixels."""
    batch, channels = images.shape[:2]
    pixels = images.flatten(2)
    # Not `bincount`, which asks an accelerator for the largest value and waits for it.
    places = table_places(pixels).reshape(-1).to(torch.int64)
    one = torch.ones(1, dtype=torch.int32, device=images.device)
    histogram = one.new_zeros(batch * channels * 256).scatter_add_(0, places, one.expand(len(places)))
    # Whole numbers up to the pixel count: float32 divides them faster than integers and floors to the same.
    histogram = histogram.view(batch, channels, 256).float()
    last = histogram.gather(2, pixels.amax(dim=2, keepdim=True).to(torch.int64))
    step = torch.floor((pixels.shape[2] - last) / 255)
    below = histogram.cumsum(dim=2).sub_(histogram)
    flattened = to_levels(below.add_(torch.floor(step / 2)).div_(step.clamp(min=1)).clamp_(max=255))
    return choose(step > 0, flattened, _levels(images).to(torch.uint8))


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the gray image: ``factor [B]`` 0 is gray, 1 the image. One channel has no colour."""
    if images.shape[1] == 1:
        return images
    values = images.float()
    return _blend(_gray(values), values, factor[:, None, None, None])


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the smoothed image: ``factor [B]`` 0 is smooth, 1 the image, above 1 sharper.

    Smoothing weighs the centre 5 and its eight neighbours 1 (``ImageFilter.SMOOTH``). The outermost pixels
    are copied, so an image under 3 x 3 stays as it is.
    """
    if min(images.shape[-2:]) < 3:
        return images
    values = images.float().contiguous()
    width, count = images.shape[-1], images.numel()
    # The batch as one long row: a neighbour is so many places away. Borders mix with what lies beyond, and are copied.
    line, inner = values.view(-1), slice(width + 1, count - width - 1)
    rows = (line[: count - 2 * width] + line[width : count - width]).add_(line[2 * width :])
    total = (rows[:-2] + rows[1:-1]).add_(rows[2:]).add_(line[inner], alpha=4)
    smooth = torch.empty_like(values)
    # A sum comes no closer to a rounding edge than half a thirteenth, so float32 decides right.
    torch.floor(total.add_(6.5).div_(13), out=smooth.view(-1)[inner])
    for border in (0, -1):
        smooth[:, :, border], smooth[..., border] = values[:, :, border], values[..., border]
    return _blend(smooth, values, factor[:, None, None, None])


def luma(images: Tensor) -> Tensor:
    """Return the gray image, whole float32 ``[B, 1, H, W]``: ITU-R 601 weights in 16 bits, as Pillow's "L".

    Every intermediate value is a whole number under 2**24, so float32 is exact (and faster than integers).
    """
    return _gray(images.float())


def _gray(values: Tensor) -> Tensor:
    if values.shape[1] == 1:
        return values
    red, green, blue = torch.split(values, 1, dim=1)
    return (red * 19595).add_(green * 38470).add_(blue * 7471).add_(0x8000).div_(65536).floor_()


def _levels(images: Tensor) -> Tensor:
    """Return the identity table, int64 ``[1, 1, 256]``."""
    return torch.arange(256, device=images.device).view(1, 1, 256)


def _blend(base: Tensor, values: Tensor, factor: Tensor) -> Tensor:
    """Return ``base + factor * (values - base)`` in float32, clipped and truncated, as ``Image.blend``."""
    return to_levels(((values - base) * factor.float()).add_(base).clamp_(0, 255))
