"""``label_log_odds`` by Triton kernels that never write the ``[B, K]`` similarities; the other tensors are O(B + K)."""

from __future__ import annotations

import importlib.util
import os
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longtail.losses.label_odds import LN2, LabelClass

Kernel = Literal["auto", "plain", "fused"]
WIDEST = 1024
_MANY, _NARROW = 2**26, 128
# Queries' blocks times splits of the keys: enough programs to fill any GPU, and few enough that the partial
# gradients of the queries stay small. A constant, so that a sum has the same order whatever the device.
_PROGRAMS = 512


class Tile(NamedTuple):
    """Queries, keys and width of a tile."""

    rows: int
    keys: int
    width: int


_WARPS = 8
# Rows and keys up to each width. Chosen by what the compiler says for compute capability 9.0: the largest that spill
# no registers (24 bytes at width 256, exact) and fit its shared memory. Products that are exact in float32 are not
# made by tensor cores and need the registers for themselves.
_TILES = {64: (64, 64), 128: (64, 32), 256: (32, 64), 512: (32, 32), 1024: (16, 16)}
_EXACT_TILES = {64: (32, 32), 128: (16, 32), 256: (16, 32), 512: (16, 32), 1024: (16, 16)}


def tile_of(dim: int, dtype: torch.dtype, precision: str) -> Tile:
    """Return the tile for features ``[*, dim]``: a program holds whole vectors, so wider ones leave room for fewer."""
    width = max(16, 1 << (dim - 1).bit_length())
    table = _EXACT_TILES if dtype == torch.float32 and precision == "ieee" else _TILES
    rows, keys = next(tile for widest, tile in table.items() if width <= widest)
    return Tile(rows, keys, width)


def stages(tile: Tile) -> int:
    """Return how many tiles of keys are on their way at once."""
    return 1 if tile.width > 256 or (tile.rows < 64 and tile.keys < 64) else 2


def use_fused(kernel: Kernel, queries: Tensor, keys: Tensor, mask: Tensor | None) -> bool:
    """Whether the kernels are wanted for these inputs, and can do it."""
    if kernel == "plain":
        return False
    # "auto" is cautious as long as no GPU has timed the two ways against each other.
    if kernel == "auto" and (len(queries) * len(keys) < _MANY or queries.shape[1] > _NARROW):
        return False
    dtype = torch.promote_types(queries.dtype, keys.dtype)
    return (
        (queries.is_cuda or _interpreted())
        and importlib.util.find_spec("triton") is not None
        and dtype in (torch.float32, torch.bfloat16, torch.float16)
        and queries.shape[1] <= WIDEST
        and min(len(queries), len(keys)) > 0
        and (mask is None or mask.ndim == 1)
    )


def _interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on any device: its own switch, read when it is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def fused_label_log_odds(
    queries: Tensor, keys: Tensor, log_temperature: Tensor, bias: Tensor, label_class: LabelClass
) -> tuple[Tensor, Tensor]:
    """Return what ``label_log_odds`` does, float32, for inputs that ``use_fused`` takes; bias is ``[K]``.

    Products are as precise as torch's own at its setting (``torch.set_float32_matmul_precision``: TF32 unless
    "highest"), those of half precision add up in float32. ``label_class.longest`` is not used.
    """
    dtype = torch.promote_types(queries.dtype, keys.dtype)
    odds, others = _FusedLabelLogOdds.apply(
        queries.to(dtype).contiguous(), keys.to(dtype).contiguous(), log_temperature.float(), bias.float(), label_class
    )
    return odds, others


