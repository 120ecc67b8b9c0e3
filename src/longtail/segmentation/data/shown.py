"""What training crops show of each class, estimated from masks before the training.

A random resize and a crop leave the shares of classes about as they are, but crops that are laid around rare classes do
not: what the loss sees is then another prior than that of the pixels, and logit adjustment must go by what it sees.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longtail.data.decode import BadImage
from longtail.data.keyed import derive_seed
from longtail.errors import UserError
from longtail.segmentation.data.geometry import Geometry, class_rarity, cut_labels, draw_crops
from longtail.segmentation.data.mask_set import IGNORE, MaskFiles
from longtail.segmentation.data.reading import nearest

_IMAGES, _CROPS = 1000, 4000
"""Masks that are read at most, and crops that are looked at: two of each mask at least, eight at most."""


def shown_pixels(files: MaskFiles, geometry: Geometry, seed: int, images: int = _IMAGES) -> tuple[Tensor, Tensor]:
    """Return the pixels of each class in some crops, int64 ``[M, C]``, and in the images that they show, ``[N, C]``.

    At most ``images`` masks are read, evenly spread, and two to eight crops are drawn of each: as in no epoch of the
    training, but by the same rules. The images themselves are not read. A function of the data and the seed alone.

    Raises:
        UserError: a mask cannot be read any more.
    """
    number = min(images, len(files))
    crops = min(max(_CROPS // max(number, 1), 2), 8)
    ids = torch.arange(number) * len(files) // max(number, 1)
    rarity = class_rarity(files.class_counts)
    own_seed = derive_seed(seed, "shown")
    draws = [draw_crops(geometry, ids, files.pixels[ids], rarity, own_seed, epoch) for epoch in range(crops)]
    found = torch.zeros(number * crops, files.num_classes, dtype=torch.int64)
    for place, index in enumerate(ids.tolist()):
        try:
            labels = files.read_mask(files.mask_path(index))
        except BadImage as error:
            raise UserError(f"mask {files.mask_path(index)} cannot be used: {error.reason}.") from None
        labels = labels if files.size is None else nearest(labels, files.size)
        for epoch, of_epoch in enumerate(draws):
            seen = cut_labels(labels, of_epoch[place].lay(geometry, labels), geometry.crop)
            found[epoch * number + place] = torch.bincount(seen[seen != IGNORE].long(), minlength=files.num_classes)
    return found, files.pixels[ids]


def seen_more_often(shown: Tensor, images: Tensor) -> Tensor:
    """Return how many times its share of the pixels each class has in crops, float64 ``[C]``; 1 where none tells.

    Args:
        shown: int64 ``[M, C]``, pixels of each class in each crop.
        images: int64 ``[N, C]``, in the images that the crops show.
    """
    crops, whole = shown.sum(0).double(), images.sum(0).double()
    known = (crops > 0) & (whole > 0)
    ratio = (crops / crops.sum().clamp(min=1)) / (whole / whole.sum().clamp(min=1)).clamp(min=1e-300)
    return torch.where(known, ratio, 1.0)
