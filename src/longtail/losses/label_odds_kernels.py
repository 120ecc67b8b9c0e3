"""Triton kernels of the log odds: tiles of queries times keys that never leave the chip.

All logits are to base 2. A key whose bias is at most FLOOR takes no part. Every sum has one order: a program adds its
tiles from first to last and writes once; what several programs hold of one query is added by the caller.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,import-untyped,misc,untyped-decorator,attr-defined,operator"

from __future__ import annotations

import triton
import triton.language as tl

FLOOR = tl.constexpr(-1.7e38)


@triton.jit
def _tile(rows, columns, depth, queries, keys, batch, key_count, width: tl.constexpr):
    """Return a tile of queries and one of keys; past the end they are 0."""
    inside = depth[None, :] < width
    query = tl.load(
        queries + rows[:, None].to(tl.int64) * width + depth[None, :],
        mask=(rows[:, None] < batch) & inside,
        other=0.0,
    )
    key = tl.load(
        keys + columns[:, None].to(tl.int64) * width + depth[None, :],
        mask=(columns[:, None] < key_count) & inside,
        other=0.0,
    )
    return query, key


@triton.jit
def _added(highest, total, moment, logits, chosen):
    """Return a running maximum, sum of powers and sum of powers times logits with one more tile's chosen logits."""
    now = tl.maximum(highest, tl.max(tl.where(chosen, logits, FLOOR), 1))
    weights = tl.exp2(tl.where(chosen, logits - now[:, None], FLOOR))
    before = tl.exp2(highest - now)
    return now, total * before + tl.sum(weights, 1), moment * before + tl.sum(weights * logits, 1)


@triton.jit
def _own(rows, columns, query_ids, key_ids, batch, key_count):
    """Return which keys of the tile are the query's own."""
    query_id = tl.load(query_ids + rows, mask=rows < batch, other=-1)
    key_id = tl.load(key_ids + columns, mask=columns < key_count, other=-1)
    return (query_id[:, None] == key_id[None, :]) & (query_id >= 0)[:, None]


@triton.jit
def forward_kernel(
    queries,
    keys,
    bias,
    start,
    end,
    query_ids,
    key_ids,
    scale,
    found,  # [splits, 10, B]: rest's maximum and sum; the label's maximum, sum, moment, keys; the same without own
    batch,
    key_count,
    keys_a_split,
    width: tl.constexpr,
    with_ids: tl.constexpr,
    precision: tl.constexpr,
    block_rows: tl.constexpr,
    block_keys: tl.constexpr,
    block_width: tl.constexpr,
):
    """Store what one split of the keys holds of each sum; one program a block of queries and a split."""
    rows = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    split = tl.program_id(1)
    depth = tl.arange(0, block_width)
    first_key = tl.load(start + rows, mask=rows < batch, other=0)
    last_key = tl.load(end + rows, mask=rows < batch, other=0)
    factor = tl.load(scale)
    rest_highest = tl.full((block_rows,), FLOOR, tl.float32)
    label_highest = rest_highest
    other_highest = rest_highest
    rest_total = tl.zeros((block_rows,), tl.float32)
    rest_moment = rest_total
    label_total = rest_total
    label_moment = rest_total
    label_keys = rest_total
    other_total = rest_total
    other_moment = rest_total
    other_keys = rest_total
    begin = split * keys_a_split
    for first in range(begin, tl.minimum(begin + keys_a_split, key_count), block_keys):
        columns = first + tl.arange(0, block_keys)
        query, key = _tile(rows, columns, depth, queries, keys, batch, key_count, width)
        shift = tl.load(bias + columns, mask=columns < key_count, other=FLOOR)
        logits = tl.dot(query, tl.trans(key), input_precision=precision) * factor + shift[None, :]
        there = (shift > FLOOR)[None, :]
        label = (columns[None, :] >= first_key[:, None]) & (columns[None, :] < last_key[:, None])
        rest_highest, rest_total, rest_moment = _added(
            rest_highest, rest_total, rest_moment, logits, there & (label == 0)
        )
        label = label & there
        if tl.max(tl.max(label.to(tl.int32), 1), 0) > 0:  # few tiles hold keys of any of these labels
            label_highest, label_total, label_moment = _added(label_highest, label_total, label_moment, logits, label)
            label_keys += tl.sum(label.to(tl.float32), 1)
            if with_ids:
                label = label & (_own(rows, columns, query_ids, key_ids, batch, key_count) == 0)
                other_highest, other_total, other_moment = _added(
                    other_highest, other_total, other_moment, logits, label
                )
                other_keys += tl.sum(label.to(tl.float32), 1)
    place = found + split * 10 * batch + rows
    inside = rows < batch
    tl.store(place, rest_highest, mask=inside)
    tl.store(place + batch, rest_total, mask=inside)
    tl.store(place + 2 * batch, label_highest, mask=inside)
    tl.store(place + 3 * batch, label_total, mask=inside)
    tl.store(place + 4 * batch, label_moment, mask=inside)
    tl.store(place + 5 * batch, label_keys, mask=inside)
    tl.store(place + 6 * batch, other_highest, mask=inside)
    tl.store(place + 7 * batch, other_total, mask=inside)
    tl.store(place + 8 * batch, other_moment, mask=inside)
    tl.store(place + 9 * batch, other_keys, mask=inside)


