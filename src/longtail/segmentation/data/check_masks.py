"""The look at every image and mask before training: one pass, by worker processes, whose findings are kept."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from longtail.data.decode import BadImage, read_image
from longtail.data.streaming import stream
from longtail.segmentation.data.mask_facts import PairFacts, load_facts, pair_keys, save_facts
from longtail.segmentation.data.mask_listing import MaskListing
from longtail.segmentation.data.raw_masks import read_raw_mask

_PAIRS_AT_A_TIME = 8
_PAIRS_A_WORKER = 64
"""For fewer a process is not worth its start."""
_MOST_CODES = 4096
"""A mask with more values or colours is a photograph, or was smoothed."""
_SAVE_EVERY = 60.0  # seconds

Bad = tuple[str, str]
"""A file that cannot be used, and why."""


def check_masks(
    listing: MaskListing,
    workers: int,
    cache: Path | None,
    progress: Callable[[int, int], None] | None = None,
) -> list[PairFacts | Bad]:
    """Return what is found in each pair of the listing: its facts, or the file that is bad.

    What is found out about good pairs is kept with their files' sizes and modification times, so that the next run
    looks only at new and changed ones.

    Args:
        listing: N pairs.
        workers: processes; fewer are used for few pairs.
        cache: folder for what was found; None = it is not kept.
        progress: called now and then, and at the end, with (pairs looked at, N).

    Raises:
        UserError: a worker died.
    """
    keys, stamps = pair_keys(listing.images, listing.masks), _stamps(listing)
    known = load_facts(cache, listing.root, listing.name, keys, stamps)
    todo = [index for index, fact in enumerate(known) if fact is None]
    bad: dict[int, Bad] = {}
    done, saved = len(listing) - len(todo), time.monotonic()
    places = [(start, start + _PAIRS_AT_A_TIME) for start in range(0, len(todo), _PAIRS_AT_A_TIME)]
    crew = min(workers, len(todo) // _PAIRS_A_WORKER)
    advice = "make memory free, or try again"
    try:
        for (start, end), looks in zip(places, stream(_Pairs(listing, todo), places, crew, advice=advice), strict=True):
            for index, look in zip(todo[start:end], looks, strict=True):
                if isinstance(look, _Failed):
                    bad[index] = (look.file, look.reason)
                else:
                    known[index] = look
            done += len(looks)
            if progress is not None:
                progress(done, len(listing))
            if time.monotonic() - saved > _SAVE_EVERY:
                save_facts(cache, listing.root, listing.name, keys, stamps, known)
                saved = time.monotonic()
    finally:
        if todo:
            save_facts(cache, listing.root, listing.name, keys, stamps, known)
    if progress is not None:
        progress(len(listing), len(listing))
    return [bad[index] if fact is None else fact for index, fact in enumerate(known)]


class _Failed:
    """A pair that cannot be used; no tuple, which a loader would take apart."""

    def __init__(self, file: str, reason: str) -> None:
        self.file, self.reason = file, reason


class _Pairs(Dataset[Any]):
    """Item (start, end): what is found in those of the pairs that are to be looked at."""

    def __init__(self, listing: MaskListing, todo: list[int]) -> None:
        self.listing, self.todo = listing, todo

    def __getitem__(self, place: tuple[int, int]) -> list[PairFacts | _Failed]:
        return [self._look(index) for index in self.todo[slice(*place)]]

    def _look(self, index: int) -> PairFacts | _Failed:
        file = self.listing.images[index]
        try:
            image = read_image(self.listing.root / file)
            sums = channel_sums(image.histogram())
            file = self.listing.masks[index]
            raw = read_raw_mask(self.listing.root / file)
        except BadImage as error:
            return _Failed(file, error.reason)
        height, width = raw.codes.shape
        if (width, height) != image.size:
            reason = f"{width} x {height} pixels, but its image is {image.width} x {image.height}"
            return _Failed(file, reason)
        codes, counts = tally(raw.codes)
        if len(codes) > _MOST_CODES:
            what = "colours" if raw.kind == "colour" else "values"
            return _Failed(file, f"{len(codes)} different {what}: a photograph, or a mask that was smoothed or resized")
        own = None if raw.colours is None else raw.colours[codes]
        return PairFacts((height, width), sums, raw.kind, codes, counts, own)


def channel_sums(histogram: list[int]) -> NDArray[np.int64]:
    """Return the sums of red, green and blue and of their squares, int64 ``[6]``, of Pillow's RGB histogram."""
    counts = np.array(histogram, np.int64).reshape(3, 256)
    levels = np.arange(256, dtype=np.int64)
    sums: NDArray[np.int64] = np.concatenate([counts @ levels, counts @ levels**2])
    return sums


def tally(codes: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return which codes occur in ``codes [H, W]``, ascending int32 ``[K]``, and how often, int64 ``[K]``.

    Masks are made of long runs, and only one code of each is sorted.
    """
    flat = codes.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=len(flat))
    values, inverse = np.unique(flat[starts], return_inverse=True)
    counts = np.bincount(inverse, lengths, len(values))
    return values.astype(np.int32), counts.astype(np.int64)


def _stamps(listing: MaskListing) -> NDArray[np.int64]:
    """Return size and modification time (ns) of each image and mask, int64 ``[N, 4]``; -1 where a file is missing."""
    stamps = np.full((len(listing), 4), -1, np.int64)
    for index, pair in enumerate(zip(listing.images, listing.masks, strict=True)):
        for side, file in enumerate(pair):
            try:
                status = os.stat(listing.root / file)
            except (OSError, ValueError):
                continue
            stamps[index, 2 * side : 2 * side + 2] = status.st_size, status.st_mtime_ns
    return stamps
