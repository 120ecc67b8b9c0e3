"""Images held out to test on or to choose by: whole groups, blocks of films, and no class left untrained.

An image holds many classes, so that no share of each class can be met exactly: the rarest class that lacks images on
the held-out side chooses next (iterative stratification, Sechidis et al. 2011). Every draw hangs on a hash of the
image's path as listed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def hold_out_images(presence: Tensor, bits: Tensor, share: float, groups: Sequence[str] | None = None) -> Tensor:
    """Return which images are held out, bool ``[N]``: about ``share`` of them and of the images of each class.

    No class loses its last training image, and no group is torn apart. One image is held out at least, if any can be.

    Args:
        presence: which classes each image holds, bool ``[N, C]``.
        bits: int64 ``[N]``, a keyed hash of each image.
        share: between 0 and 1.
        groups: what belongs together, one an image.
    """
    unit, order = _units(bits, groups)
    holds = np.zeros((len(order), presence.shape[1]), np.int64)
    np.add.at(holds, unit, presence.numpy().astype(np.int64))
    sizes = np.bincount(unit, minlength=len(order))
    aim = max(1, round(share * len(bits)))
    taken = np.zeros(len(order), bool)
    left, total = holds.sum(0), holds.sum(0)
    open_units = np.ones(len(order), bool)  # those that may still be taken
    held, images = np.zeros_like(total), 0
    by_rarity = np.argsort(total, kind="stable")
    while images < aim:
        # What is held out must not overshoot by more than it falls short, nor empty a class.
        open_units &= ~taken & (2 * (aim - images) >= sizes) & ((left - holds > 0) | (holds == 0)).all(1)
        candidates = order[open_units[order]]
        if not len(candidates):
            break
        short = (share * total - held > 0.5) | ((held == 0) & (total > 1))
        chosen = candidates[0]
        for label in by_rarity[short[by_rarity]]:
            having = candidates[holds[candidates, label] > 0]
            if len(having):
                chosen = having[0]
                break
        taken[chosen] = True
        held += holds[chosen]
        left -= holds[chosen]
        images += int(sizes[chosen])
    return torch.from_numpy(taken[unit])


def hold_out_blocks(presence: Tensor, bits: Tensor, share: float, films: Sequence[str]) -> Tensor:
    """Return which frames are held out, bool ``[N]``: of each film one block of ``share`` of its frames, in order.

    Neighbouring frames are near copies: of frames drawn one by one, each would have its copy in training. Of a film of
    two or more frames one is held out at least. Where a block would take a class's last training image, the next place
    for it is taken; a film without any such place is left whole.

    Args:
        presence: which classes each frame holds, bool ``[N, C]``.
        bits: int64 ``[N]``, a keyed hash of each frame.
        share: between 0 and 1.
        films: the film of each frame; frames of one are in the order of time.
    """
    holds = presence.numpy().astype(np.int64)
    left, taken = holds.sum(0), np.zeros(len(bits), bool)
    for film in sorted(set(films)):
        frames = np.array([place for place, name in enumerate(films) if name == film])
        length = min(max(1, round(share * len(frames))), len(frames) - 1)
        places = len(frames) - length + 1
        first = int(bits[frames].min()) % places
        for shift in range(places if length else 0):
            start = (first + shift) % places
            block = frames[start : start + length]
            lost = holds[block].sum(0)
            if ((left - lost > 0) | (lost == 0)).all():
                taken[block] = True
                left -= lost
                break
    return torch.from_numpy(taken)


def _units(bits: Tensor, groups: Sequence[str] | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the unit of each image, ``[N]``, and the units in keyed order: that of the least hash within each."""
    number: dict[str, int] = {}
    names = [str(index) for index in range(len(bits))] if groups is None else groups
    unit = np.array([number.setdefault(name, len(number)) for name in names], np.int64)
    least = np.full(len(number), np.iinfo(np.int64).max)
    np.minimum.at(least, unit, bits.numpy())
    return unit, np.argsort(least, kind="stable")