@triton.jit
def _slopes(
    rows,
    columns,
    query,
    key,
    bias,
    start,
    end,
    query_ids,
    key_ids,
    scale,
    rest,
    target,
    batch,
    key_count,
    without_own: tl.constexpr,
    precision: tl.constexpr,
):
    """Return the derivative of the first log odds by a tile of logits."""
    first_key = tl.load(start + rows, mask=rows < batch, other=0)
    last_key = tl.load(end + rows, mask=rows < batch, other=0)
    shift = tl.load(bias + columns, mask=columns < key_count, other=FLOOR)
    logits = tl.dot(query, tl.trans(key), input_precision=precision) * tl.load(scale) + shift[None, :]
    label = (columns[None, :] >= first_key[:, None]) & (columns[None, :] < last_key[:, None])
    level = tl.where(
        label,
        tl.load(target + rows, mask=rows < batch, other=0.0)[:, None],
        tl.load(rest + rows, mask=rows < batch, other=0.0)[:, None],
    )
    counts = (shift > FLOOR)[None, :] & (rows < batch)[:, None]
    if without_own:
        counts = counts & (_own(rows, columns, query_ids, key_ids, batch, key_count) == 0)
    share = tl.exp2(tl.where(counts, logits - level, FLOOR))
    return tl.where(label, share, -share)


@triton.jit
def query_kernel(
    queries,
    keys,
    bias,
    start,
    end,
    query_ids,
    key_ids,
    scale,
    rest,
    target,
    found,  # [splits, B, D]
    batch,
    key_count,
    keys_a_split,
    width: tl.constexpr,
    without_own: tl.constexpr,
    precision: tl.constexpr,
    block_rows: tl.constexpr,
    block_keys: tl.constexpr,
    block_width: tl.constexpr,
):
    """Store each split's gradient by the base-2 logits, times the keys; programs as in ``forward_kernel``."""
    rows = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    split = tl.program_id(1)
    depth = tl.arange(0, block_width)
    sums = tl.zeros((block_rows, block_width), tl.float32)
    begin = split * keys_a_split
    for first in range(begin, tl.minimum(begin + keys_a_split, key_count), block_keys):
        columns = first + tl.arange(0, block_keys)
        query, key = _tile(rows, columns, depth, queries, keys, batch, key_count, width)
        slopes = _slopes(
            rows,
            columns,
            query,
            key,
            bias,
            start,
            end,
            query_ids,
            key_ids,
            scale,
            rest,
            target,
            batch,
            key_count,
            without_own,
            precision,
        )
        sums += tl.dot(slopes.to(key.dtype), key, input_precision=precision)
    tl.store(
        found + (split * batch + rows[:, None]).to(tl.int64) * width + depth[None, :],
        sums,
        mask=(rows[:, None] < batch) & (depth[None, :] < width),
    )


@triton.jit
def key_kernel(
    queries,
    keys,
    bias,
    start,
    end,
    query_ids,
    key_ids,
    scale,
    rest,
    target,
    arriving,
    found,  # [K, D]
    batch,
    key_count,
    width: tl.constexpr,
    without_own: tl.constexpr,
    precision: tl.constexpr,
    block_rows: tl.constexpr,
    block_keys: tl.constexpr,
    block_width: tl.constexpr,
):
    """Store the gradient by the base-2 logits, times what arrives, times the queries; one program a block of keys."""
    columns = tl.program_id(0) * block_keys + tl.arange(0, block_keys)
    depth = tl.arange(0, block_width)
    sums = tl.zeros((block_keys, block_width), tl.float32)
    for first in range(0, batch, block_rows):
        rows = first + tl.arange(0, block_rows)
        query, key = _tile(rows, columns, depth, queries, keys, batch, key_count, width)
        slopes = _slopes(
            rows,
            columns,
            query,
            key,
            bias,
            start,
            end,
            query_ids,
            key_ids,
            scale,
            rest,
            target,
            batch,
            key_count,
            without_own,
            precision,
        )
        slopes *= tl.load(arriving + rows, mask=rows < batch, other=0.0)[:, None]
        sums += tl.dot(tl.trans(slopes.to(query.dtype)), query, input_precision=precision)
    tl.store(
        found + columns[:, None].to(tl.int64) * width + depth[None, :],
        sums,
        mask=(columns[:, None] < key_count) & (depth[None, :] < width),
    )
