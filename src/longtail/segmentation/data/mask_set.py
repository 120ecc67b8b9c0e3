"""Images with masks, as every part of the room passes them on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from torch import Tensor

from longtail.data.path_table import PathTable

IGNORE = -1
"""Label of pixels that count nowhere: void, other, and what lies outside the image."""

MaskReader = Callable[[Path], Tensor]
"""Reads a mask file as labels, int16 ``[H, W]``, 0..C-1 or ``IGNORE``; picklable, as worker processes call it.

Raises:
    BadImage: the file cannot be read, or holds a value or colour that is no class.
"""


@dataclass(frozen=True)
class MaskFiles:
    """Image files with a mask each, decoded when they are needed. A sample's id is its position.

    Attributes:
        root: folder that relative paths belong to.
        images: N paths, as listed.
        masks: N paths, as listed.
        read_mask: how a mask file becomes labels.
        class_names: C names in label order.
        palette: uint8 ``[C, 3]``, the colour of each class in overlays.
        pixels: int64 ``[N, C]``, pixels of each class in each image (at the files' own size).
        sizes: int64 ``[N, 2]``, height and width of each image.
        size: height and width that images and masks are brought to when they are read; None = as they are.
    """

    root: Path
    images: PathTable
    masks: PathTable
    read_mask: MaskReader
    class_names: tuple[str, ...]
    palette: Tensor
    pixels: Tensor
    sizes: Tensor
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """Number of classes named, also those without a pixel."""
        return len(self.class_names)

    @property
    def class_counts(self) -> Tensor:
        """Pixels of each class, int64 ``[C]``."""
        return self.pixels.sum(0)

    @property
    def read_pixels(self) -> Tensor:
        """Pixels of each class in each image as it is read, float64 ``[N, C]``: at ``size``, if that is set."""
        if self.size is None:
            return self.pixels.double()
        return self.pixels * (self.size[0] * self.size[1] / self.sizes.double().prod(1))[:, None]

    @property
    def image_counts(self) -> Tensor:
        """Images that hold each class, int64 ``[C]``."""
        return (self.pixels > 0).sum(0)

    def image_path(self, index: int) -> Path:
        """Return where the image at ``index`` lies."""
        return self.root / self.images[index]

    def mask_path(self, index: int) -> Path:
        """Return where the mask at ``index`` lies."""
        return self.root / self.masks[index]

    def subset(self, indices: Tensor) -> Self:
        """Return the images at ``indices [M]`` (int64), in that order, with new ids 0..M-1."""
        places = indices.tolist()
        return replace(
            self,
            images=self.images.select(places),
            masks=self.masks.select(places),
            pixels=self.pixels[indices],
            sizes=self.sizes[indices],
        )

    def fingerprint(self) -> str:
        """Return a SHA-256 over names, classes and pixel counts, by which a resumed run knows its data again."""
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        for part in (self.images.digest(), self.masks.digest(), self.pixels.numpy().tobytes()):
            digest.update(part)
        digest.update(self.sizes.numpy().tobytes() + repr(self.size).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class MaskSplits:
    """What a run reads of its data.

    Attributes:
        name: of the data.
        train, test: never None.
        validation: held out of the training images, or None.
        mean, std: per-channel statistics of the training pixels (of at most 500 images), on 0..1.
        test_split: how the test images were chosen, in words.
        validation_split: likewise; "" without.
        notes: sentences for the user.
        skipped: (file, reason) of what was left out with ``--on_bad_image skip``.
    """

    name: str
    train: MaskFiles
    test: MaskFiles
    validation: MaskFiles | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    test_split: str
    validation_split: str = ""
    notes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
