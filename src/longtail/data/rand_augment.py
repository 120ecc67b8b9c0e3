"""RandAugment on a batch: every sample draws its own operations and magnitudes.

Cubuk, Zoph, Shlens & Le, "RandAugment: Practical automated data augmentation with a reduced search space", NeurIPS
2020, with the operations and ranges that the published long-tailed ImageNet runs take from timm
(``rand-n2-m10-mstd0.5``): 15 operations, drawn with replacement, each done with probability 1/2 at a magnitude drawn
from a normal distribution and clipped to 0..10. In that set some operations are strongest at magnitude 0 (posterize
keeps no bit, solarize inverts all), and the enhancing ones change nothing near 5.

Shear, translation and rotation are bilinear; the published runs draw bilinear or bicubic for each image. What comes
from outside the image is the mean colour of ImageNet, and for gray images its gray value.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from longtail.data import augment_geometry as geometry
from longtail.data import augment_tone as tone
from longtail.data.augment_operations import Operation, Plan, apply_plan
from longtail.data.batch_augment import Draws, whole

FILL = (124, 116, 104)  # 255 times the mean (0.485, 0.456, 0.406)
LARGEST_MAGNITUDE = 10.0


def _affine(images: Tensor, amounts: Tensor, position: int) -> Tensor:
    """Replace one coefficient of the identity map by ``amounts [B]``."""
    maps = amounts.new_zeros(len(images), 6)
    maps[:, 0], maps[:, 4], maps[:, position] = 1, 1, amounts
    return geometry.affine_bilinear(images, maps, fill_color(images.shape[1], images.device), extend=True)


def _shear_x(images: Tensor, amounts: Tensor) -> Tensor:
    return _affine(images, amounts, 1)


def _shear_y(images: Tensor, amounts: Tensor) -> Tensor:
    return _affine(images, amounts, 3)


def _translate_x(images: Tensor, amounts: Tensor) -> Tensor:
    return _affine(images, amounts * images.shape[-1], 2)


def _translate_y(images: Tensor, amounts: Tensor) -> Tensor:
    return _affine(images, amounts * images.shape[-2], 5)


def _rotate(images: Tensor, amounts: Tensor) -> Tensor:
    maps = geometry.rotation_maps(amounts, *images.shape[-2:])
    return geometry.affine_bilinear(images, maps, fill_color(images.shape[1], images.device), extend=True)


OPERATIONS: dict[str, Operation] = {  # those that return tables last
    "rotate": Operation(_rotate, False, slope=3.0, signed=True),  # degrees
    "shear_x": Operation(_shear_x, False, slope=0.03, signed=True),  # pixels a pixel
    "shear_y": Operation(_shear_y, False, slope=0.03, signed=True),
    "translate_x": Operation(_translate_x, False, slope=0.045, signed=True),  # fraction of the side
    "translate_y": Operation(_translate_y, False, slope=0.045, signed=True),
    "color": Operation(tone.color, False, start=0.1, slope=0.18),  # factor
    "sharpness": Operation(tone.sharpness, False, start=0.1, slope=0.18),
    "contrast": Operation(tone.contrast, True, start=0.1, slope=0.18),
    "brightness": Operation(tone.brightness, True, start=0.1, slope=0.18),
    "posterize": Operation(tone.posterize, True, slope=0.4, whole="down"),  # bits kept
    "solarize": Operation(tone.solarize, True, slope=25.6, whole="down"),  # threshold
    "solarize_add": Operation(tone.solarize_add, True, slope=11.0, whole="down"),  # levels
    "autocontrast": Operation(lambda images, _: tone.autocontrast(images), True),
    "equalize": Operation(lambda images, _: tone.equalize(images), True),
    "invert": Operation(lambda images, _: tone.invert(images), True),
}
OPERATION_NAMES = tuple(OPERATIONS)


def draw_plan(
    draws: Draws, count: int = 2, magnitude: float = 10.0, deviation: float = 0.5, probability: float = 0.5
) -> Plan:
    """Draw each sample's ``count`` operations, which of them happen, and their amounts.

    ``magnitude`` and ``deviation`` are the mean and standard deviation of the normal distribution of magnitudes.
    """
    uniforms = torch.stack(draws.uniform("rand_augment", 4 * count), dim=1).view(-1, count, 4)
    operation, happens, normal, sign = uniforms.unbind(2)
    operation = whole(operation, len(OPERATIONS))
    magnitudes = (magnitude + deviation * standard_normal(normal)).clamp(0.0, LARGEST_MAGNITUDE)
    amount = amounts(operation, magnitudes, 1 - 2 * whole(sign, 2))
    return Plan(torch.where(happens < probability, operation, len(OPERATIONS)), amount)


def rand_augment(images: Tensor, draws: Draws) -> Tensor:
    """Augment uint8 ``images [B, C, H, W]`` by two random operations each, at magnitude 10 (deviation 0.5)."""
    return apply_plan(images, draw_plan(draws), OPERATIONS)


def amounts(operation: Tensor, magnitude: Tensor, sign: Tensor) -> Tensor:
    """Return the amounts, as `Operation.amount`, for tensors of one shape.

    ``operation`` (int64) is a position in `OPERATIONS`, ``magnitude`` lies in 0..10, ``sign`` is 1 or -1.
    """
    start, slope, signed, down = _coefficients(operation.device)
    direction = torch.where(signed[operation], sign, 1)
    value = start[operation] + direction * slope[operation] * magnitude
    return torch.where(down[operation], torch.floor(value), value)


def standard_normal(uniform: Tensor) -> Tensor:
    """Turn uniforms on the grid of 2**-24 in [0, 1) to standard normal values, float64 where the device has it."""
    # The middle of each step of the grid: never 0 or 1, whose quantiles are infinite.
    centred = uniform.to(tone.widest_float(uniform.device)) * 2 + (2.0**-24 - 1)
    # Far finer than the grid, but coarser than the last bits, in which libraries differ.
    return torch.round(torch.erfinv(centred) * (2**0.5 * 2**30)) * 2.0**-30


@lru_cache(maxsize=16)
def fill_color(channels: int, device: torch.device) -> Tensor:
    """Return what comes from outside an image, uint8 ``[channels]``, kept on the device."""
    color = torch.tensor(FILL, dtype=torch.uint8)
    if channels == 1:
        color = tone.luma(color.view(1, 3, 1, 1)).view(1).to(torch.uint8)
    return color.to(device)


@lru_cache(maxsize=16)
def _coefficients(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return start, slope, signed and rounded down of each operation, ``[15]`` each, kept on the device."""
    rows = OPERATIONS.values()
    real = tone.widest_float(device)
    return (
        torch.tensor([row.start for row in rows], dtype=real, device=device),
        torch.tensor([row.slope for row in rows], dtype=real, device=device),
        torch.tensor([row.signed for row in rows], device=device),
        torch.tensor([row.whole == "down" for row in rows], device=device),
    )
