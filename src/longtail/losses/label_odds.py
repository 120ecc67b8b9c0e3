"""The log odds of each query's label under the class densities, and their gradients: the kernel of GMLLoss.

``sum over c of p_c s(z|c)`` is a sum over keys, each weighted by p_c / (keys of its class). So no query ever needs its
density under each class: one log-sum-exp over the keys outside the label's class, one over those inside, and their
difference is the log odds. Time and memory are O(B K) with no term in the number of classes, and nothing is scattered
by class, so that the same input gives the same bits on any device.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# On a CPU the element-wise work is done on so many similarities at a time: they stay in its cache, and their
# temporaries in memory that is not asked of the system anew.
CACHED = 2**20
# From this width on, keys @ queries.T and its transposition take less time on a CPU (MKL) than queries @ keys.T:
# 80 against 97 ms at B 128, K 16,384, D 1024.
_WIDE = 512
LN2 = math.log(2)


class LabelClass(NamedTuple):
    """Where the keys of each query's own class lie, and which of them are its own."""

    start: Tensor  # int64 [B], first column
    end: Tensor  # int64 [B], one after the last column
    longest: int  # at least the largest end - start
    query_ids: Tensor | None = None  # [B], -1 matches no key
    key_ids: Tensor | None = None  # [K]
    exclude_own_key: bool = False  # from the first log odds too
    mean: bool = True  # the density is the mean over the keys that remain, not their sum

    @classmethod
    def find(cls, labels: Tensor, offsets: Tensor, longest: int | None = None) -> LabelClass:
        """Return where the keys of each label ``[B]`` lie; ``longest`` is read back if it is not given."""
        start, end = offsets[labels], offsets[labels + 1]
        if longest is None or labels.device.type == "cpu":
            needed = int((end - start).max()) if len(labels) else 0
            if longest is not None and longest < needed:
                raise ValueError(f"longest_class is {longest}, but a label's class has {needed} keys.")
            longest = needed
        return cls(start, end, longest)

    def rows(self, chosen: slice) -> LabelClass:
        """Return the part of some queries."""
        ids = None if self.query_ids is None else self.query_ids[chosen]
        return self._replace(start=self.start[chosen], end=self.end[chosen], query_ids=ids)


def key_bias(log_prior: Tensor, offsets: Tensor, keys: int, mask: Tensor | None, mean: bool = True) -> Tensor:
    """Return what is added to each key's logit: log of the class prior over the class's number of keys.

    Args:
        log_prior: ``[C]``, -inf for a class that takes no part.
        offsets: int64 ``[C + 1]``.
        keys: K.
        mask: bool ``[K]`` or ``[B, K]``, True where a key counts.
        mean: divide by the number of keys; if not, the bias is the log prior alone.

    Returns:
        ``[K]``, or ``[B, K]`` if the mask is; the lowest finite number, whose exponential is 0, for a key that
        takes no part. (-inf would turn into NaN where it is multiplied by 0.)
    """
    lengths = offsets.diff()
    class_of_key = torch.arange(len(lengths), device=offsets.device).repeat_interleave(lengths, output_size=keys)
    if mask is not None and mean:
        seen = torch.nn.functional.pad(mask.cumsum(-1), (1, 0))
        lengths = seen.index_select(-1, offsets).diff(dim=-1)
    nothing = torch.finfo(log_prior.dtype).min
    divisor = lengths.clamp(min=1).to(log_prior.dtype).log() if mean else torch.zeros_like(log_prior)
    bias = (log_prior - divisor).clamp_(min=nothing)
    bias = bias.index_select(-1, class_of_key)
    return bias if mask is None else bias.masked_fill(~mask, nothing)


def label_log_odds(
    queries: Tensor, keys: Tensor, log_temperature: Tensor, bias: Tensor, label_class: LabelClass
) -> tuple[Tensor, Tensor]:
    """Return the log odds of the label, with and without the query's own keys.

    With logits ``x = queries @ keys.T / temperature + bias``, the odds are the sum of ``exp(x)`` over the label's class
    against the sum over all other classes. Without own keys, the label's sum is rescaled to the keys that remain (not
    if ``label_class.mean`` is off).

    Args:
        queries: ``[B, D]`` unit vectors.
        keys: ``[K, D]`` unit vectors.
        log_temperature: 0-d, of the dtype to compute in. The first log odds take it for a constant, the second take
            the queries and keys for constants.
        bias: ``[K]`` or ``[B, K]``, see ``key_bias``.
        label_class: the keys of each query's label.

    Returns:
        Two ``[B]``: the first with gradient by queries and keys, the second by the temperature only. They are
        equal without ids or with ``exclude_own_key``. -inf where the label's class has no key that counts, +inf
        where no other class has. The gradients are exact; there are no second derivatives.
    """
    dtype = log_temperature.dtype
    odds, others = _LabelLogOdds.apply(queries.to(dtype), keys.to(dtype), log_temperature, bias, label_class)
    return odds, others


