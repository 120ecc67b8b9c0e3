"""Rows of a batch that lies over several processes: gathered in the batch's order, with exact gradients.

Each process makes and encodes a slice of every batch; all that comes after the encoder sees the whole batch, the same
in every process. So a loss, a queue or a projection need not know that there are several.

The rule for gradients: every process computes the whole loss, so what is differentiated is ``ranks`` times the loss,
and the mean over processes that torch's DistributedDataParallel takes gives the gradient that one process would have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_rows: tuple[int, ...] | None = None


def rows() -> tuple[int, ...] | None:
    """Return how many rows of one view each process holds at present; None where each holds all of them."""
    return _rows


def set_rows(sizes: Sequence[int] | None) -> None:
    """Say how many rows of one view each process holds from now on; None = each holds all of them."""
    global _rows
    _rows = None if sizes is None or len(sizes) == 1 else tuple(sizes)


@contextmanager
def whole() -> Iterator[None]:
    """For the length of the block, each process holds all that it works on."""
    before = rows()
    set_rows(None)
    try:
        yield
    finally:
        set_rows(before)


def views_of(count: int, sizes: Sequence[int], rank: int) -> int:
    """Return how many views of ``sizes[rank]`` rows each are in ``count`` rows.

    Raises:
        ValueError: they are not whole views.
    """
    views, rest = divmod(count, sizes[rank])
    if rest or not views:
        raise ValueError(f"{count} rows are no whole number of views of {sizes[rank]} rows")
    return views


def gather_rows(values: Tensor) -> Tensor:
    """Return the rows of all processes in the order of the batch; the gradient of what they hold comes back summed.

    Args:
        values: ``[V * b, ...]``: V views one after the other, b rows of each (b = ``rows()[rank]``).

    Returns:
        ``[V * B, ...]``: V views one after the other, B rows of each, B being the sum of ``rows()``. ``values`` itself
        where :func:`rows` is None.
    """
    if _rows is None:
        return values
    if torch.is_grad_enabled() and values.requires_grad:
        gathered: Tensor = _Gather.apply(values, _rows)
        return gathered
    return _gathered(values, _rows)


def previous_row(values: Tensor) -> Tensor:
    """Return the rows ``[b, ...]`` that come before those of this process in the batch: ``roll(1, 0)`` of all of it.

    The first row of the batch follows the last one. Without gradient.
    """
    if _rows is None:
        return values.roll(1, 0)
    last = values[-1:].detach().contiguous()
    lasts = [torch.empty_like(last) for _ in _rows]
    dist.all_gather(lasts, last)
    return torch.cat([lasts[dist.get_rank() - 1], values[:-1]])


def held(values: Tensor) -> Tensor:
    """Return what of ``values`` lies in this process, sharing its memory: a shard's part, anything else as it is."""
    # Asked of the tensor, since torch takes seconds to import the class of shards.
    return values.to_local() if hasattr(values, "to_local") else values


def summed(values: Tensor) -> Tensor:
    """Return the sum of ``values`` over all processes, without gradient; in place where it can be."""
    dist.all_reduce(values)
    return values


def gathered_rows_of(values: Tensor) -> Tensor:
    """Return ``values`` of every process, ``[ranks, ...]``; the shape is the same in each. Without gradient."""
    out = values.new_empty(dist.get_world_size(), *values.shape)
    dist.all_gather(list(out.unbind(0)), values.contiguous())
    return out


def _gathered(values: Tensor, sizes: tuple[int, ...]) -> Tensor:
    views = views_of(len(values), sizes, dist.get_rank())
    rest, most = values.shape[1:], max(sizes)
    own = values.detach().reshape(views, -1, *rest)
    if own.shape[1] < most:  # every process sends as many rows, those of padding are left out again
        own = torch.cat([own, own.new_zeros(views, most - own.shape[1], *rest)], 1)
    parts = gathered_rows_of(own)
    return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], 1).flatten(0, 1)


class _Gather(torch.autograd.Function):
    """The rows of all; backward the sum over processes of what each says of this one's rows."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, sizes: tuple[int, ...]) -> Tensor:
        ctx.sizes = sizes
        return _gathered(values, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        rank, sizes = dist.get_rank(), ctx.sizes
        by_view = gradient.reshape(-1, sum(sizes), *gradient.shape[1:])  # [V, B, ...]
        if len(set(sizes)) == 1:  # each is sent the sum of its own rows only
            by_rank = [part.contiguous() for part in by_view.chunk(len(sizes), 1)]  # [V, b, ...] each
            own = torch.empty_like(by_rank[0])
            dist.reduce_scatter(own, by_rank)
        else:
            start = sum(sizes[:rank])
            own = summed(by_view.contiguous().clone())[:, start : start + sizes[rank]]
        return own.flatten(0, 1), None
