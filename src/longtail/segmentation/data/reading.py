"""An image and its mask, from files to tensors of one size."""

from __future__ import annotations

import numpy as np
import torch
from PIL.Image import Resampling
from torch import Tensor

from longtail.data.decode import BadImage, read_image
from longtail.errors import UserError
from longtail.segmentation.data.mask_set import MaskFiles


def read_pair(files: MaskFiles, index: int, whole_mask: bool = False) -> tuple[Tensor, Tensor]:
    """Return the image, uint8 ``[3, H, W]``, and its labels, int16 ``[H, W]``, at ``files.size`` if that is set.

    The image is resized with antialiasing (bilinear), the mask to the nearest pixel; with ``whole_mask`` the mask stays
    at its own size, as truth to compare with.

    Raises:
        UserError: a file cannot be read, the mask has another size than its image, or holds what is no class.
    """
    try:
        image = read_image(files.image_path(index))
    except BadImage as error:
        raise UserError(f"image {files.image_path(index)} cannot be read: {error.reason}.") from None
    try:
        labels = files.read_mask(files.mask_path(index))
    except BadImage as error:
        raise UserError(f"mask {files.mask_path(index)} cannot be used: {error.reason}.") from None
    height, width = labels.shape
    if (width, height) != image.size:
        raise UserError(
            f"mask {files.mask_path(index)} is {width} x {height} pixels, but its image {files.images[index]} is "
            f"{image.width} x {image.height}; they must be of one size."
        )
    if files.size is not None and files.size != (height, width):
        image = image.resize(files.size[::-1], Resampling.BILINEAR)
        labels = labels if whole_mask else nearest(labels, files.size)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), labels


def nearest(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return ``labels [H, W]`` at another height and width: each pixel the label at its centre."""
    rows, columns = (
        torch.arange(1, 2 * new, 2).mul_(old).div_(2 * new, rounding_mode="floor")  # (i + 1/2) old / new, exactly
        for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[rows[:, None], columns]
