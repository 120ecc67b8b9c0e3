"""Images that are nearly the same: re-encoded, resized, a little brighter, or two frames of one burst.

Two looks. A 64-bit difference hash (Krawetz 2013, "Kind of Like That") finds candidates in near-linear time; then small
thumbnails are compared, since a hash alone pairs every image that has a plain background.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HASH_DISTANCE = 7
"""Bits of 64 that the hashes of a candidate pair may differ in."""
LIKENESS = 0.95
"""Least likeness of a pair (:func:`likeness_of`), 1 = equal but for brightness and contrast."""
THUMB_SIDE = 16
SMALLEST_SIDE = 16
"""Images with a shorter side have too few pixels to tell a copy from a look-alike."""
MOST_OF_A_HASH = 64
"""Images with one hash that are compared, so that a crowd of them does not take quadratic time."""

_ACTIVE = 4.0  # gray levels of deviation in a block of a thumbnail; below it there is nothing to compare
_FEWEST_ACTIVE = 4
_BANDS = 4
_BAND_BITS = 64 // _BANDS
_PAIRS_AT_A_TIME = 1 << 21
_ONES = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)


class Signatures:
    """Hash and thumbnail of N images, filled in any order and from several threads.

    Attributes:
        hashes: uint64 ``[N]``.
        thumbs: uint8 ``[N, THUMB_SIDE, THUMB_SIDE]``, brightness.
        known: bool ``[N]``, which were added.
    """

    def __init__(self, count: int) -> None:
        self.hashes = np.zeros(count, np.uint64)
        self.thumbs = np.zeros((count, THUMB_SIDE, THUMB_SIDE), np.uint8)
        self.known = np.zeros(count, np.bool_)

    def add(self, index: int, image: Image.Image) -> None:
        """Take in image ``index``, mode RGB; one that is too small is passed over."""
        if min(image.size) < SMALLEST_SIDE:
            return
        self.hashes[index], self.thumbs[index] = signature(image)
        self.known[index] = True


def signature(image: Image.Image) -> tuple[int, NDArray[np.uint8]]:
    """Return the difference hash of an RGB image and a thumbnail of its brightness ``[THUMB_SIDE, THUMB_SIDE]``.

    A bit is 1 where one of 9 x 8 means of brightness is above its left neighbour.
    """
    # Both are means over parts of 16 rows of 144: one pass over the image, whatever its size.
    rows = image.resize((9 * THUMB_SIDE, THUMB_SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)
    small = np.asarray(rows, np.float32)
    gray = small @ np.array([0.299, 0.587, 0.114], np.float32)
    thumb = gray.reshape(THUMB_SIDE, THUMB_SIDE, 9).mean(2)
    blocks = gray.reshape(8, 2, 9, THUMB_SIDE).mean((1, 3))
    bits = np.packbits(blocks[:, 1:] > blocks[:, :-1])
    return int.from_bytes(bits.tobytes(), "little"), thumb.round().astype(np.uint8)


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of images that are nearly the same.

    Attributes:
        pairs: int64 ``[M, 2]``, positions, the lower first; most alike first.
        likeness: float32 ``[M]``, see :func:`likeness_of`.
        compared: how many images were compared.
        too_small, plain, crowded: how many were not: below :data:`SMALLEST_SIDE`, without anything to be seen in the
            thumbnail, or beyond :data:`MOST_OF_A_HASH` images with their hash.
    """

    pairs: NDArray[np.int64]
    likeness: NDArray[np.float32]
    compared: int
    too_small: int
    plain: int
    crowded: int


def find_near_duplicates(signatures: Signatures, digests: NDArray[np.int64]) -> NearDuplicates:
    """Return the pairs of images that are nearly, but not exactly, the same.

    Of images with equal pixels the first stands for all: the others are found by their digests.

    Args:
        signatures: of N images.
        digests: int64 ``[N]``, a hash of the pixels; 0 = not known.
    """
    plain = signatures.known & (_active_blocks(signatures.thumbs) < _FEWEST_ACTIVE)
    usable = signatures.known & ~plain
    _, first = np.unique(np.where(digests != 0, digests, -1 - np.arange(len(digests))), return_index=True)
    alone = np.zeros(len(digests), np.bool_)
    alone[first] = True
    members = np.flatnonzero(usable & alone)
    members, crowded = _without_crowds(members, signatures.hashes)
    candidates = members[close_pairs(signatures.hashes[members], HASH_DISTANCE)]
    likeness = likeness_of(signatures.thumbs, candidates)
    alike = likeness >= LIKENESS
    pairs, likeness = candidates[alike], likeness[alike]
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -likeness))
    return NearDuplicates(
        pairs[order],
        likeness[order],
        compared=len(members),
        too_small=int((~signatures.known).sum()),
        plain=int(plain.sum()),
        crowded=crowded,
    )


