"""Where a training crop lies: resize, crop and mirror, drawn once an image and done to image and mask alike.

The three are one resampling of a box of the source, so that a crop costs what it shows and not what the enlarged image
would take. Nothing here depends on a view: all views of an image show the same crop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from longtail.data.batch_augment import between
from longtail.data.decode import crop as resample
from longtail.data.image_set import Framing
from longtail.data.keyed import keyed_bits, keyed_uniform
from longtail.segmentation.data.mask_set import IGNORE


@dataclass(frozen=True)
class Geometry:
    """How images and masks become crops of one size.

    Attributes:
        crop: height and width of the crop in pixels.
        scale: smallest and largest factor of the random resize before the crop, uniform in between.
        flip: mirror half of the crops left-right.
        rare_crops: share (0..1) of the crops that are laid around a pixel of a class drawn in favour of rare ones.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = False
    rare_crops: float = 0.0

    def __post_init__(self) -> None:
        if min(self.crop) < 1 or not 0 < self.scale[0] <= self.scale[1] < math.inf or not 0 <= self.rare_crops <= 1:
            raise ValueError(f"a crop of at least 1 x 1, 0 < scale and rare_crops in 0..1 are needed, not {self}")


class Crop(NamedTuple):
    """One crop of one image.

    Attributes:
        resized: height and width that the whole image is brought to.
        top, left: of the crop in the resized image, in pixels; below 0 where the crop begins outside.
        mirrored: whether what the crop shows is mirrored left-right.
    """

    resized: tuple[int, int]
    top: int
    left: int
    mirrored: bool


class CropDraw(NamedTuple):
    """What chance says of one image's crop before its mask is known.

    Attributes:
        scale: factor of the resize.
        mirrored: whether it is mirrored.
        place: two numbers in [0, 1): where the crop lies between its first and last place, down and across.
        classes: the classes to lay the crop around, the first that the mask holds; none = anywhere.
        pixel: 63 random bits that choose the pixel of that class.
    """

    scale: float
    mirrored: bool
    place: tuple[float, float]
    classes: tuple[int, ...]
    pixel: int

    def lay(self, geometry: Geometry, labels: Tensor) -> Crop:
        """Return the crop of the image whose mask is ``labels [H, W]``.

        Where the resized image is smaller than the crop, it lies anywhere within it.
        """
        sides = labels.shape
        resized = tuple(max(1, round(side * self.scale)) for side in sides)
        target = self._target(labels)
        starts = []
        for axis, (before, after, side) in enumerate(zip(sides, resized, geometry.crop, strict=True)):
            first, last = min(0, after - side), max(0, after - side)
            if target is not None:
                # Every place from which the crop shows that pixel is as likely: it is not always the centre.
                there = (2 * target[axis] + 1) * after // (2 * before)
                first, last = max(first, there - side + 1), min(last, there)
            starts.append(first + int(self.place[axis] * (last - first + 1)))
        return Crop((resized[0], resized[1]), starts[0], starts[1], self.mirrored)

    def _target(self, labels: Tensor) -> tuple[int, int] | None:
        """Return row and column of the pixel to show, None for a crop anywhere."""
        for label in self.classes:
            found = (labels == label).reshape(-1).nonzero()
            if len(found):  # a class may be lost where masks are brought to a smaller size
                row, column = divmod(int(found[self.pixel % len(found)]), labels.shape[1])
                return row, column
        return None


def class_rarity(class_counts: Tensor) -> Tensor:
    """Return the weights by which the class of a rare crop is drawn, float64 ``[C]``: 1 / sqrt(pixels); 0 without.

    Rare class sampling (Hoyer, Dai & Van Gool, "DAFormer", CVPR 2022) draws a class by softmax((1 - f_c) / T) of the
    pixel shares f_c, then an image that holds it; its temperature has to be tuned. Here an epoch shows each image once,
    and the class is one of those in the image. 1 / share would nearly always
    name the image's rarest class, where counts span orders of magnitude; the root names the classes of the middle too
    (bicyclist : sign : road of CamVid, shares 0.3 : 1.2 : 33 %, are drawn 10.5 : 5.2 : 1; softmax with T = 0.01:
    2.5 : 1 : 0 for the same).
    """
    counts = class_counts.double()
    return torch.where(counts > 0, counts.clamp(min=1).rsqrt(), 0.0)


