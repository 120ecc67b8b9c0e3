"""Random augmentation of a whole batch in a few tensor operations, each sample with its own parameters.

Images are uint8 ``[B, C, H, W]`` on any device. Parameters are drawn through `Draws`, so a sample's
augmentation depends on the seed, the epoch, the view and the sample's id, not on the rest of the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import torch
from torch import Tensor

from longtail.data import augment_geometry as geometry
from longtail.data import augment_tone as tone
from longtail.data.augment_filter import gaussian_blur
from longtail.data.augment_levels import apply_table, choose, to_levels
from longtail.data.augment_operations import Operation, Plan, apply_plan, apply_step
from longtail.data.keyed import derive_seed, uniform_in_parts

_NORMALISED = 1 << 19  # numbers that are normalised at a time on a processor, in whose cache they fit
_TRIES = 10  # of a random crop to fit into its image
_ASPECT = (3 / 4, 4 / 3)  # width over height of a random crop

_JITTER = {
    "saturation": Operation(tone.color, False),
    "brightness": Operation(tone.brightness, True),
    "contrast": Operation(tone.contrast, True),
}
_GRAY = {"gray": Operation(lambda images, _: to_levels(tone.luma(images)), False)}
_BLUR_SIGMA = (0.1, 2.0)
_BLUR = {"blur": Operation(lambda images, sigma: gaussian_blur(images, sigma, largest=_BLUR_SIGMA[1]), False)}


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch's views: functions of (seed, stream, epoch, id) and a name.

    Attributes:
        seed: the run's seed.
        epoch: the epoch.
        stream: the view's name in the method, for instance "query": two views of a sample differ. With several names
            the batch consists of as many parts of one length, each with its own.
        ids: int64 ``[B]``, the samples' ids.

    Names keep draws apart: a recipe that gains an operation keeps the numbers of the others.
    """

    seed: int
    epoch: int
    stream: str | tuple[str, ...]
    ids: Tensor

    def uniform(self, name: str, count: int) -> tuple[Tensor, ...]:
        """Return ``count`` float32 tensors ``[B]`` in [0, 1) that belong to ``name``."""
        streams = (self.stream,) if isinstance(self.stream, str) else self.stream
        seeds = [derive_seed(self.seed, stream, self.epoch, name) for stream in streams]
        return uniform_in_parts(seeds, self.ids, count).unbind(1)


def whole(uniform: Tensor, count: int | Tensor) -> Tensor:
    """Turn uniforms in [0, 1) to int64 in 0 .. count - 1, all equally likely."""
    return (uniform * count).to(torch.int64)


def between(uniform: Tensor, low: float, high: float) -> Tensor:
    """Turn uniforms in [0, 1) to [low, high)."""
    return low + (high - low) * uniform


