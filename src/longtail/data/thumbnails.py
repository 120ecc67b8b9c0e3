"""Small pictures that a page holds within itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from longtail.data.decode import BadImage, read_image
from longtail.data.image_set import ImageFiles, ImageSet, LabelledImages
from longtail.data.streaming import default_workers, plain_frames

SIDE = 96
_LOSSLESS = 32
"""Up to this side a picture is kept as it is, to the pixel: a page enlarges it."""


def thumbnail(pixels: Tensor, side: int = SIDE) -> str:
    """Return ``pixels`` (uint8 ``[C, H, W]``, C = 1 or 3) as a ``data:`` URI, no side longer than ``side``.

    The same pixels give the same bytes.
    """
    planes = pixels.permute(1, 2, 0).contiguous().numpy()
    return _address(Image.fromarray(planes[:, :, 0] if planes.shape[2] == 1 else planes), side, 85)


def many_thumbnails(images: LabelledImages, wanted: Sequence[int], side: int, quality: int) -> dict[int, str]:
    """Return the ``data:`` URI of each of the images that can be read, by position; files are read by threads.

    Args:
        images: files or arrays.
        wanted: positions.
        side: longest side in pixels; smaller images keep their size.
        quality: of JPEG, 1 to 95.
    """

    def make(index: int) -> str | None:
        if isinstance(images, ImageSet):
            return thumbnail(images.images[index], side)
        if not isinstance(images, ImageFiles):
            raise ValueError(f"there is no way to read {type(images).__name__}")
        try:
            return _address(read_image(images.path(index), side), side, quality)
        except BadImage:
            return None

    with ThreadPoolExecutor(default_workers(None)) as pool:
        made = zip(wanted, pool.map(make, wanted), strict=True)
        return {index: address for index, address in made if address is not None}


def _address(image: Image.Image, side: int, quality: int) -> str:
    small = image.copy()
    small.thumbnail((side, side), Resampling.BICUBIC)
    kind = "png" if max(small.size) <= _LOSSLESS else "jpeg"
    file = io.BytesIO()
    small.save(file, kind, **({"optimize": True} if kind == "png" else {"quality": quality}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def pixels_of(images: LabelledImages, ids: Tensor) -> Tensor:
    """Return the images at ``ids [M]`` as the model sees them before normalisation: uint8 ``[M, C, H, W]``.

    Raises:
        UserError: a file cannot be read.
    """
    chosen = images.subset(ids)
    if isinstance(chosen, ImageSet):
        return chosen.images
    if not isinstance(chosen, ImageFiles):
        raise ValueError(f"there is no way to read {type(images).__name__}")
    nothing = torch.empty(0, chosen.channels, *chosen.image_size, dtype=torch.uint8)
    return torch.cat([nothing, *plain_frames(chosen, batch_size=64, workers=0)])
