"""TrivialAugment on a batch: one operation a sample, its strength anywhere between nothing and the most.

Mueller & Hutter, "TrivialAugment: Tuning-free yet state-of-the-art data augmentation", ICCV 2021, in its wide space as
torchvision defines it: the identity and 13 operations equally likely, 31 strengths from 0 to the largest equally
likely, the sign random where there is one. Geometry takes the nearest pixel, and what comes from outside the image is
black. Translation counts in pixels, up to 32 whatever the image's size, as published for 32 x 32.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from longtail.data import augment_geometry as geometry
from longtail.data import augment_tone as tone
from longtail.data.augment_operations import Operation, Plan, apply_plan
from longtail.data.batch_augment import Draws, whole

BINS = 31
FURTHEST = 32  # pixels that a translation moves


def _shear_x(images: Tensor, amounts: Tensor) -> Tensor:
    return _affine(images, amounts, 1)


def _shear_y(images: Tensor, amounts: Tensor) -> Tensor:
    return _affine(images, amounts, 3)


def _affine(images: Tensor, amounts: Tensor, position: int) -> Tensor:
    """Replace one coefficient of the identity map by ``amounts [B]``."""
    maps = amounts.new_zeros(len(images), 6)
    maps[:, 0], maps[:, 4], maps[:, position] = 1, 1, amounts
    return geometry.affine_nearest(images, maps, fill=0)


def _translate_x(images: Tensor, amounts: Tensor) -> Tensor:
    reach = min(FURTHEST, images.shape[-1])
    left = amounts.to(torch.int64).clamp(-reach, reach)
    return geometry.shift_flip(images, torch.zeros_like(left), left, reach=(0, reach))


def _translate_y(images: Tensor, amounts: Tensor) -> Tensor:
    reach = min(FURTHEST, images.shape[-2])
    top = amounts.to(torch.int64).clamp(-reach, reach)
    return geometry.shift_flip(images, top, torch.zeros_like(top), reach=(reach, 0))


def _rotate(images: Tensor, amounts: Tensor) -> Tensor:
    return geometry.affine_nearest(images, geometry.rotation_maps(amounts, *images.shape[-2:]), fill=0)


# A magnitude is a bin, 0 to 30. Those that return tables come last.
OPERATIONS: dict[str, Operation] = {
    "shear_x": Operation(_shear_x, False, slope=0.99 / 30, signed=True),  # pixels a pixel
    "shear_y": Operation(_shear_y, False, slope=0.99 / 30, signed=True),
    "translate_x": Operation(_translate_x, False, slope=FURTHEST / 30, signed=True, whole="to zero"),  # pixels
    "translate_y": Operation(_translate_y, False, slope=FURTHEST / 30, signed=True, whole="to zero"),
    "rotate": Operation(_rotate, False, slope=135 / 30, signed=True),  # degrees
    "color": Operation(tone.color, False, start=1.0, slope=0.99 / 30, signed=True),  # factor
    "sharpness": Operation(tone.sharpness, False, start=1.0, slope=0.99 / 30, signed=True),
    "contrast": Operation(tone.contrast, True, start=1.0, slope=0.99 / 30, signed=True),
    "brightness": Operation(tone.brightness, True, start=1.0, slope=0.99 / 30, signed=True),
    "posterize": Operation(tone.posterize, True, start=8.0, slope=-6 / 30, whole="nearest"),  # bits kept
    "solarize": Operation(tone.solarize, True, start=255.0, slope=-255 / 30),  # threshold
    "autocontrast": Operation(lambda images, _: tone.autocontrast(images), True),
    "equalize": Operation(lambda images, _: tone.equalize(images), True),
}
OPERATION_NAMES = tuple(OPERATIONS)


def draw_plan(draws: Draws) -> Plan:
    """Draw each sample's operation, its position past the last for the identity, and its amount."""
    operation, strength, sign = draws.uniform("trivial_augment", 3)
    operation = whole(operation, len(OPERATIONS) + 1)
    amount = _amounts(operation.device)[operation, whole(strength, BINS), whole(sign, 2)]
    return Plan(operation[:, None], amount[:, None])


def trivial_augment(images: Tensor, draws: Draws) -> Tensor:
    """Augment uint8 ``images [B, C, H, W]`` by one random operation each."""
    return apply_plan(images, draw_plan(draws), OPERATIONS)


@lru_cache(maxsize=16)
def _amounts(device: torch.device) -> Tensor:
    """Return the amounts ``[14, 31, 2]`` of each operation, bin and sign (+, -), kept on the device."""
    rows = [[[row.amount(bin, sign) for sign in (1, -1)] for bin in range(BINS)] for row in OPERATIONS.values()]
    identity = [[0.0, 0.0]] * BINS
    return torch.tensor([*rows, identity], dtype=tone.widest_float(device), device=device)