def random_crop_flip(images: Tensor, draws: Draws, flip_probability: float = 0.5) -> Tensor:
    """Zero-pad by an eighth of each side (4 at 32, at least 1), crop back at random, mirror at random.

    A side of one pixel is not padded: the crop would miss it.
    """
    height, width = images.shape[-2:]
    rows, columns = (min(max(1, side // 8), side // 2) for side in (height, width))
    top, left, flip = draws.uniform("crop_flip", 3)
    return geometry.shift_flip(
        images,
        whole(top, 2 * rows + 1) - rows,
        whole(left, 2 * columns + 1) - columns,
        flip < flip_probability,
        reach=(rows, columns),
    )


def random_cutout(images: Tensor, draws: Draws) -> Tensor:
    """Blacken one square of half the shorter side (16 at 32), clipped at the border (DeVries & Taylor 2017).

    The centre is uniform over the pixels; the square starts length // 2 before it. Where a side is one pixel long there
    is no square.
    """
    height, width = images.shape[-2:]
    length = min(height, width) // 2
    centre_y, centre_x = draws.uniform("cutout", 2)
    from_first_row = torch.arange(height, device=images.device) + length // 2 - whole(centre_y, height)[:, None]
    from_first_column = torch.arange(width, device=images.device) + length // 2 - whole(centre_x, width)[:, None]
    in_rows = (from_first_row >= 0) & (from_first_row < length)
    in_columns = (from_first_column >= 0) & (from_first_column < length)
    hole = in_rows.view(torch.uint8)[:, :, None] * in_columns.view(torch.uint8)[:, None, :]
    return images * hole.bitwise_xor_(1)[:, None]


def random_small_affine(images: Tensor, draws: Draws) -> Tensor:
    """Turn by up to 10 degrees, scale by 0.9 to 1.1 and shift by up to 1 pixel (bilinear, black outside)."""
    height, width = images.shape[-2:]
    turn, scale, shift_x, shift_y = draws.uniform("small_affine", 4)
    maps = geometry.rotation_maps(between(turn, -10, 10), height, width, scale=between(scale, 0.9, 1.1))
    # A map goes from output to input, so a shift of the output passes through its linear part.
    shift = torch.stack([between(shift_x, -1, 1), between(shift_y, -1, 1)], dim=1)
    maps[:, 2] -= (maps[:, 0:2] * shift).sum(dim=1)
    maps[:, 5] -= (maps[:, 3:5] * shift).sum(dim=1)
    return geometry.affine_bilinear(images, maps, fill=0)


def random_tone_jitter(images: Tensor, draws: Draws) -> Tensor:
    """Change contrast, then brightness, by a factor of 0.8 to 1.2 each."""
    contrast, brightness = draws.uniform("tone_jitter", 2)
    images = apply_table(images, tone.contrast(images, between(contrast, 0.8, 1.2)))
    return apply_table(images, tone.brightness(images, between(brightness, 0.8, 1.2)))


def random_boxes(heights: Tensor, widths: Tensor, draws: Draws, area: tuple[float, float]) -> Tensor:
    """Draw the box that each image's random resized crop keeps (Szegedy et al. 2015, "Going deeper").

    Its share of the area is uniform, the logarithm of its aspect ratio is uniform over 3/4 to 4/3, and it lies
    anywhere. The first of ten tries that fits into the image counts; without one it is the largest centred box whose
    aspect ratio is in that range.

    Args:
        heights: int64 ``[B]``, the images' heights in pixels, at least 1.
        widths: int64 ``[B]``, their widths.
        draws: the view's random numbers.
        area: smallest and largest share of the image's area, above 0 and at most 1.

    Returns:
        int64 ``[B, 4]``: left, top, width and height in pixels.
    """
    real = tone.widest_float(heights.device)
    uniforms = torch.stack(draws.uniform("resized_crop", 2 * _TRIES + 2), dim=1).to(real)
    target = (heights * widths).to(real)[:, None] * between(uniforms[:, :_TRIES], *area)
    aspect = between(uniforms[:, _TRIES:-2], math.log(_ASPECT[0]), math.log(_ASPECT[1])).exp()
    width, height = torch.sqrt(target * aspect).round(), torch.sqrt(target / aspect).round()
    fits = (width >= 1) & (width <= widths[:, None]) & (height >= 1) & (height <= heights[:, None])
    # What a try is worth: the first that fits most, a try that does not fit nothing.
    first = (fits * torch.arange(_TRIES, 0, -1, device=heights.device)).argmax(dim=1, keepdim=True)
    found = fits.any(dim=1)
    width = torch.where(found, width.gather(1, first).squeeze(1), (heights * _ASPECT[1]).round().minimum(widths))
    height = torch.where(found, height.gather(1, first).squeeze(1), (widths / _ASPECT[0]).round().minimum(heights))
    free_x, free_y = widths - width.to(torch.int64), heights - height.to(torch.int64)
    left = torch.where(found, whole(uniforms[:, -2], free_x + 1), free_x // 2)
    top = torch.where(found, whole(uniforms[:, -1], free_y + 1), free_y // 2)
    return torch.stack([left, top, widths - free_x, heights - free_y], dim=1)


def random_flip(images: Tensor, draws: Draws) -> Tensor:
    """Mirror half of the images left-right."""
    (flip,) = draws.uniform("flip", 1)
    return choose((flip < 0.5)[:, None, None, None], images.flip(-1), images)


def random_color_jitter(images: Tensor, draws: Draws, strength: float) -> Tensor:
    """Change brightness, contrast and saturation by a factor of 1 - strength to 1 + strength each, in any order.

    Each step rounds down to whole levels, as Pillow's ``ImageEnhance``. Gray images have no saturation.
    """
    order, *factors = draws.uniform("color_jitter", 1 + len(_JITTER))
    orders = _orders(len(_JITTER), images.device)
    operation = orders[whole(order, len(orders))]
    factor = between(torch.stack(factors, dim=1), 1 - strength, 1 + strength)
    return apply_plan(images, Plan(operation, factor.gather(1, operation)), _JITTER)


def random_grayscale(images: Tensor, draws: Draws, probability: float) -> Tensor:
    """Take the colour out of a share of the images: all channels become Pillow's "L"."""
    (gray,) = draws.uniform("grayscale", 1)
    operation = (gray >= probability).to(torch.int64)  # 0 takes it out, 1 is "nothing"
    return apply_step(images, operation, gray, _GRAY)


def random_blur(images: Tensor, draws: Draws, probability: float) -> Tensor:
    """Smooth a share of the images with a Gaussian of 0.1 to 2 pixels (as in SimCLR and MoCo v2)."""
    blur, sigma = draws.uniform("blur", 2)
    operation = (blur >= probability).to(torch.int64)  # 0 blurs, 1 is "nothing"
    return apply_step(images, operation, between(sigma, *_BLUR_SIGMA), _BLUR)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], out: Tensor | None = None) -> Tensor:
    """Return float32 ``(images / 255 - mean) / std``; ``mean`` and ``std`` are per channel, on 0..1.

    The result lies ``channels_last``, as encoders take it; ``out`` is where it goes, a new tensor if None.
    """
    if out is None:
        out = torch.empty(images.shape, device=images.device, memory_format=torch.channels_last)
    _, channels, height, width = images.shape
    shift, scale = (_over_a_row(values, width, images.device) for values in (mean, std))
    on_processor = images.device.type == "cpu"
    at_a_time = max(1, _NORMALISED // (channels * height * width) if on_processor else len(images))
    for some, place in zip(torch.split(images, at_a_time), torch.split(out, at_a_time), strict=True):
        pixels = place.permute(0, 2, 3, 1)
        if some.is_contiguous(memory_format=torch.channels_last):
            pixels.copy_(some.permute(0, 2, 3, 1))
        else:  # a plane at a time: half the time of copying all of them across at once
            for channel in range(channels):
                pixels[..., channel] = some[:, channel]
        # A row of pixels is a row of numbers, worked on side by side.
        pixels.view(-1, height, width * channels).div_(255).sub_(shift).div_(scale)
    return out


@lru_cache(maxsize=64)
def _over_a_row(values: tuple[float, ...], width: int, device: torch.device) -> Tensor:
    """Return one float32 value a channel, repeated along a row of pixels, ``[width * C]``.

    Kept on the device: a copy a step would make the host wait.
    """
    return torch.tensor(values, dtype=torch.float32, device=device).repeat(width)


@lru_cache(maxsize=16)
def _orders(count: int, device: torch.device) -> Tensor:
    """Return every order of ``count`` things, int64 ``[count!, count]``, kept on the device."""
    return torch.tensor(list(permutations(range(count))), device=device)
