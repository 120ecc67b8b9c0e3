"""AutoAugment for CIFAR on a batch: 25 sub-policies of two operations each, drawn for every sample by itself.

The policy and its magnitudes are those of Cubuk, Zoph, Mane, Vasudevan & Le, "AutoAugment: Learning
Augmentation Strategies from Data", CVPR 2019 (appendix, CIFAR-10). As in the code that published long-tailed
results rest on, shear, translate and the enhance operations take a random sign, rotation goes one way
(counter-clockwise), and what comes from outside the image is gray 128.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from longtail.data import augment_geometry as geometry
from longtail.data import augment_tone as tone
from longtail.data.augment_operations import Operation, Plan, apply_plan, apply_step
from longtail.data.batch_augment import Draws, whole

FILL = 128

# Each row: (operation, probability, magnitude index 0..9), twice. Operations without a magnitude carry the
# paper's index too; it has no effect.
CIFAR_POLICY: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("invert", 0.1, 7), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 8), ("equalize", 0.9, 2)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 7), ("autocontrast", 0.4, 8)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.6, 4)),
    (("color", 0.9, 9), ("equalize", 0.6, 6)),
    (("autocontrast", 0.8, 4), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 3)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 2), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 1)),
)


def _shear_x(images: Tensor, amounts: Tensor) -> Tensor:
    return geometry.shear_bicubic(images, amounts, FILL)


def _shear_y(images: Tensor, amounts: Tensor) -> Tensor:
    return geometry.shear_bicubic(images.mT, amounts, FILL).mT


def _translate_x(images: Tensor, amounts: Tensor) -> Tensor:
    left = _pixels(amounts, images.shape[-1])
    return geometry.shift_flip(images, torch.zeros_like(left), left, fill=FILL, reach=(0, images.shape[-1]))


def _translate_y(images: Tensor, amounts: Tensor) -> Tensor:
    top = _pixels(amounts, images.shape[-2])
    return geometry.shift_flip(images, top, torch.zeros_like(top), fill=FILL, reach=(images.shape[-2], 0))


def _pixels(share: Tensor, side: int) -> Tensor:
    """Return a share of a side, -1 to 1, in whole pixels."""
    return torch.floor(share * side + 0.5).to(torch.int64)


def _rotate(images: Tensor, amounts: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    return geometry.affine_nearest(images, geometry.rotation_maps(amounts, height, width), FILL)


OPERATIONS: dict[str, Operation] = {
    "shear_x": Operation(_shear_x, False, slope=0.3 / 9, signed=True),  # pixels a pixel
    "shear_y": Operation(_shear_y, False, slope=0.3 / 9, signed=True),
    "translate_x": Operation(_translate_x, False, slope=150 / 331 / 9, signed=True),  # fraction of the side
    "translate_y": Operation(_translate_y, False, slope=150 / 331 / 9, signed=True),
    "rotate": Operation(_rotate, False, slope=30 / 9),  # degrees
    "color": Operation(tone.color, False, start=1.0, slope=0.1, signed=True),  # factor
    "sharpness": Operation(tone.sharpness, False, start=1.0, slope=0.1, signed=True),
    "contrast": Operation(tone.contrast, True, start=1.0, slope=0.1, signed=True),
    "brightness": Operation(tone.brightness, True, start=1.0, slope=0.1, signed=True),
    "posterize": Operation(tone.posterize, True, start=8.0, slope=-4 / 9, whole="nearest"),  # bits kept
    "solarize": Operation(tone.solarize, True, start=256.0, slope=-256 / 9),  # threshold
    "autocontrast": Operation(lambda images, _: tone.autocontrast(images), True),
    "equalize": Operation(lambda images, _: tone.equalize(images), True),
    "invert": Operation(lambda images, _: tone.invert(images), True),
}
OPERATION_NAMES = tuple(OPERATIONS)
_SKIP = len(OPERATION_NAMES)


def draw_plan(draws: Draws) -> Plan:
    """Draw each sample's sub-policy, which of its two operations happen, and their signs."""
    operation, probability, amounts = _policy_tables(draws.ids.device)
    policy, happens_1, happens_2, sign_1, sign_2 = draws.uniform("auto_augment", 5)
    policy = whole(policy, len(CIFAR_POLICY))
    happens = torch.stack([happens_1, happens_2], dim=1) < probability[policy]
    sign = whole(torch.stack([sign_1, sign_2], dim=1), 2)
    amount = amounts[policy].gather(2, sign[:, :, None]).squeeze(2)
    return Plan(torch.where(happens, operation[policy], _SKIP), amount)


def apply_operations(images: Tensor, operation: Tensor, amount: Tensor) -> Tensor:
    """Apply one operation to each image: `apply_step` with the positions of `OPERATION_NAMES`."""
    return apply_step(images, operation, amount, OPERATIONS)


def auto_augment(images: Tensor, draws: Draws) -> Tensor:
    """Augment uint8 ``images [B, C, H, W]`` by one randomly drawn CIFAR-10 sub-policy for each sample."""
    return apply_plan(images, draw_plan(draws), OPERATIONS)


@lru_cache(maxsize=16)
def _policy_tables(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return operation ``[25, 2]``, probability ``[25, 2]`` and amounts ``[25, 2, 2]`` (sign +, sign -)."""
    operation = [[OPERATION_NAMES.index(name) for name, _, _ in row] for row in CIFAR_POLICY]
    probability = [[chance for _, chance, _ in row] for row in CIFAR_POLICY]
    amounts = [
        [[OPERATIONS[name].amount(index, sign) for sign in (1, -1)] for name, _, index in row] for row in CIFAR_POLICY
    ]
    return (
        torch.tensor(operation, device=device),
        torch.tensor(probability, dtype=torch.float32, device=device),
        torch.tensor(amounts, dtype=tone.widest_float(device), device=device),
    )