class _LabelLogOdds(torch.autograd.Function):
    """Works on logits to base 2: on a CPU 2^x takes half the time of e^x, a twentieth where both are almost 0."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, log_temperature: Tensor, bias: Tensor, label_class: LabelClass
    ) -> tuple[Tensor, Tensor]:
        to_base_2 = (-log_temperature).exp() / LN2
        queries = queries * to_base_2
        # The lowest finite number stays what it is: divided by ln 2 it would be infinite.
        bias = (bias / LN2).clamp_(min=torch.finfo(bias.dtype).min)
        logits = biased_products(queries, keys, bias)
        rows = max(1, CACHED // max(1, len(keys))) if logits.device.type == "cpu" else max(1, len(logits))
        parts = [slice(first, first + rows) for first in range(0, max(1, len(logits)), rows)]
        found = [_odds(logits[part], label_class.rows(part)) for part in parts]
        odds, others, shift, scale = found[0] if len(found) == 1 else map(torch.cat, zip(*found, strict=True))
        ctx.save_for_backward(queries, keys, logits, shift, scale, to_base_2)
        return odds * LN2, others * LN2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, gradient_of_others: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, weights, shift, scale, to_base_2 = ctx.saved_tensors
        by_query, by_key, by_temperature = ctx.needs_input_grad[:3]
        for_queries = for_keys = for_temperature = None
        if by_query or by_temperature:
            pulled = weights @ keys  # [B, D]
            if by_query:
                for_queries = (LN2 * to_base_2 * gradient * scale)[:, None] * pulled
            if by_temperature:
                # queries . pulled is the mean logit over the other classes less that over the label's.
                slope = shift - (queries * pulled).sum(1) * scale
                for_temperature = LN2 * (gradient_of_others * slope).sum()
        if by_key:
            for_keys = weights.t() @ ((LN2 * gradient * scale)[:, None] * queries)
        return for_queries, for_keys, for_temperature, None, None


def biased_products(queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    """Return ``queries @ keys.T + bias``, contiguous ``[B, K]``."""
    if queries.device.type == "cpu" and queries.shape[1] >= _WIDE:
        return (keys @ queries.t()).t().contiguous().add_(bias)
    return torch.addmm(bias, queries, keys.t())


def _odds(logits: Tensor, label_class: LabelClass) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log odds, those without own keys, and two ``[b]`` for the gradients; overwrite logits ``[b, K]``.

    Afterwards ``logits * scale`` is the derivative of the first log odds by the logits. ``shift`` is the mean logit
    over the label's class as the first log odds see it, less that as the second do.
    """
    columns, inside = label_columns(label_class)
    nothing = torch.finfo(logits.dtype).min
    label = torch.where(inside, logits.gather(1, columns), nothing)  # [b, longest]
    rest, weights, total = log_sum_exp_(logits.scatter_(1, columns, torch.full_like(label, nothing)))
    found = label_sums(label, columns, label_class)
    # Left at 0 by the exponential, these columns take one number each; what is past the class adds 0.
    weights.scatter_add_(1, columns, found.weights.mul_((-total / found.mass)[:, None]))
    odds, other_odds = (
        part - rest.where(part > -torch.inf, 0.0) for part in (found.log_sum, found.log_sum_without_own)
    )
    return odds, other_odds, found.shift, -1 / total


def label_columns(label_class: LabelClass) -> tuple[Tensor, Tensor]:
    """Return the columns of each label's class, int64 ``[b, longest]``, and which of them are inside it.

    What is past the class names its last key again. An empty class names a stranger.
    """
    start, end, longest = label_class[:3]
    columns = start[:, None] + torch.arange(longest, device=start.device)
    return columns.minimum((end - 1).clamp_(min=0)[:, None]), columns < end[:, None]


class LabelSums(NamedTuple):
    """What :func:`label_sums` finds in the label's class of each of b queries, to base 2."""

    log_sum: Tensor  # [b]
    log_sum_without_own: Tensor  # [b]
    weights: Tensor  # [b, longest], of each key in the first sum, times mass
    mass: Tensor  # [b]
    shift: Tensor  # [b], mean logit over the class as the first sum sees it, less that as the second does


def label_sums(label: Tensor, columns: Tensor, label_class: LabelClass) -> LabelSums:
    """Return the log-sum-exp over the keys of each label's class, with and without the query's own keys.

    Args:
        label: ``[b, longest]`` logits to base 2; the lowest finite number where there is no key.
        columns: int64 ``[b, longest]``, where they came from.
        label_class: says whose the keys are.
    """
    nothing = torch.finfo(label.dtype).min
    start, _, _, query_ids, key_ids, exclude_own_key, mean = label_class
    target, label_weights, mass = log_sum_exp_(label.clone())
    other_target, shift = target, torch.zeros_like(target)
    if query_ids is not None and key_ids is not None:
        own = key_ids.expand(len(start), -1).gather(1, columns) == query_ids[:, None]
        own &= (query_ids >= 0)[:, None]
        others = label.masked_fill(own, nothing)
        counts = [(part > nothing / 2).sum(1).clamp_(min=1).to(target.dtype) for part in (label, others)]
        other_target, other_weights, other_mass = log_sum_exp_(others)
        if mean:
            other_target = other_target + (counts[0] / counts[1]).log2_()
        if exclude_own_key:
            target, label_weights, mass = other_target, other_weights, other_mass
        else:
            shift = (label_weights * label).sum(1) / mass - other_weights.mul_(label).sum(1) / other_mass
    return LabelSums(target, other_target, label_weights, mass, shift)


def log_sum_exp_(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-sum-exp of each row, the exponentials less the row's maximum (in place) and their sum, to base 2.

    A row of nothing has -inf, exponentials of 0, and 1 for their sum, so that it can be divided by.
    """
    floor = torch.finfo(logits.dtype).min / 2
    highest = logits.amax(1) if logits.shape[1] else logits.new_full(logits.shape[:1], floor)
    highest.clamp_(min=floor)
    weights = logits.sub_(highest[:, None]).exp2_()
    total = weights.sum(1)
    return total.log2().add_(highest), weights, total.clamp_(min=1)
