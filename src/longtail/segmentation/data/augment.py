"""Recipes of a view that change the pixels of a crop and leave where they lie, so that one mask fits every view."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longtail.data.augment_levels import to_levels
from longtail.data.augment_operations import Operation, apply_step
from longtail.data.batch_augment import Draws, between, random_color_jitter
from longtail.data.views import Recipe
from longtail.errors import unknown_name

_JITTER = 0.4  # most that brightness, contrast and saturation change by, as a factor
_TURN = 0.1  # largest turn of the hue, as a share of the circle: 36 degrees


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the colours of uint8 ``images [B, 3, H, W]`` about the gray axis by ``turns [B]`` of a full circle.

    One 3 x 3 matrix an image (Rodrigues' formula), as the hue rotation of Karras et al., "Training generative
    adversarial networks with limited data", NeurIPS 2020, Sec. B.2. Grays stay as they are, a third of a turn makes red
    green, green blue and blue red; what leaves 0..255 is clipped.
    """
    angle = 2 * math.pi * turns.float()
    cos, sin = torch.cos(angle), torch.sin(angle) / math.sqrt(3)
    same, next_, last = (1 + 2 * cos) / 3, (1 - cos) / 3 + sin, (1 - cos) / 3 - sin
    same, next_, last = (part[:, None, None] for part in (same, next_, last))
    red, green, blue = images.float().unbind(1)
    # Written out and not as a product of matrices, whose rounding may depend on the size of the batch.
    turned = torch.stack(
        [
            same * red + last * green + next_ * blue,
            next_ * red + same * green + last * blue,
            last * red + next_ * green + same * blue,
        ],
        dim=1,
    )
    return to_levels(turned.add_(0.5).clamp_(0, 255))


_HUE = {"hue": Operation(turn_hue, False)}


def random_hue(images: Tensor, draws: Draws, largest: float = _TURN) -> Tensor:
    """Turn the hue of half of the images by up to ``largest`` of the circle, either way."""
    turned, turn = draws.uniform("hue", 2)
    operation = (turned >= 0.5).to(torch.int64)  # 0 turns it, 1 is "nothing"
    return apply_step(images, operation, between(turn, -largest, largest), _HUE)


def _none(images: Tensor, draws: Draws) -> Tensor:
    return images


def _colour(images: Tensor, draws: Draws) -> Tensor:
    return random_hue(random_color_jitter(images, draws, _JITTER), draws)


_RECIPES = {
    "none": Recipe(_none, "the crop as it is"),
    "colour": Recipe(_colour, "brightness, contrast and saturation within 40 %, hue of half of the crops within 36°"),
}


def check_dense_recipe(recipe: str, option: str = "") -> None:
    """Raise :class:`UserError` if no recipe for masks has this name; the sentence begins with ``option``."""
    if recipe not in _RECIPES:
        raise unknown_name(f"{option} view recipe for segmentation".strip(), recipe, _RECIPES)


def dense_recipes() -> dict[str, str]:
    """Return each recipe's name with a description of one line."""
    return {name: recipe.description for name, recipe in _RECIPES.items()}


def recolour(images: Tensor, recipe: str, ids: Tensor, seed: int, epoch: int, stream: str) -> Tensor:
    """Return what a recipe makes of crops.

    Args:
        images: uint8 ``[B, 3, h, w]``, on any device.
        recipe: its name.
        ids: int64 ``[B]``, on the same device.
        seed: the run's.
        epoch: as that of the crops.
        stream: the view's name: two views of one crop are coloured differently.

    Returns:
        uint8 ``[B, 3, h, w]``; the images themselves where nothing changes.
    """
    return _RECIPES[recipe].augment(images, Draws(seed=seed, epoch=epoch, stream=stream, ids=ids))
