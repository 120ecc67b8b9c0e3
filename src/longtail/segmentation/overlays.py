"""Classes in colour over their image, and where a prediction is wrong of one class; as pictures and as files."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from longtail.segmentation.data.mask_set import IGNORE

STRENGTH = 0.6
"""Share of the class's colour in an overlay; the rest is the image."""

FOUND, MISSED, FALSE, OTHER, NOWHERE = (0, 158, 115), (213, 94, 0), (86, 180, 233), (150, 150, 150), (0, 0, 0)
"""Colours of an error map (Okabe and Ito's): of the class, found; of the class, missed; taken for the class; wrong
among other classes; counts nowhere."""

_DIM = 0.35
_MOST_8_BIT = 256


def class_overlay(image: Tensor, labels: Tensor, palette: Tensor, strength: float = STRENGTH) -> Tensor:
    """Return ``image`` with every pixel tinted in its class's colour: uint8 ``[3, H, W]``.

    Args:
        image: uint8 ``[3, H, W]``.
        labels: ``[H, W]``, 0..C-1; pixels that are ``IGNORE`` keep the image, darkened.
        palette: uint8 ``[C, 3]``.
        strength: share of the colour, 0..1.
    """
    counts = labels != IGNORE
    colours = palette[labels.clamp(min=0).long()].permute(2, 0, 1).float()
    tinted = image.float().lerp(colours, strength)
    return torch.where(counts, tinted, image.float() * (1 - strength)).round().to(torch.uint8)


def error_map(image: Tensor, truth: Tensor, predicted: Tensor, label: int) -> Tensor:
    """Return where ``predicted`` is wrong about the class ``label``, over a dim gray image: uint8 ``[3, H, W]``.

    Args:
        image: uint8 ``[3, H, W]``.
        truth: ``[H, W]``, 0..C-1 or ``IGNORE``.
        predicted: ``[H, W]``, 0..C-1.
        label: the class that it is about.
    """
    gray = image.float().mean(0) * _DIM
    shown = gray.expand(3, -1, -1).clone()
    counts, is_class, said = truth != IGNORE, truth == label, predicted == label
    kinds = (
        (is_class & said, FOUND),
        (is_class & ~said, MISSED),
        (counts & ~is_class & said, FALSE),
        (counts & ~is_class & ~said & (truth != predicted), OTHER),
        (~counts, NOWHERE),
    )
    for where, colour in kinds:
        shown[:, where] = torch.tensor(colour, dtype=torch.float32)[:, None]
    return shown.round().to(torch.uint8)


def index_png(labels: Tensor, palette: Tensor) -> bytes:
    """Return class numbers ``[H, W]`` (0..C-1) as a PNG file whose pixel values they are.

    Up to 256 classes have 8 bits and their colours (``palette``, uint8 ``[C, 3]``) as the file's own palette, so that
    a viewer shows them; more have 16 bits, which PNG knows in gray only.
    """
    if len(palette) <= _MOST_8_BIT:
        image = Image.fromarray(labels.cpu().to(torch.uint8).numpy(), mode="L")
        image.putpalette(palette.cpu().flatten().tolist())
    else:
        image = Image.fromarray(labels.cpu().numpy().astype(np.uint16))
    file = io.BytesIO()
    image.save(file, "png", optimize=False)
    return file.getvalue()


def jpeg(pixels: Tensor, quality: int = 90) -> bytes:
    """Return ``pixels`` (uint8 ``[3, H, W]``) as a JPEG file."""
    file = io.BytesIO()
    picture(pixels).save(file, "jpeg", quality=quality)
    return file.getvalue()


def picture(pixels: Tensor) -> Image.Image:
    """Return ``pixels`` (uint8 ``[3, H, W]``) as an image of Pillow's."""
    return Image.fromarray(pixels.cpu().permute(1, 2, 0).contiguous().numpy())


def hex_colour(colour: Tensor) -> str:
    """Return a colour (uint8 ``[3]``) as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour.tolist())
