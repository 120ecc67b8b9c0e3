"""Views: named recipes that turn stored images into what an encoder sees.

A recipe is one function and one line in `_RECIPES`. It maps uint8 images to uint8 images of the same size; a view
crops before, where the recipe says so, and normalises after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longtail.data.augment_geometry import resize_boxes
from longtail.data.auto_augment import auto_augment
from longtail.data.batch_augment import (
    Draws,
    normalise,
    random_blur,
    random_boxes,
    random_color_jitter,
    random_crop_flip,
    random_cutout,
    random_flip,
    random_grayscale,
    random_small_affine,
    random_tone_jitter,
)
from longtail.data.rand_augment import rand_augment
from longtail.data.trivial_augment import trivial_augment
from longtail.errors import unknown_name

_CACHED_BYTES = 4 << 20
"""Of images on a CPU: 1365 of 32 x 32 x 3, 27 of 224 x 224 x 3. With their intermediate values they fit its cache."""

_QUEUED_BYTES = 16 << 20
"""Of images on an accelerator, which is busy with some thousand small images and has no use for more."""


@dataclass(frozen=True)
class Recipe:
    """What happens to the images of a view before they are normalised.

    Attributes:
        augment: maps uint8 ``[B, C, H, W]`` to the same shape and type.
        description: one line for users.
        crop: share of an image's area, smallest and largest, that a random resized crop keeps before ``augment``;
            None makes no such crop.
    """

    augment: Callable[[Tensor, Draws], Tensor]
    description: str
    crop: tuple[float, float] | None = None


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


def _cifar_trivial(images: Tensor, draws: Draws) -> Tensor:
    return random_cutout(trivial_augment(random_crop_flip(images, draws), draws), draws)


def _cifar_rand(images: Tensor, draws: Draws) -> Tensor:
    return random_cutout(rand_augment(random_crop_flip(images, draws), draws), draws)


def _tiny(images: Tensor, draws: Draws) -> Tensor:
    return random_tone_jitter(random_small_affine(images, draws), draws)


def _photo(images: Tensor, draws: Draws) -> Tensor:
    return random_color_jitter(random_flip(images, draws), draws, strength=0.2)


def _photo_trivial(images: Tensor, draws: Draws) -> Tensor:
    return trivial_augment(random_flip(images, draws), draws)


def _imagenet(images: Tensor, draws: Draws) -> Tensor:
    images = random_color_jitter(random_flip(images, draws), draws, strength=0.4)
    return rand_augment(images, draws)


def _imagenet_contrast(images: Tensor, draws: Draws) -> Tensor:
    images = random_color_jitter(random_flip(images, draws), draws, strength=0.4)
    images = random_grayscale(images, draws, probability=0.2)
    images = random_blur(images, draws, probability=0.5)
    return rand_augment(images, draws)


_RECIPES = {
    "none": Recipe(_none, "normalise only: the transform of every test set"),
    "light": Recipe(_light, "zero-padded crop and horizontal flip"),
    "shift": Recipe(_shift, "zero-padded crop, no flip: for images whose mirror image means something else"),
    "cifar": Recipe(_cifar, "crop, flip, AutoAugment (CIFAR-10 policy) and Cutout, as published for CIFAR-LT"),
    "cifar_trivial": Recipe(
        _cifar_trivial, "crop, flip, TrivialAugment (wide) and Cutout: small images, nothing to tune"
    ),
    "cifar_rand": Recipe(_cifar_rand, "crop, flip, RandAugment (two operations, as in imagenet) and Cutout"),
    "tiny": Recipe(_tiny, "small rotation, scale, shift and tone jitter, no flip: for 8x8 digits and the like"),
    "photo": Recipe(_photo, "resized crop of 25 to 100 %, flip and light colour jitter: photographs", (0.25, 1.0)),
    "photo_trivial": Recipe(
        _photo_trivial, "resized crop of 8 to 100 %, flip and TrivialAugment (wide): photographs", (0.08, 1.0)
    ),
    "imagenet": Recipe(
        _imagenet,
        "resized crop of 8 to 100 %, flip, colour jitter and RandAugment, as published for ImageNet-LT",
        (0.08, 1.0),
    ),
    "imagenet_contrast": Recipe(
        _imagenet_contrast,
        "imagenet with random grayscale and blur before RandAugment: its query and key views",
        (0.08, 1.0),
    ),
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

    @property
    def crop(self) -> tuple[float, float] | None:
        """Share of an image's area that the recipe's random resized crop keeps, or None: it makes no such crop."""
        return _RECIPES[self.recipe].crop

    @torch.no_grad()
    def __call__(self, images: Tensor, ids: Tensor, seed: int, epoch: int, stream: str | tuple[str, ...]) -> Tensor:
        """Return the augmented and normalised images.

        A recipe with a `crop` takes its box out of these images and enlarges it to their size.

        Args:
            images: uint8 ``[B, C, H, W]``, C = 1 or 3.
            ids: int64 ``[B]``, the samples' ids, on the images' device.
            seed: the run's seed.
            epoch: the epoch.
            stream: the view's name in the method, for instance "classifier", "query" or "key". Several views that
                share a recipe are made together by giving all their names, which costs less than one by one.

        Returns:
            float32 ``[B, C, H, W]``, laid out ``channels_last``; with several names ``[V, B, C, H, W]``. A sample's
            result depends on (seed, stream, epoch, id) alone, so it is the same to the bit in any batch.

        Raises:
            ValueError: the images are not uint8 ``[B, C, H, W]`` with as many channels as ``mean``, or the
                ids do not fit them.
        """
        self._check(images, ids)
        streams = (stream,) if isinstance(stream, str) else stream
        batch, channels, height, width = images.shape
        out = torch.empty(len(streams), batch, height, width, channels, device=images.device).permute(0, 1, 4, 2, 3)
        # Few enough at a time to stay in a processor's cache, and enough that an operation's start does not count.
        length = max(1, images_at_a_time(images.shape[1:], images.device) // len(streams))
        for start in range(0, batch, length):
            part = slice(start, start + length)
            repeated = (len(streams), 1, 1, 1)
            made = self._augmented(images[part].repeat(repeated), ids[part].repeat(len(streams)), seed, epoch, streams)
            for target, source in zip(out[:, part], made.chunk(len(streams)), strict=True):
                normalise(source, self.mean, self.std, target)
        return out[0] if isinstance(stream, str) else out

    def _augmented(self, images: Tensor, ids: Tensor, seed: int, epoch: int, streams: tuple[str, ...]) -> Tensor:
        """Return the uint8 views of images that come once a stream."""
        draws = Draws(seed=seed, epoch=epoch, stream=streams, ids=ids)
        if self.crop is not None:
            heights, widths = (torch.full_like(ids, side) for side in images.shape[-2:])
            images = resize_boxes(images, random_boxes(heights, widths, draws, self.crop))
        return _RECIPES[self.recipe].augment(images, draws)

    def boxes(self, heights: Tensor, widths: Tensor, ids: Tensor, seed: int, epoch: int, stream: str) -> Tensor:
        """Return the box of each image that the recipe's random resized crop keeps.

        For who cuts the box out of an image of any size and resizes it, to call `augment` then.

        Args:
            heights: int64 ``[B]``, the images' heights in pixels.
            widths: int64 ``[B]``, their widths.
            ids: int64 ``[B]``, the samples' ids, on the same device.
            seed: the run's seed.
            epoch: the epoch.
            stream: the view's name in the method.

        Returns:
            int64 ``[B, 4]``: left, top, width and height in pixels.

        Raises:
            ValueError: the recipe has no `crop`, or the tensors differ in shape.
        """
        if self.crop is None:
            raise ValueError(f"the recipe {self.recipe!r} makes no random resized crop")
        if not heights.shape == widths.shape == ids.shape:
            raise ValueError(f"{list(heights.shape)} heights, {list(widths.shape)} widths, {list(ids.shape)} ids")
        return random_boxes(heights, widths, Draws(seed=seed, epoch=epoch, stream=stream, ids=ids), self.crop)

    @torch.no_grad()
    def augment(self, images: Tensor, ids: Tensor, seed: int, epoch: int, stream: str) -> Tensor:
        """Return what the recipe makes of images that have their size, and their `crop`, already.

        Args and errors as for calling the view; uint8 ``[B, C, H, W]`` in and out.
        """
        self._check(images, ids)
        if not len(images):
            return images
        images = images.contiguous()
        return _RECIPES[self.recipe].augment(images, Draws(seed=seed, epoch=epoch, stream=stream, ids=ids))

    def normalise(self, images: Tensor) -> Tensor:
        """Return uint8 ``images [B, C, H, W]`` as float32 with the data set's mean 0 and deviation 1.

        The result lies ``channels_last``.
        """
        return normalise(images, self.mean, self.std)

    def _check(self, images: Tensor, ids: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"a view takes uint8 images [B, 1 or 3, H, W], not {images.dtype} {list(images.shape)}")
        if images.shape[1] != len(self.mean):
            raise ValueError(f"the view normalises {len(self.mean)} channels, the images have {images.shape[1]}")
        if ids.shape != images.shape[:1] or ids.device != images.device:
            raise ValueError(
                f"a view takes one id an image on the images' device, not {list(ids.shape)} on {ids.device}"
            )


def images_at_a_time(shape: Sequence[int], device: torch.device) -> int:
    """Return how many uint8 images of a shape ``[C, H, W]`` a device best augments in one go."""
    return max(1, (_CACHED_BYTES if device.type == "cpu" else _QUEUED_BYTES) // math.prod(shape))


def check_recipe(recipe: str, option: str = "") -> None:
    """Raise :class:`UserError` if no recipe has this name; the sentence begins with ``option``."""
    if recipe not in _RECIPES:
        raise unknown_name(f"{option} view recipe".strip(), recipe, _RECIPES)


def build_view(recipe: str, mean: Sequence[float], std: Sequence[float]) -> View:
    """Return the view of a named recipe (see `view_recipes`) with a data set's channel ``mean`` and ``std``.

    Raises:
        UserError: no recipe has this name.
        ValueError: ``mean`` and ``std`` differ in length, or a standard deviation is not positive.
    """
    check_recipe(recipe)
    if len(mean) != len(std) or min(std, default=0.0) <= 0:
        raise ValueError(f"mean {tuple(mean)} and std {tuple(std)} must be as long, and std positive")
    return View(recipe, tuple(map(float, mean)), tuple(map(float, std)))


def view_recipes() -> dict[str, str]:
    """Return each recipe's name with a description of one line."""
    return {name: recipe.description for name, recipe in _RECIPES.items()}
