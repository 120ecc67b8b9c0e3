"""Views: named recipes that turn stored images into what an encoder sees.

A recipe is one function and one line in `_RECIPES`. It maps uint8 images to uint8 images; a view normalises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longtail.data.auto_augment import auto_augment
from longtail.data.batch_augment import (
    Draws,
    normalise,
    random_crop_flip,
    random_cutout,
    random_small_affine,
    random_tone_jitter,
)
from longtail.errors import unknown_name

Recipe = Callable[[Tensor, Draws], Tensor]


def _none(images: Tensor, draws: Draws) -> Tensor:
    return images


def _light(images: Tensor, draws: Draws) -> Tensor:
    return random_crop_flip(images, draws)


def _shift(images: Tensor, draws: Draws) -> Tensor:
    return random_crop_flip(images, draws, flip_probability=0.0)


def _cifar(images: Tensor, draws: Draws) -> Tensor:
    images = random_crop_flip(images, draws)
    images = auto_augment(images, draws)
    return random_cutout(images, draws)


def _tiny(images: Tensor, draws: Draws) -> Tensor:
    return random_tone_jitter(random_small_affine(images, draws), draws)


_RECIPES: dict[str, tuple[Recipe, str]] = {
    "none": (_none, "normalise only: the transform of every test set"),
    "light": (_light, "zero-padded crop and horizontal flip"),
    "shift": (_shift, "zero-padded crop, no flip: for images whose mirror image means something else"),
    "cifar": (_cifar, "crop, flip, AutoAugment (CIFAR-10 policy) and Cutout, as published for CIFAR-LT"),
    "tiny": (_tiny, "small rotation, scale, shift and tone jitter, no flip: for 8x8 digits and the like"),
}


@dataclass(frozen=True)
class View:
    """A recipe with the normalisation of a data set; see `build_view`.

    Attributes:
        recipe: the recipe's name.
        mean: mean of each channel on the 0..1 scale.
        std: standard deviation of each channel on the 0..1 scale.
    """

    recipe: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @torch.no_grad()
    def __call__(self, images: Tensor, ids: Tensor, seed: int, epoch: int, stream: str) -> Tensor:
        """Return the augmented and normalised images.

        Args:
            images: uint8 ``[B, C, H, W]``, C = 1 or 3.
            ids: int64 ``[B]``, the samples' ids, on the images' device.
            seed: the run's seed.
            epoch: the epoch.
            stream: the view's name in the method, for instance "classifier", "query" or "key".

        Returns:
            float32 ``[B, C, H, W]``. A sample's result depends on (seed, stream, epoch, id) alone, so it is
            the same to the bit in any batch.

        Raises:
            ValueError: the images are not uint8 ``[B, C, H, W]`` with as many channels as ``mean``, or the
                ids do not fit them.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"a view takes uint8 images [B, 1 or 3, H, W], not {images.dtype} {list(images.shape)}")
        if images.shape[1] != len(self.mean):
            raise ValueError(f"the view normalises {len(self.mean)} channels, the images have {images.shape[1]}")
        if ids.shape != images.shape[:1] or ids.device != images.device:
            raise ValueError(
                f"a view takes one id an image on the images' device, not {list(ids.shape)} on {ids.device}"
            )
        augment, _ = _RECIPES[self.recipe]
        if len(images):
            images = augment(images, Draws(seed=seed, epoch=epoch, stream=stream, ids=ids))
        return normalise(images, self.mean, self.std)


def build_view(recipe: str, mean: Sequence[float], std: Sequence[float]) -> View:
    """Return the view of a named recipe (see `view_recipes`) with a data set's channel ``mean`` and ``std``.

    Raises:
        UserError: no recipe has this name.
        ValueError: ``mean`` and ``std`` differ in length, or a standard deviation is not positive.
    """
    if recipe not in _RECIPES:
        raise unknown_name("view recipe", recipe, _RECIPES)
    if len(mean) != len(std) or min(std, default=0.0) <= 0:
        raise ValueError(f"mean {tuple(mean)} and std {tuple(std)} must be as long, and std positive")
    return View(recipe, tuple(map(float, mean)), tuple(map(float, std)))


def view_recipes() -> dict[str, str]:
    """Return each recipe's name with a description of one line."""
    return {name: description for name, (_, description) in _RECIPES.items()}