def draw_crops(
    geometry: Geometry, ids: Tensor, pixels: Tensor, rarity: Tensor, seed: int, epoch: int
) -> list[CropDraw]:
    """Return the draw of each image's crop: a function of (seed, epoch, id) alone.

    Args:
        geometry: sizes and shares.
        ids: int64 ``[B]``.
        pixels: int64 ``[B, C]``, pixels of each class in these images.
        rarity: float64 ``[C]``, see :func:`class_rarity`.
        seed: the run's.
        epoch: negative ones are those before the first.
    """
    scale, flip, rare, down, across = keyed_uniform(seed, "crop", epoch, ids=ids, count=5).double().unbind(1)
    bits = keyed_bits(seed, "rare pixel", epoch, ids=ids).squeeze(1) & (2**63 - 1)
    # A race of exponential waiting times: who comes first is drawn by weight, and who would be next without the first.
    uniforms = keyed_uniform(seed, "rare class", epoch, ids=ids, count=pixels.shape[1]).double()
    weights = torch.where(pixels > 0, rarity, 0.0)
    order = ((-torch.log1p(-uniforms)) / weights).nan_to_num_(torch.inf, torch.inf).argsort(dim=1, stable=True)
    present = (weights > 0).sum(dim=1).tolist()
    chosen = (rare < geometry.rare_crops).tolist()
    return [
        CropDraw(factor, mirrored, (row, column), tuple(classes[:held]) if near else (), pixel)
        for factor, mirrored, row, column, classes, held, near, pixel in zip(
            between(scale, *geometry.scale).tolist(),
            ((flip < 0.5) & geometry.flip).tolist(),
            down.tolist(),
            across.tolist(),
            order.tolist(),
            present,
            chosen,
            bits.tolist(),
            strict=True,
        )
    ]


def cut(
    image: Tensor, labels: Tensor, crop: Crop, size: tuple[int, int], fill: Sequence[int]
) -> tuple[NDArray[np.uint8], Tensor]:
    """Return one crop of an image and of its mask, pixel on pixel.

    The image is resampled bilinearly with antialiasing, as if all of it had been resized; the mask takes the nearest
    pixel, which is one of those that the image's pixel was made of.

    Args:
        image: uint8 ``[3, H, W]``.
        labels: int16 ``[H, W]``.
        crop: where it lies.
        size: height and width of the result.
        fill: three values of what lies outside the image; the mask is ``IGNORE`` there.

    Returns:
        uint8 ``[h, w, 3]`` and int16 ``[h, w]``.
    """
    pixels = np.empty((*size, 3), dtype=np.uint8)
    pixels[...] = np.asarray(fill, dtype=np.uint8)
    shown, (rows, columns) = _places(crop, size)
    _resized_box(image, crop.resized, shown, pixels[rows, columns])
    return (pixels[:, ::-1] if crop.mirrored else pixels), cut_labels(labels, crop, size)


def cut_labels(labels: Tensor, crop: Crop, size: tuple[int, int]) -> Tensor:
    """Return one crop of a mask alone, as :func:`cut` does: int16 ``[h, w]`` of labels ``[H, W]``."""
    truth = labels.new_full(size, IGNORE)
    shown, (rows, columns) = _places(crop, size)
    down, across = (
        (2 * torch.arange(first, last) + 1) * before // (2 * after)
        for (first, last), before, after in zip(shown, labels.shape, crop.resized, strict=True)
    )
    truth[rows, columns] = labels[down[:, None], across]
    return truth.flip(1) if crop.mirrored else truth


def _places(crop: Crop, size: tuple[int, int]) -> tuple[list[tuple[int, int]], tuple[slice, slice]]:
    """Return what a crop shows of the resized image, rows and columns, and where that lies in the crop."""
    shown = [
        (max(0, start), min(start + side, whole_side))
        for start, side, whole_side in zip((crop.top, crop.left), size, crop.resized, strict=True)
    ]
    rows, columns = (
        slice(first - start, last - start) for (first, last), start in zip(shown, (crop.top, crop.left), strict=True)
    )
    return shown, (rows, columns)


def _resized_box(image: Tensor, resized: tuple[int, int], shown: list[tuple[int, int]], out: NDArray[np.uint8]) -> None:
    """Write rows and columns ``shown`` of ``image [3, H, W]`` brought to the size ``resized`` to ``out [h, w, 3]``."""
    cuts, starts, lengths = [], [], []
    for (first, last), before, after in zip(shown, image.shape[1:], resized, strict=True):
        ratio = before / after
        start, end = first * ratio, last * ratio
        reach = math.ceil(max(ratio, 1.0))  # taps of the filter see so far beyond the box
        low, high = max(0, math.floor(start) - reach), min(before, math.ceil(end) + reach)
        cuts.append(slice(low, high))
        starts.append(start - low)
        lengths.append(end - start)
    part = image[:, cuts[0], cuts[1]].permute(1, 2, 0).numpy()
    box = starts[1], starts[0], lengths[1], lengths[0]
    resample(Image.fromarray(np.ascontiguousarray(part)), box, Framing(out.shape[:2], max(out.shape)), out)
