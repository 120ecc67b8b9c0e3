"""Which images test and which train: stratified, whole groups on one side, and no class left without training images.

Every choice hangs on a hash of the image's path as listed, not on its place in a list: listing the files in another
order, or on another machine, gives the same split. Paths relative to another folder give another one.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from longtail.data.group_splits import GroupTally, choose_folds, choose_test_groups
from longtail.data.keyed import keyed_bits
from longtail.errors import UserError


def path_keys(paths: Sequence[str]) -> Tensor:
    """Return int64 ``[N]``, a 64-bit BLAKE2b hash of each path.

    Composed and decomposed spellings of a letter give the same key, since file systems differ in which they keep.
    """

    def digest(path: str) -> bytes:
        spelt = path if path.isascii() else unicodedata.normalize("NFC", path)
        return hashlib.blake2b(spelt.encode("utf-8", "surrogatepass"), digest_size=8).digest()

    words = bytearray()
    for path in paths:
        words += digest(path)
    return torch.from_numpy(np.frombuffer(words, dtype="<i8").astype(np.int64))


def pixel_keys(images: Tensor) -> Tensor:
    """Return int64 ``[N]``, a 64-bit BLAKE2b hash of the pixels of each of ``images`` (uint8 ``[N, C, H, W]``)."""
    words = b"".join(hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images.numpy())
    return torch.from_numpy(np.frombuffer(words, dtype="<i8").astype(np.int64))


def hold_out(labels: Tensor, keys: Tensor, share: float, seed: int, groups: Tensor | None = None) -> Tensor:
    """Return which images to test on, bool ``[N]``.

    Of a class with n >= 2 images, ``round(share * n)`` are held out, but at least one, and at most n - 1. Images added
    later change nothing in other classes, and in their own class move at most as many old images as were added.

    With ``groups`` no group is on both sides. Groups are chosen one by one, those of the rarest classes first, and
    then looked at again, so that each class's test share comes close to ``share``. A class's last training image is
    never taken: a class that lies in one group is not tested, nor is anything else in that group. Where groups hold
    many classes, a class is left untested rather than the shares of many upset.

    Args:
        labels: class indices, int64 ``[N]``.
        keys: of :func:`path_keys`, int64 ``[N]``.
        share: of each class to test on, between 0 and 1.
        seed: another seed gives another split.
        groups: int64 ``[N]``, any numbers; images with the same number belong together.

    Raises:
        UserError: ``share`` is out of range, or no class can be tested.
    """
    _check_shapes(labels, keys, groups)
    if not 0 < share < 1:
        raise UserError(f"--source.test_share {share} must lie between 0 and 1, such as 0.2.")
    is_test = spare(labels, keys, share, seed, groups)
    if not is_test.any():
        why = "no class has more than one image" if groups is None else "every group holds all images of some class"
        raise UserError(
            f"nothing can be held out to test on without leaving a class untrained: {why}; add images, or give a test "
            "set with --source.test."
        )
    return is_test


def spare(labels: Tensor, keys: Tensor, share: float, seed: int, groups: Tensor | None = None) -> Tensor:
    """Return which images :func:`hold_out` takes, bool ``[N]``; arguments as there. None, if none can be spared."""
    counts = torch.bincount(labels)
    target = (share * counts.double()).round().long().clamp(min=1).minimum(counts - 1).clamp(min=0)
    bits = keyed_bits(seed, "hold-out", ids=keys).squeeze(1)
    order = _sorted_by(labels, bits)
    rank = torch.empty_like(labels)
    rank[order] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    is_test = rank < target[labels]
    if groups is not None:
        # Only classes with an image that is tied to another need more than that.
        _, group, size = torch.unique(groups, return_inverse=True, return_counts=True)
        tied = torch.isin(labels, torch.unique(labels[size[group] > 1]))
        tally = GroupTally.of(labels[tied], groups[tied], bits[tied])
        is_test[tied] = choose_test_groups(tally, target.tolist())[tally.of_image]
    return is_test


def fold_of(labels: Tensor, keys: Tensor, folds: int, seed: int, groups: Tensor | None = None) -> Tensor:
    """Return the fold in which each image is tested, int64 ``[N]``: 0..folds-1, or -1 for always training.

    In every fold every class keeps a training image. Always training are classes with one image and, with ``groups``,
    every group that holds all of some class (and, rarely, one that fits no fold without emptying a class).
    Without groups, the folds of each class, and the folds as a whole, differ by at most one image; with groups, by
    about one group.

    Args:
        labels, keys, seed, groups: as in :func:`hold_out`.
        folds: at least 2, at most the images of the largest class.

    Raises:
        UserError: ``folds`` is out of range, or there are too few groups to fill the folds.
    """
    _check_shapes(labels, keys, groups)
    counts = torch.bincount(labels)
    most = int(counts.max()) if len(counts) else 0
    if folds < 2:
        raise UserError(f"--folds {folds} must be 2 or more.")
    if folds > most:
        raise UserError(f"--folds {folds} is more than the {most} images of the largest class; choose {most} or fewer.")
    bits = keyed_bits(seed, "folds", ids=keys).squeeze(1)
    if groups is not None:
        tally = GroupTally.of(labels, groups, bits)
        return choose_folds(tally, folds)[tally.of_image]
    # Dealt like cards, small classes first: consecutive images of a class go to different folds, and any run of
    # small classes is spread over all folds too, not only the whole.
    order = _sorted_by(labels, bits)
    order = order[torch.argsort(counts[labels[order]], stable=True)]
    order = order[counts[labels[order]] > 1]
    fold = torch.full_like(labels, -1)
    fold[order] = torch.arange(len(order)) % folds
    return fold


def straddling(groups: Tensor, is_test: Tensor) -> list[int]:
    """Return, ascending, the groups that have images on both sides; ``groups`` int64 ``[N]``, ``is_test`` bool."""
    both = np.intersect1d(groups[is_test].numpy(), groups[~is_test].numpy())
    return [int(group) for group in both]


def tie_duplicates(groups: Tensor | None, digests: Tensor) -> Tensor | None:
    """Return groups (int64 ``[N]``) in which images of the same pixels are together; None if every image is alone.

    Args:
        groups: int64 ``[N]``, 0..G-1, what is together anyway; or None.
        digests: int64 ``[N]``, a hash of each image's pixels; 0 = not known, equal to nothing.
    """
    alone = -1 - torch.arange(len(digests))
    same: Tensor
    _, same, count = torch.unique(torch.where(digests != 0, digests, alone), return_inverse=True, return_counts=True)
    if int(count.max()) == 1:
        return groups
    if groups is None:
        return same
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # Images and groups are joined where they share pixels: the connected parts of that graph stay together.
    offset = int(groups.max()) + 1
    edges = coo_array(
        (torch.ones(len(same)).numpy(), (groups.numpy(), same.numpy() + offset)),
        shape=(offset + len(count), offset + len(count)),
    )
    _, part = connected_components(edges, directed=False)
    tied: Tensor = torch.from_numpy(part).long()[groups]
    return tied


def group_names(paths: Sequence[str], pattern: str) -> list[str]:
    """Return what the regular expression ``pattern`` finds in each path: its first capture group, or the whole match.

    Raises:
        UserError: ``pattern`` is not a regular expression, or finds nothing in some path.
    """
    try:
        search = re.compile(pattern).search
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"--source.group_pattern {pattern!r} is not a regular expression: {error}.") from None
    # The first entry of groups() is the first capture group; without any, the match itself is the name.
    found = [match and (match.group(1) if match.re.groups else match.group()) for match in map(search, paths)]
    missing = [path for path, name in zip(paths, found, strict=True) if not name]
    if missing:
        raise UserError(
            f"--source.group_pattern {pattern!r} finds no group in {len(missing)} of {len(paths)} paths, first in "
            f"{missing[0]!r}; write one that matches every path."
        )
    return [name or "" for name in found]


def _check_shapes(labels: Tensor, keys: Tensor, groups: Tensor | None) -> None:
    """Raise ValueError unless all are int64 vectors of one length, and labels are not negative."""
    for tensor in (labels, keys) if groups is None else (labels, keys, groups):
        if tensor.dtype != torch.int64 or tensor.shape != (len(labels),):
            raise ValueError(
                f"labels, keys and groups must be int64 [{len(labels)}], got {tensor.dtype} {list(tensor.shape)}."
            )
    if len(labels) and int(labels.min()) < 0:
        raise ValueError("labels must not be negative.")


def _sorted_by(labels: Tensor, bits: Tensor) -> Tensor:
    """Return positions ``[N]`` class by class, in the order of ``bits`` within a class."""
    order = torch.argsort(bits, stable=True)
    return order[torch.argsort(labels[order], stable=True)]
