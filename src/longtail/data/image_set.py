"""Images with labels, as every part of the project passes them on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from longtail.data.path_table import PathTable
from longtail.data.tar_members import Members

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Framing:
    """How an image of any size becomes ``H x W`` pixels where nothing is random.

    Attributes:
        size: height and width of the result, in pixels.
        resize: length that the shorter side is resized to (antialiased) before the centre crop; at least ``max(size)``.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
    """

    size: tuple[int, int]
    resize: int
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if min(self.size) < 1 or self.resize < max(self.size):
            raise ValueError(f"a framing needs a size of at least 1 and resize >= its sides, not {self}")


class LabelledImages:
    """What arrays in memory and files on disk have in common. A sample's id is its position.

    Attributes:
        labels: int64 ``[N]``, 0..len(class_names)-1.
        class_names: one name a class, in label order.
        paths: one a file, as listed; None where the images never were files.
    """

    labels: Tensor
    class_names: tuple[str, ...]
    paths: PathTable | None

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
        raise NotImplementedError

    @property
    def framing(self) -> Framing:
        """How the images become the size that an encoder sees."""
        raise NotImplementedError

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels that an encoder sees."""
        return self.framing.size

    def subset(self, indices: Tensor) -> Self:
        """Return the images at ``indices [M]`` (int64), in that order, with new ids 0..M-1."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Return a SHA-256 over labels and images, by which a resumed run knows its data again."""
        raise NotImplementedError


@dataclass(frozen=True)
class ImageSet(LabelledImages):
    """Labelled images held in memory.

    Attributes:
        images: uint8 ``[N, C, H, W]``, C = 1 (gray) or 3 (RGB), values 0..255.
        labels: int64 ``[N]``, 0..len(class_names)-1.
        class_names: one name a class, in label order.
        framed: how files became these images; None if the images were arrays from the start.
        paths: of those files; None if there were none.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    framed: Framing | None = None
    paths: PathTable | None = None

    @property
    def channels(self) -> int:
        """Image channels: 1 or 3."""
        return int(self.images.shape[1])

    @property
    def framing(self) -> Framing:
        """How the images came to their size: as they are, unless they were files."""
        height, width = int(self.images.shape[2]), int(self.images.shape[3])
        return self.framed or Framing((height, width), max(height, width))

    def subset(self, indices: Tensor) -> Self:
        """Return the images at ``indices [M]`` (int64), in that order, with new ids 0..M-1."""
        paths = None if self.paths is None else self.paths.select(indices.tolist())
        return replace(self, images=self.images[indices], labels=self.labels[indices], paths=paths)

    def fingerprint(self) -> str:
        """Return a SHA-256 over labels and pixels."""
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        digest.update(self.images.contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class ImageFiles(LabelledImages):
    """Labelled image files, decoded when they are needed; always three channels.

    Attributes:
        root: folder that relative paths belong to.
        paths: one a file.
        labels: int64 ``[N]``, 0..len(class_names)-1.
        class_names: one name a class, in label order.
        sizes: int32 ``[N, 2]``, height and width of each file as displayed; 0 where the files were not looked at.
        digests: int64 ``[N]``, a hash of each file's pixels; 0 where they were not looked at.
        framed: how they become the size that an encoder sees; None until that is chosen.
        members: where they lie, if in tar shards; None: they are files of their own.
    """

    root: Path
    paths: PathTable
    labels: Tensor
    class_names: tuple[str, ...]
    sizes: Tensor
    digests: Tensor
    framed: Framing | None = None
    members: Members | None = None

    @property
    def channels(self) -> int:
        """Always 3: gray files become RGB."""
        return 3

    @property
    def framing(self) -> Framing:
        """How the files become the size that an encoder sees."""
        if self.framed is None:
            raise ValueError("these image files have no framing yet")
        return self.framed

    def path(self, index: int) -> str:
        """Return where file ``index`` lies: its path, or shard and bytes (see ``tar_members``)."""
        if self.members is not None:
            return self.members.member(self.root, index, self.paths[index]).place()
        return str(self.root / self.paths[index])

    def subset(self, indices: Tensor) -> Self:
        """Return the files at ``indices [M]`` (int64), in that order, with new ids 0..M-1."""
        return replace(
            self,
            paths=self.paths.select(indices.tolist()),
            labels=self.labels[indices],
            sizes=self.sizes[indices],
            digests=self.digests[indices],
            members=None if self.members is None else self.members.select(indices),
        )

    def fingerprint(self) -> str:
        """Return a SHA-256 over labels, framing and pixel hashes; over paths where pixels were not looked at."""
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        digest.update(repr(self.framed).encode())
        looked_at = len(self) > 0 and bool((self.digests != 0).all())
        digest.update(self.digests.numpy().tobytes() if looked_at else self.paths.digest())
        return digest.hexdigest()


@dataclass(frozen=True)
class DataSplits:
    """A training and a test set, and what follows from them for preprocessing.

    Attributes:
        name: what the user called it.
        train, test: the two sets, with the same class names.
        mean, std: per-channel pixel statistics on the 0..1 scale, used to normalise; empty for files without framing.
        views: name of the augmentation recipe that fits these images (see ``longtail.data.views``).
        test_split: where the test set comes from, in words.
        notes: sentences for the user, about the data.
        skipped: files left out because they cannot be read, each with the reason.
        validation: images held out of the training set, to choose and calibrate on; None if there are none.
        validation_split: where the validation set comes from, in words.
        train_groups: int64 ``[N]``, training images with the same number must not be torn apart; None = all may be.
    """

    name: str
    train: LabelledImages
    test: LabelledImages
    mean: tuple[float, ...]
    std: tuple[float, ...]
    views: str
    test_split: str = "given"
    notes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    validation: LabelledImages | None = None
    validation_split: str = ""
    train_groups: Tensor | None = None
