"""Smoothing of a batch, each image with its own width."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longtail.data.augment_tone import widest_float

_REACH = 3.5  # standard deviations: what a Gaussian has beyond moves no value by a level
_WEIGHT_BITS, _MIDDLE_BITS = 14, 8  # 14 + 8 + 8 bits of a level stay below the 31 of an int32


def gaussian_blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Convolve with a Gaussian, rows then columns; the outermost pixels continue beyond the border.

    The weights are whole multiples of 2**-14 that sum to 1, and the sums are integers: a flat image stays as it
    is, and the result does not depend on the batch or the device. ``PIL.ImageFilter.GaussianBlur``, which many
    published runs use, stands three box filters in for the Gaussian.

    Args:
        images: uint8 ``[B, C, H, W]``.
        sigma: ``[B]``, standard deviations in pixels, above 0.
        largest: no ``sigma`` exceeds it (a number that need not be read from the device).

    Returns:
        uint8 ``[B, C, H, W]``, to the nearest level.
    """
    reach = math.ceil(_REACH * largest)
    offset = torch.arange(-reach, reach + 1, device=images.device)
    exponent = (offset / sigma.to(widest_float(images.device))[:, None]).square() * -0.5
    weights = torch.softmax(exponent, dim=1).mul(1 << _WEIGHT_BITS).round().to(torch.int32)
    weights[:, reach] += (1 << _WEIGHT_BITS) - weights.sum(dim=1, dtype=torch.int32)
    rows = _convolve(images.to(torch.int32), weights, dim=3)
    dropped = _WEIGHT_BITS - _MIDDLE_BITS
    rows = (rows + (1 << (dropped - 1))) >> dropped
    total = _convolve(rows, weights, dim=2)
    dropped = _WEIGHT_BITS + _MIDDLE_BITS
    return ((total + (1 << (dropped - 1))) >> dropped).to(torch.uint8)


def _convolve(values: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Return the weighted sums along ``dim`` of int32 ``values [B, C, H, W]``; ``weights [B, taps]``."""
    taps, length = weights.shape[1], values.shape[dim]
    positions = torch.arange(-(taps // 2), length + taps // 2, device=values.device).clamp_(0, length - 1)
    extended = values.index_select(dim, positions)
    total = torch.zeros_like(values)
    for tap, weight in enumerate(weights[:, :, None, None, None].unbind(1)):
        total.addcmul_(extended.narrow(dim, tap, length), weight)
    return total