class _FusedLabelLogOdds(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, log_temperature: Tensor, bias: Tensor, label_class: LabelClass
    ) -> tuple[Tensor, Tensor]:
        from longtail.losses.label_odds_kernels import forward_kernel

        scale = (-log_temperature).exp() / LN2
        bias = (bias / LN2).clamp_(min=torch.finfo(bias.dtype).min)
        start, end, _, query_ids, key_ids, exclude_own_key, of_mean = label_class
        with_ids = query_ids is not None and key_ids is not None
        ids = (query_ids, key_ids) if query_ids is not None and key_ids is not None else (start, start)
        # Kernels read one number after the other, so a column of a table must be copied out.
        given = (queries, keys, bias, *(part.contiguous() for part in (start, end, *ids)))
        size, blocks, splits, keys_a_split = _grid(queries, keys)
        found = queries.new_empty((splits, 10, len(queries)), dtype=torch.float32)
        forward_kernel[blocks, splits](
            *given, scale, found, *_shape(queries, keys), keys_a_split, with_ids=with_ids, **size
        )
        parts = found.unbind(1)
        rest, _ = _merged(parts[0], parts[1], parts[1])
        target, mean = _merged(parts[2], parts[3], parts[4])
        other_target, shift = target, torch.zeros_like(mean)
        normaliser = target
        if with_ids:
            normaliser_of_others, other_mean = _merged(parts[6], parts[7], parts[8])
            counts = [part.sum(0).clamp_(min=1) for part in (parts[5], parts[9])]
            other_target = normaliser_of_others + (counts[0] / counts[1]).log2_() if of_mean else normaliser_of_others
            if exclude_own_key:
                target, normaliser = other_target, normaliser_of_others
            else:
                shift = mean - other_mean
        odds, other_odds = (part - rest.where(part > -torch.inf, 0.0) for part in (target, other_target))
        # No key is compared with a level of nothing, so 0 does for it.
        levels = (rest.clamp(min=_LEAST), normaliser.clamp(min=_LEAST))
        ctx.save_for_backward(*given, scale, *levels, shift)
        ctx.without_own = with_ids and exclude_own_key
        return odds * LN2, other_odds * LN2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, gradient_of_others: Tensor) -> tuple[Tensor | None, ...]:
        from longtail.losses.label_odds_kernels import key_kernel, query_kernel

        *given, shift = ctx.saved_tensors
        queries, keys, scale = given[0], given[1], given[7]
        by_query, by_key, by_temperature = ctx.needs_input_grad[:3]
        size, blocks, splits, keys_a_split = _grid(queries, keys)
        shape, without_own = _shape(queries, keys), ctx.without_own
        for_queries = for_keys = for_temperature = None
        if by_query or by_temperature:
            parts = queries.new_empty((splits, *queries.shape), dtype=torch.float32)
            query_kernel[blocks, splits](*given, parts, *shape, keys_a_split, without_own=without_own, **size)
            pulled = parts.sum(0)
            if by_query:
                for_queries = ((LN2 * scale * gradient)[:, None] * pulled).to(queries.dtype)
            if by_temperature:
                slope = shift - (queries * pulled).sum(1) * scale
                for_temperature = LN2 * (gradient_of_others * slope).sum()
        if by_key:
            # Half precision has no room for gradients of a mean over many samples, so they arrive relative.
            largest = gradient.abs().amax().clamp_(min=torch.finfo(torch.float32).tiny)
            sums = keys.new_empty(keys.shape, dtype=torch.float32)
            arriving = (gradient / largest).float().contiguous()
            programs = -(-len(keys) // size["block_keys"])
            key_kernel[programs,](*given, arriving, sums, *shape, without_own=without_own, **size)
            for_keys = sums.mul_(LN2 * scale * largest).to(keys.dtype)
        return for_queries, for_keys, for_temperature, None, None


_LEAST = torch.finfo(torch.float32).min / 2


def _shape(queries: Tensor, keys: Tensor) -> tuple[int, int]:
    return len(queries), len(keys)


def _grid(queries: Tensor, keys: Tensor) -> tuple[dict[str, Any], int, int, int]:
    """Return the kernels' options, blocks of queries, splits of the keys, and keys a split."""
    precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    tile = tile_of(queries.shape[1], queries.dtype, precision)
    blocks, key_tiles = -(-len(queries) // tile.rows), -(-len(keys) // tile.keys)
    tiles_a_split = -(-key_tiles // max(1, _PROGRAMS // blocks))
    options = {
        "width": queries.shape[1],
        "precision": precision,
        "block_rows": tile.rows,
        "block_keys": tile.keys,
        "block_width": tile.width,
        "num_warps": _WARPS,
        "num_stages": stages(tile),
    }
    return options, blocks, -(-key_tiles // tiles_a_split), tiles_a_split * tile.keys


def _merged(highest: Tensor, total: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-sum-exp and mean logit ``[B]`` to base 2 of the splits' ``[S, B]``; -inf and 0 where nothing is."""
    top = highest.amax(0)
    scale = (highest - top).exp2_()
    whole = (total * scale).sum(0)
    return whole.log2().add_(top), (moment * scale).sum(0) / whole.clamp(min=1)
