"""Smoothing of a batch, each image with its own width."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.data.augment_levels import to_levels
from longtail.data.augment_tone import widest_float

_REACH = 3.5  # standard deviations: what a Gaussian has beyond moves no value by a level
_WEIGHT_BITS, _MIDDLE_BITS = 14, 2  # with the 8 bits of a level 24: whole numbers that float32 holds exactly


def gaussian_blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Convolve with a Gaussian, rows then columns; the outermost pixels continue beyond the border.

    The weights are whole multiples of 2**-14 that sum to 1, and the sums are whole numbers below 2**24: a flat image
    stays as it is, and the result does not depend on the batch, the device or the order of summing.
    ``PIL.ImageFilter.GaussianBlur``, which many published runs use, stands three box filters in for the Gaussian.

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
    weights = torch.softmax(exponent, dim=1).mul(1 << _WEIGHT_BITS).round().float()
    weights[:, reach] += (1 << _WEIGHT_BITS) - weights.sum(dim=1)
    rows = _convolve(images.float(), weights, dim=3)
    rows = rows.mul_(2.0 ** (_MIDDLE_BITS - _WEIGHT_BITS)).add_(0.5).floor_()
    total = _convolve(rows, weights, dim=2)
    return to_levels(total.mul_(2.0 ** -(_WEIGHT_BITS + _MIDDLE_BITS)).add_(0.5))


def _convolve(values: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Return the weighted sums along ``dim`` of float32 ``values [B, C, H, W]``; ``weights [B, taps]``."""
    batch, channels = values.shape[:2]
    taps, length = weights.shape[1], values.shape[dim]
    positions = torch.arange(-(taps // 2), length + taps // 2, device=values.device).clamp_(0, length - 1)
    extended = values.index_select(dim, positions)
    if values.device.type == "cpu":
        kernel = weights.repeat_interleave(channels, dim=0).view(
            batch * channels, 1, *((1, -1) if dim == 3 else (-1, 1))
        )
        planes = F.conv2d(extended.view(1, batch * channels, *extended.shape[2:]), kernel, groups=batch * channels)
        return planes.view(values.shape)
    # Accelerators may convolve with fewer digits than float32 has.
    total = torch.zeros_like(values)
    for tap, weight in enumerate(weights[:, :, None, None, None].unbind(1)):
        total.addcmul_(extended.narrow(dim, tap, length), weight)
    return total
