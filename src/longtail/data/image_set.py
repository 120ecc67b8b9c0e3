"""Images with labels, as every part of the project passes them on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """Labelled images held in memory. A sample's id is its position here.

    Attributes:
        images: uint8 ``[N, C, H, W]``, C = 1 (gray) or 3 (RGB), values 0..255.
        labels: int64 ``[N]``, 0..len(class_names)-1.
        class_names: one name a class, in label order.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.labels.numel())

    @property
    def num_classes(self) -> int:
        """Number of classes named, also those without an image."""
        return len(self.class_names)

    @property
    def class_counts(self) -> Tensor:
        """Images in each class, int64 ``[num_classes]``."""
        return torch.bincount(self.labels, minlength=self.num_classes)

    @property
    def channels(self) -> int:
        """Image channels: 1 or 3."""
        return int(self.images.shape[1])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.images.shape[2]), int(self.images.shape[3])

    def subset(self, indices: Tensor) -> ImageSet:
        """Return the images at ``indices [M]`` (int64), in that order, with new ids 0..M-1."""
        return ImageSet(self.images[indices], self.labels[indices], self.class_names)


@dataclass(frozen=True)
class DataSplits:
    """A training and a test set, and what follows from them for preprocessing.

    Attributes:
        name: what the user called it.
        train, test: the two sets, with the same class names.
        mean, std: per-channel pixel statistics on the 0..1 scale, used to normalise.
        views: name of the augmentation recipe that fits these images (see ``longtail.data.views``).
    """

    name: str
    train: ImageSet
    test: ImageSet
    mean: tuple[float, ...]
    std: tuple[float, ...]
    views: str
