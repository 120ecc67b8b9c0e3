"""Every image that a source lists, as it is: also where files are broken, splits are bad or one cannot train on it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from longtail.data.check_images import MODES, ImageFacts, check_images
from longtail.data.file_splits import FileChecks
from longtail.data.image_set import DataSplits, ImageFiles, ImageSet, LabelledImages
from longtail.data.labels import in_order
from longtail.data.listing import Listing
from longtail.data.near_duplicates import Signatures
from longtail.data.path_table import PathTable
from longtail.data.sources import list_files, load_data
from longtail.data.splits import group_names
from longtail.errors import UserError
from longtail.option_groups import DataOptions

TRAIN, TEST, LEFT_OUT = 0, 1, 2
"""Where an image goes; left out are those that cannot be read, and those that an option or a rule leaves aside."""


@dataclass(frozen=True)
class Survey:
    """What was found at N images.

    Attributes:
        name: what the user called the source.
        images: all of them, in memory or as files, with labels; broken ones too.
        sides: int8 ``[N]``: :data:`TRAIN`, :data:`TEST` or :data:`LEFT_OUT`.
        facts: size, kind of pixels and pixel hash of each, and which cannot be read.
        signatures: for near duplicates; nothing is known where the files were only sampled.
        groups: what a split must not tear apart, one a image; None if not given.
        splits: what would be trained and tested on; None if that is refused.
        refusal: why, in the words that the user would meet; None if it is not refused.
    """

    name: str
    images: LabelledImages
    sides: NDArray[np.int8]
    facts: ImageFacts
    signatures: Signatures
    groups: list[str] | None
    splits: DataSplits | None
    refusal: str | None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each image, ``[N]``."""
        labels: NDArray[np.int64] = self.images.labels.numpy()
        return labels

    def title(self, index: int) -> str:
        """Return the path of an image as listed, or where it stands in the arrays."""
        if isinstance(self.images, ImageFiles):
            return self.images.paths[index]
        train = int((self.sides == TRAIN).sum())
        return f"training image {index}" if index < train else f"test image {index - train}"


def survey(
    data: str,
    *,
    imbalance: float | None,
    root: str | None,
    folds: int | None,
    source: DataOptions,
    checks: FileChecks,
) -> Survey:
    """Look at every image of ``data``; arguments as for :func:`longtail.data.sources.load_data`.

    Files are decoded once, and what train would check again it finds in the cache.

    Raises:
        UserError: there is nothing of that name, or a table, a list or arrays cannot be read.
    """
    listing = list_files(data, root, source, checks)
    with tempfile.TemporaryDirectory() as own:
        checks = replace(checks, on_bad="skip", cache=checks.cache or Path(own))

        def split() -> DataSplits:
            return load_data(data, imbalance=imbalance, root=root, folds=folds, source=source, checks=checks)

        return _of_arrays(split()) if listing is None else _of_files(listing, source, checks, split)


def _of_arrays(splits: DataSplits) -> Survey:
    """Survey arrays in memory: the training images, then the test images."""
    train, test = splits.train, splits.test
    assert isinstance(train, ImageSet)
    assert isinstance(test, ImageSet)
    images = ImageSet(torch.cat([train.images, test.images]), torch.cat([train.labels, test.labels]), train.class_names)
    count, (height, width) = len(images), images.image_size
    signatures, digests = Signatures(count), np.zeros(count, np.int64)
    for index in range(count):
        pixels = images.images[index]
        digests[index] = array_digest(pixels)
        signatures.add(index, array_image(pixels))
    facts = ImageFacts(
        widths=np.full(count, width, np.int32),
        heights=np.full(count, height, np.int32),
        modes=np.full(count, MODES.index("L" if images.channels == 1 else "RGB"), np.uint8),
        frames=np.ones(count, np.int32),
        digests=digests,
        errors={},
    )
    sides = np.repeat(np.array([TRAIN, TEST], np.int8), [len(train), len(test)])
    return Survey(splits.name, images, sides, facts, signatures, None, splits, None)


