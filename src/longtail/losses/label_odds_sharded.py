"""``label_log_odds`` where every process holds the keys of some classes only: four numbers a query are exchanged.

With logits ``x_k = log2(e) (z . z_k / temperature + bias_k)`` of query z and y its label,

    rest_r  = sum over the keys of process r outside class y of 2^(x_k - m),   m = max over all processes and such keys
    odds(z) = ln 2 * (log2 sum over k in class y of 2^x_k  -  m  -  log2 sum over r of rest_r)

so that a process sends its own maximum, then its sum; the class of the label lies in one process, which alone sends its
log-sum-exp (with and without own keys), the others 0. The derivative of the odds by the logit of a key outside class y,
``-2^(x_k - m) / sum of rest_r``, needs nothing of the other processes' keys.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from longtail.losses.label_odds import (
    CACHED,
    LN2,
    LabelClass,
    biased_products,
    label_columns,
    label_sums,
)


def sharded_label_log_odds(
    queries: Tensor,
    keys: Tensor,
    log_temperature: Tensor,
    bias: Tensor,
    label_class: LabelClass,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Return what ``label_log_odds`` would return in one process with the keys of all: every process gets the same.

    Forward two all-reduces, of ``[B]`` and ``[3, B]``; backward one of ``[2, B]``, which sums what the losses of all
    processes say of the odds. Gradients by queries, keys and temperature are those through this process's own keys:
    summed over the processes they are the gradient of the sum of all processes' losses.

    Args:
        queries: ``[B, D]`` unit vectors, the same in every process.
        keys: ``[K_r, D]`` unit vectors of this process's classes, none or more.
        log_temperature: 0-d, of the dtype to compute in.
        bias: ``[K_r]`` or ``[B, K_r]``, see ``key_bias``.
        label_class: where the label's keys are among this process's; of a class that another one holds, none.
        group: the processes that share the keys; None = all.
    """
    dtype = log_temperature.dtype
    odds, others = _ShardedLogOdds.apply(queries.to(dtype), keys.to(dtype), log_temperature, bias, label_class, group)
    return odds, others


class _ShardedLogOdds(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        log_temperature: Tensor,
        bias: Tensor,
        label_class: LabelClass,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, Tensor]:
        to_base_2 = (-log_temperature).exp() / LN2
        queries = queries * to_base_2
        floor = torch.finfo(bias.dtype).min
        bias = (bias / LN2).clamp_(min=floor)
        logits = biased_products(queries, keys, bias)
        columns, inside = label_columns(label_class)
        held = label_class.end > label_class.start  # of the label's class, [B]
        found = logits.gather(1, columns)
        label = torch.where(inside, found, floor)  # [B, longest]
        # Of a class held elsewhere the columns name a stranger, which stays.
        logits.scatter_(1, columns, torch.where(held[:, None], floor, found))
        most = logits.amax(1) if logits.shape[1] else logits.new_full(logits.shape[:1], floor)
        most.clamp_(min=floor / 2)
        dist.all_reduce(most, dist.ReduceOp.MAX, group=group)
        # The powers part by part: on a CPU they stay in its cache (see label_odds).
        rows = max(1, CACHED // max(1, len(keys))) if logits.device.type == "cpu" else max(1, len(logits))
        for first in range(0, len(logits), rows):
            part = slice(first, first + rows)
            logits[part].sub_(most[part, None]).exp2_()
        own = label_sums(label, columns, label_class)
        sums = torch.stack([logits.sum(1), own.log_sum, own.log_sum_without_own])
        sums[1:].masked_fill_(~held, 0.0)
        dist.all_reduce(sums, group=group)
        total, target, other_target = sums.unbind(0)
        rest = total.log2() + most
        total = total.clamp(min=1)  # it is 1 or more, but for a query without any key outside its class
        # As in label_odds: the derivative by the logits is this times -1 / total.
        logits.scatter_add_(1, columns, (own.weights * (-total / own.mass)[:, None]).masked_fill_(~held[:, None], 0.0))
        ctx.save_for_backward(queries, keys, logits, own.shift, -1 / total, to_base_2)
        ctx.group = group
        odds, other_odds = (part - rest.where(part > -torch.inf, 0.0) for part in (target, other_target))
        return odds * LN2, other_odds * LN2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, gradient_of_others: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, weights, shift, scale, to_base_2 = ctx.saved_tensors
        by_query, by_key, by_temperature = ctx.needs_input_grad[:3]
        gradients = torch.stack([gradient, gradient_of_others])
        dist.all_reduce(gradients, group=ctx.group)
        gradient, gradient_of_others = gradients.unbind(0)
        for_queries = for_keys = for_temperature = None
        if by_query or by_temperature:
            pulled = weights @ keys  # [B, D]
            if by_query:
                for_queries = (LN2 * to_base_2 * gradient * scale)[:, None] * pulled
            if by_temperature:
                slope = shift - (queries * pulled).sum(1) * scale
                for_temperature = LN2 * (gradient_of_others * slope).sum()
        if by_key:
            for_keys = weights.t() @ ((LN2 * gradient * scale)[:, None] * queries)
        return for_queries, for_keys, for_temperature, None, None, None