def close_pairs(hashes: NDArray[np.uint64], distance: int) -> NDArray[np.int64]:
    """Return every pair of ``hashes [N]`` that differs in at most ``distance`` bits, int64 ``[M, 2]``, sorted.

    Multi-index hashing (Norouzi et al. 2012): of the four 16-bit bands of a close pair, one differs in at most a
    quarter of ``distance`` bits, so only hashes that share such a band are compared. Exact; the time is near linear in
    N as long as bands are spread.
    """
    found = [np.zeros(0, np.int64)]
    count = len(hashes)
    # A band takes every fourth bit: it then samples the whole image, where a border would make whole bands equal.
    bits = np.unpackbits(np.ascontiguousarray(hashes).view(np.uint8).reshape(count, 8), axis=1)
    for band in range(_BANDS):
        keys = np.packbits(bits[:, band::_BANDS], axis=1).view(np.uint16).reshape(count)
        order = np.argsort(keys, kind="stable")
        starts = np.concatenate([[0], np.bincount(keys, minlength=1 << _BAND_BITS).cumsum()])
        for mask in _masks(distance // _BANDS):
            partner = keys[order] ^ np.uint16(mask)
            # Each unordered pair once: later ones of an equal band, or the band that is the larger number.
            low = np.arange(1, count + 1) if mask == 0 else starts[partner]
            high = np.where(partner >= keys[order], starts[partner.astype(np.int64) + 1], low)
            for left, right in _joined(low, high):
                one, other = order[left], order[right]
                near = _differing_bits(hashes[one], hashes[other]) <= distance
                one, other = one[near], other[near]
                found.append(np.minimum(one, other) * count + np.maximum(one, other))
    codes = np.unique(np.concatenate(found))
    return np.stack(np.divmod(codes, max(count, 1)), 1)


def likeness_of(thumbs: NDArray[np.uint8], pairs: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return how alike the ``thumbs [N, S, S]`` of each of ``pairs [M, 2]`` are, float32 ``[M]``, at most 1.

    The mean correlation over blocks of 2 x 2 pixels, of those in which either thumbnail shows something. Taken so
    locally, neither brightness and contrast count nor a plain background and the outline before it: it is what is
    inside of things that must agree.
    """
    likeness = np.zeros(len(pairs), np.float32)
    for start in range(0, len(pairs), 4096):
        part = slice(start, start + 4096)
        one, other = (_blocks(thumbs[pairs[part, side]]) for side in (0, 1))
        energy, energy_other = (one**2).sum(2), (other**2).sum(2)
        active = np.maximum(energy, energy_other) >= 4 * _ACTIVE**2
        correlation = (one * other).sum(2) / np.sqrt(np.maximum(energy * energy_other, 1e-6))
        likeness[part] = np.where(active, correlation, 0).sum(1) / np.maximum(active.sum(1), _FEWEST_ACTIVE)
    return likeness


def _blocks(thumbs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the blocks of 2 x 2 pixels, each less its mean: ``[N, S, S]`` to ``[N, S * S / 4, 4]``."""
    half = THUMB_SIDE // 2
    values = thumbs.astype(np.float32).reshape(-1, half, 2, half, 2).transpose(0, 1, 3, 2, 4).reshape(-1, half**2, 4)
    centred: NDArray[np.float32] = values - values.mean(2, keepdims=True)
    return centred


def _active_blocks(thumbs: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return in how many blocks each of ``thumbs [N, S, S]`` shows something, ``[N]``."""
    active = np.zeros(len(thumbs), np.int64)
    for start in range(0, len(thumbs), 4096):
        part = slice(start, start + 4096)
        active[part] = ((_blocks(thumbs[part]) ** 2).sum(2) >= 4 * _ACTIVE**2).sum(1)
    return active


def _without_crowds(members: NDArray[np.int64], hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], int]:
    """Return at most :data:`MOST_OF_A_HASH` of the ``members`` with one hash, and how many are left out."""
    order = np.argsort(hashes[members], kind="stable")
    ordered = hashes[members][order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(ordered) else ordered
    sizes = np.diff(np.concatenate([starts, [len(ordered)]])).astype(np.int64)
    rank = np.arange(len(ordered)) - np.repeat(starts.astype(np.int64), sizes)
    kept = np.sort(members[order[rank < MOST_OF_A_HASH]])
    return kept, len(members) - len(kept)


def _masks(bits: int) -> Iterator[int]:
    """Yield every number of a band's width with at most ``bits`` ones, 0 first."""
    for ones in range(bits + 1):
        for places in combinations(range(_BAND_BITS), ones):
            yield sum(1 << place for place in places)


def _joined(low: NDArray[np.int64], high: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield all (i, j) with low[i] <= j < high[i], a bounded number at a time."""
    sizes = np.maximum(high - low, 0)
    ends = sizes.cumsum()
    start = 0
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _PAIRS_AT_A_TIME, side="right")))
        part = sizes[start:stop]
        left = np.repeat(np.arange(start, stop), part)
        if len(left):
            offset = np.arange(len(left)) - np.repeat(part.cumsum() - part, part)
            yield left, low[left] + offset
        start = stop


def _differing_bits(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.int64]:
    words = np.ascontiguousarray(one ^ other).view(np.uint16).reshape(-1, 4)
    ones: NDArray[np.int64] = _ONES[words].sum(1, dtype=np.int64)
    return ones
