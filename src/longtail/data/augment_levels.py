"""Arithmetic on 8-bit levels that every augmentation needs, written for what processors do many bytes at a time.

A masked choice and a conversion from float to bytes are slow where they are written plainly: on a CPU
``torch.where`` of bytes takes 3 ns a value and ``.to(torch.uint8)`` of floats 0.7, the forms here under 0.3.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_levels(values: Tensor) -> Tensor:
    """Drop the fraction of float ``values`` in 0..255 and return them as uint8."""
    return values.to(torch.int16).to(torch.uint8)


def choose(mask: Tensor, chosen: Tensor | int, other: Tensor) -> Tensor:
    """Return ``chosen`` where the bool ``mask`` is true and ``other`` elsewhere, levels in uint8.

    ``mask`` broadcasts to the others, and they to each other.
    """
    # One new tensor, changed in place: memory never touched before costs more than all of the arithmetic.
    return (other ^ chosen).bitwise_and_(mask.view(torch.uint8) * 255).bitwise_xor_(other)


def apply_table(images: Tensor, table: Tensor) -> Tensor:
    """Look every pixel of uint8 ``images [B, C, H, W]`` up in ``table`` (uint8 ``[B, C or 1, 256]``)."""
    index = table_places(images if table.shape[1] == images.shape[1] else images.flatten(1)[:, None])
    return table.reshape(-1).index_select(0, index.reshape(-1)).view(images.shape)


def table_places(images: Tensor) -> Tensor:
    """Return where uint8 ``images [B, C, ...]`` point to in a flattened ``[B, C, 256]``: ``[B, C, ...]``.

    int32, which halves the memory, unless there are more than 8 million tables.
    """
    batch, channels = images.shape[:2]
    kind = torch.int32 if batch * channels < 1 << 23 else torch.int64
    first = torch.arange(0, batch * channels * 256, 256, device=images.device, dtype=kind)
    return images.to(kind).add_(first.view(batch, channels, *[1] * (images.ndim - 2)))
