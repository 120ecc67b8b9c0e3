"""Which pixels are compared, and how many of each class: chosen by key, never by what was drawn before."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from longtail.data.keyed import keyed_bits
from longtail.segmentation.data.mask_set import IGNORE


def labels_at(labels: Tensor, stride: int) -> Tensor:
    """Return ``labels [B, H, W]`` as a map of that stride sees them: int64 ``[B, ceil(H / stride), ceil(W / stride)]``.

    Cell i lies over rows ``stride * i`` to ``stride * i + stride - 1`` and takes the label at its centre, row
    ``stride * i + stride // 2``; where that is beyond the image, its last row. A vote of the cell's pixels would lose
    whatever is thinner than half a cell, such as a pole, in every image and at every place; this way it is kept in as
    many cells as its area says.
    """
    rows, columns = (
        torch.arange(stride // 2, side + stride // 2, stride, device=labels.device).clamp(max=side - 1)
        for side in labels.shape[1:]
    )
    return labels[:, rows[:, None], columns]


def sample_pixels(
    labels: Tensor, keys: Tensor, budget: int, per_class: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw pixels evenly from all (image, class) pairs of a batch.

    From each pair at most ``per_class`` are drawn, at random. If that is more than ``budget`` in all, the pairs are
    served in turn: first one pixel of every pair, then a second of every pair that has one, and so on; which pairs go
    without in the last turn is random. So a class of one pixel in one image is drawn, whatever the others have. Every
    draw depends on the seed, the image's key and the pixel's place only.

    Args:
        labels: int64 ``[B, h, w]``, 0..C-1 or ``IGNORE`` (never drawn).
        keys: int64 ``[B]``, see ``DenseBatch.keys``.
        budget: pixels in all, at most.
        per_class: pixels of a class in an image, at most.
        seed: of the draw, see ``longtail.data.keyed.derive_seed``.

    Returns:
        ``(flat [Q], labels [Q], images [Q])``, int64: places in ``[B * h * w]``, their labels and their images
        (0..B-1), those that were drawn first in front.
    """
    size = labels.shape[1] * labels.shape[2]
    flat = torch.nonzero(labels.flatten() != IGNORE).squeeze(1)
    if not len(flat):
        return flat, flat, flat
    image, label = flat // size, labels.flatten()[flat]
    own = keyed_bits(seed, "image", ids=keys).squeeze(1)[image]
    bits = keyed_bits(seed, "pixel", ids=own + flat % size).squeeze(1)
    # Pixels in random order, then pair by pair: the first of a pair are a random part of it.
    order = torch.argsort(bits, stable=True)
    pair, by_pair = torch.sort((image * (label.max() + 1) + label)[order], stable=True)
    order = order[by_pair]
    rank = torch.arange(len(flat), device=flat.device) - torch.searchsorted(pair, pair)
    order, rank = order[rank < per_class], rank[rank < per_class]
    # The bits of a large pair's first pixel are lower than those of a small one's: turns are drawn by others.
    turn = torch.argsort(keyed_bits(seed, "turn", ids=bits[order]).squeeze(1), stable=True)
    turn = turn[torch.argsort(rank[turn], stable=True)][:budget]
    chosen = order[turn]
    return flat[chosen], label[chosen], image[chosen]


def pixels_at(maps: Tensor, flat: Tensor) -> Tensor:
    """Return the features ``[Q, D]`` of ``maps [B, D, h, w]`` at the places ``flat [Q]`` in ``[B * h * w]``."""
    size = maps.shape[2] * maps.shape[3]
    # The map is not laid out anew for it: at stride 4 that would be a copy of many times what is taken.
    return maps.flatten(2)[flat // size, :, flat % size]


def drawn_counts(pixels: Tensor, per_class: int, stride: int, an_image: float) -> Tensor:
    """Return about how many pixels of each class :func:`sample_pixels` draws from images or crops, float32 ``[C]``.

    What is drawn evenly from (image, class) pairs is far from the shares of the pixels, and a likelihood under a class
    prior must be told the one that its samples follow. Pairs are served in turn until the budget of a batch is spent,
    so each gives what it has up to some level; that level is the same for all here, as if every batch were the average
    one.

    Args:
        pixels: ``[M, C]``, pixels of each class in each crop.
        per_class: as given to ``sample_pixels``.
        stride: pixels of the image a cell of the map, along one side.
        an_image: the budget of a batch over its images.
    """
    cells = pixels.double() / stride**2
    low, high = 0.0, float(per_class)
    if float(cells.clamp(max=high).sum(1).mean()) > an_image:
        for _ in range(60):
            level = (low + high) / 2
            low, high = (level, high) if float(cells.clamp(max=level).sum(1).mean()) < an_image else (low, level)
    return cells.clamp(max=high).sum(0).float()


def capped_counts(counts: Tensor, share: float) -> Tensor:
    """Return the counts that a class-wise queue deals its slots by: no class has more than ``share`` of their sum.

    All counts above a level are cut to it, the highest whole number that keeps the promise (water filling). Of sky or
    road there are as many pixels as of all rare classes together a hundred times; Eq. 6 alone would give them all. If
    fewer than 1 / share classes have a pixel, all that have one get an equal share.

    Args:
        counts: int64 ``[C]``, pixels of each class.
        share: 0 < share.

    Returns:
        int64 ``[C]`` on the CPU, at least 1 where ``counts`` is.

    Example:
        >>> capped_counts(torch.tensor([1000, 30, 20, 10]), 0.5)
        tensor([60, 30, 20, 10])
    """
    values = [int(count) for count in counts.tolist()]
    present = sum(value > 0 for value in values)
    # The decimal that was meant: 0.1 as a float lies above a tenth.
    limit = max(Fraction(share).limit_denominator(10**9), Fraction(1, max(present, 1)))
    low, high = 0, max(values, default=0)
    while low < high:
        level = (low + high + 1) // 2
        if level <= limit * sum(min(value, level) for value in values):
            low = level
        else:
            high = level - 1
    return torch.tensor([min(value, low) for value in values], dtype=torch.int64)