def array_image(pixels: torch.Tensor) -> Image.Image:
    """Return uint8 pixels ``[C, H, W]``, one or three channels, as an RGB image."""
    rows = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(np.repeat(rows, 3, 2) if rows.shape[2] == 1 else rows))


def array_digest(pixels: torch.Tensor) -> int:
    """Return a 64-bit hash of uint8 pixels ``[C, H, W]``, never 0."""
    digest = hashlib.blake2b(repr(tuple(pixels.shape)).encode(), digest_size=8)
    digest.update(pixels.contiguous().numpy().tobytes())
    return int.from_bytes(digest.digest(), "little", signed=True) or 1


def _of_files(listing: Listing, source: DataOptions, checks: FileChecks, split: Callable[[], DataSplits]) -> Survey:
    order = sorted(range(len(listing)), key=listing.paths.__getitem__)
    listing = listing.select(order)
    count, full = len(listing), source.check == "full"
    signatures = Signatures(count if full else 0)
    facts = check_images(
        listing.root,
        listing.paths,
        "full" if full else "header",
        checks.workers,
        checks.cache,
        listing.name,
        checks.progress,
        signatures.add if full else None,
        listing.place,
    )
    splits = refusal = None
    try:
        splits = split()
    except UserError as error:
        refusal = str(error)
    labels, names, sides = _labels_as_written(listing) if splits is None else _labels_of(splits, listing)
    sides[list(facts.errors)] = LEFT_OUT
    images = ImageFiles(
        root=listing.root,
        paths=PathTable(listing.paths),
        labels=labels,
        class_names=names,
        sizes=torch.stack([torch.from_numpy(facts.heights), torch.from_numpy(facts.widths)], 1),
        digests=torch.from_numpy(facts.digests),
        members=listing.members,
    )
    groups = listing.groups
    if source.group_pattern is not None:
        groups = _groups(listing, source.group_pattern)
    return Survey(listing.name, images, sides, facts, signatures, groups, splits, refusal)


def _groups(listing: Listing, pattern: str) -> list[str] | None:
    try:
        return group_names(listing.paths, pattern)
    except UserError:  # already the refusal
        return None


def _labels_of(splits: DataSplits, listing: Listing) -> tuple[torch.Tensor, tuple[str, ...], NDArray[np.int8]]:
    """Return labels, class names and sides as training would have them; what it leaves out keeps its written label."""
    names = splits.train.class_names
    position = {path: index for index, path in enumerate(listing.paths)}
    written, written_names, _ = _labels_as_written(listing)
    by_name = {name: number for number, name in enumerate(names)}
    labels = torch.tensor([by_name.get(name, 0) for name in written_names], dtype=torch.int64)[written]
    sides = np.full(len(listing), LEFT_OUT, np.int8)
    for side, part in ((TRAIN, splits.train), (TEST, splits.test)):
        assert isinstance(part, ImageFiles)
        places = [position[part.paths[index]] for index in range(len(part))]
        labels[places] = part.labels
        sides[places] = side
    return labels, names, sides


def _labels_as_written(listing: Listing) -> tuple[torch.Tensor, tuple[str, ...], NDArray[np.int8]]:
    """Return labels, class names and sides without asking whether one could train on them."""
    names = listing.class_names or ()
    if listing.numbered and names:
        texts = [names[int(text)] if int(text) < len(names) else text for text in listing.labels]
    else:
        texts = [text if names else text.strip() for text in listing.labels]
    classes = tuple(dict.fromkeys([*names, *in_order(set(texts))]))
    number = {name: index for index, name in enumerate(classes)}
    labels = torch.tensor([number[text] for text in texts], dtype=torch.int64)
    splits = listing.splits or ["train"] * len(listing)
    sides = np.array([TRAIN if split == "train" else TEST for split in splits], np.int8)
    return labels, classes, sides
