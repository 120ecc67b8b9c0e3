"""A loss over a batch too large to compare with all keys at once: part by part, each part's gradients at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Of some queries, all keys and the log temperature, and which queries these are: the loss summed over them, the term
# that the temperature learns from, and how many queries counted in each.
Sums = Callable[[Tensor, Tensor, Tensor, slice], tuple[Tensor, ...]]


def in_chunks(sums: Sums, rows: int, queries: Tensor, keys: Tensor, log_temperature: Tensor) -> tuple[Tensor, ...]:
    """Return ``sums`` over all queries, called on ``rows`` of them at a time; the memory is that of one call.

    The sums are scalars, so each part's gradients are known but for one factor, and are taken while its similarities
    are at hand: three products a part. Recomputing them in the backward pass (``torch.utils.checkpoint``) takes four
    and the powers twice: 1.4 to 1.6 times as long at 65,536 queries, 16,384 to 4096 keys (``benchmarks/memory.py``).
    What stays until the backward pass is one gradient of queries and one of keys.

    Args:
        sums: must depend on queries and keys through the loss only, on the log temperature through the term only.
        rows: queries a part, at least 1.
        queries: ``[B, D]``.
        keys: ``[K, D]``.
        log_temperature: 0-d.
    """
    values, counts = _InChunks.apply(sums, rows, queries, keys, log_temperature)
    return *values.unbind(), *counts.unbind()


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, sums: Sums, rows: int, queries: Tensor, keys: Tensor, log_temperature: Tensor
    ) -> tuple[Tensor, ...]:
        needed = ctx.needs_input_grad[2:]
        inputs = (queries, keys, log_temperature)
        gradients = [torch.zeros_like(x) if need else None for x, need in zip(inputs, needed, strict=True)]
        totals = queries.new_zeros(2), torch.zeros(2, dtype=torch.int64, device=queries.device)
        for first in range(0, len(queries), rows):
            part = slice(first, first + rows)
            leaves = [x.detach().requires_grad_(n) for x, n in zip((queries[part], *inputs[1:]), needed, strict=True)]
            with torch.set_grad_enabled(any(needed)):
                loss, term, *counts = sums(leaves[0], leaves[1], leaves[2], part)
                value = loss + term
            totals[0].add_(torch.stack([loss, term]).detach())
            totals[1].add_(torch.stack(counts))
            if any(needed):
                found = iter(torch.autograd.grad(value, [leaf for leaf in leaves if leaf.requires_grad]))
                for gradient, is_queries in zip(gradients, (True, False, False), strict=True):
                    if gradient is not None:
                        (gradient[part] if is_queries else gradient).add_(next(found))
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(totals[1])
        return totals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_sums: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        factors = (by_sums[0], by_sums[0], by_sums[1])
        gradients = ctx.saved_tensors
        return None, None, *(None if g is None else g * f for g, f in zip(gradients, factors, strict=True))
