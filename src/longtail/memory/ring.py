"""Ring buffers that lie one after the other: what fills them first, what a batch writes, and what is no label."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longtail.errors import UserError


def slot_plan(labels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return :meth:`ClassQueue.prime_plan` for slots of ``lengths [C]``."""
    classes = torch.arange(len(lengths), device=labels.device)
    owner = classes.repeat_interleave(lengths)  # [K]
    by_class, order = torch.sort(labels, stable=True)
    edges = torch.searchsorted(by_class, torch.arange(len(lengths) + 1, device=labels.device))
    images = edges.diff()[owner]
    position = torch.arange(len(owner), device=labels.device) - (lengths.cumsum(0) - lengths)[owner]
    turns = images.clamp(min=1)
    # One entry beyond the last stands for "no image".
    place = torch.where(images > 0, edges[owner] + position % turns, len(labels))
    indices = torch.cat([order, order.new_full((1,), -1)])[place]
    return indices, torch.where(images > 0, position // turns, 0)


def check_range(labels: Tensor, num_classes: int) -> None:
    """Raise :class:`UserError` if one of the labels names no class."""
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise UserError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, but the queue was built for "
            f"classes 0 to {num_classes - 1}; give class_counts one entry for every class."
        )


def primed(
    like: Tensor,
    indices: Tensor,
    rounds: Tensor,
    encode: Callable[[Tensor, Tensor], Tensor],
    batch_size: int,
    first: int = 0,
) -> Tensor:
    """Return the features of the images that a plan names, of the shape of ``like``; 0 where it names none (-1).

    ``like`` holds the plan's slots from ``first`` on. All that the plan names is encoded, also what is not among them.

    Raises:
        UserError: a feature is not finite.
        ValueError: ``encode`` returned another shape.
    """
    slots = torch.nonzero(indices >= 0).squeeze(1)
    features = torch.zeros_like(like)
    for start in range(0, len(slots), batch_size):
        part = slots[start : start + batch_size]
        encoded = encode(indices[part], rounds[part])
        if encoded.shape != (len(part), like.shape[1]):
            raise ValueError(
                f"encode returned shape {list(encoded.shape)} for {len(part)} images, "
                f"expected [{len(part)}, {like.shape[1]}]"
            )
        encoded = encoded.to(features)
        held = (part >= first) & (part < first + len(features))
        features[part[held] - first] = encoded[held]
        broken = ~torch.isfinite(encoded).all(1)
        if broken.any():
            image = int(indices[part][broken][0])
            raise UserError(
                f"the queue cannot be filled: the feature of training image {image} is not finite; "
                "check that image and the weights of the network that encodes it."
            )
    return features


def arriving(
    held: Tensor, num_classes: int, features: Tensor, labels: Tensor, ids: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a batch as a queue of features ``held [K, dim]`` takes it, and bool ``[B]``: which rows are fit to enter.

    Raises:
        UserError: a label on the CPU names no class.
        ValueError: shapes do not fit.
    """
    batch = labels.numel()
    if features.shape != (batch, held.shape[1]) or labels.ndim != 1 or (ids is not None and len(ids) != batch):
        raise ValueError(
            f"expected features [B, {held.shape[1]}], labels [B] and ids [B], got {list(features.shape)}, "
            f"{list(labels.shape)} and {None if ids is None else list(ids.shape)}"
        )
    if labels.device.type == "cpu":
        check_range(labels, num_classes)
    features, labels = features.detach().to(held), labels.to(held.device, torch.int64)
    ids = torch.full_like(labels, -1) if ids is None else ids.to(labels)
    return features, labels, ids, torch.isfinite(features).all(1) & (labels >= 0) & (labels < num_classes)


def ring_writes(
    group: Tensor, offsets: Tensor, lengths: Tensor, pointers: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Say which slots of some ring buffers a batch writes.

    Args:
        group: the buffer of each row, int64 ``[B]``, B at least 1; the number of buffers G for a row that is absent.
        offsets, lengths, pointers: first slot, slots and next slot of each buffer, int64 ``[G + 1], [G], [G]``.

    Returns:
        ``(slot [B], source [B], some, pointers [G])``: row ``source`` of the batch goes to ``slot``. A slot named twice
        is written with the same row both times. ``some`` (bool, 0-d) is false if all rows are absent: then ``slot``
        must be written with what it holds. The pointers are those after the batch.
    """
    buffers = len(lengths)
    # Absent rows sort last; row 0 is thus absent only if all are.
    by_group, order = torch.sort(group, stable=True)
    present = by_group < buffers
    owner = by_group.clamp(max=buffers - 1)
    edges = torch.searchsorted(by_group, torch.arange(buffers + 2, device=group.device))
    arrivals = edges.diff()
    row = torch.arange(len(group), device=group.device)
    rank = row - edges[by_group]
    length = lengths[owner]
    slot = offsets[owner] + (pointers[owner] + rank) % length
    # Rows of one buffer that are `length` apart share a slot. All of them write what the last one brings,
    # so the outcome does not depend on the order in which a device performs duplicate writes.
    winner = row + length * ((arrivals[by_group] - 1 - rank) // length)
    # Absent rows repeat row 0's write.
    slot = torch.where(present, slot, slot[0])
    source = order[torch.where(present, winner, winner[0])]
    return slot, source, present[0], (pointers + arrivals[:buffers]) % lengths
