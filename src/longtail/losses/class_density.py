"""The one numeric kernel that every class density shares: a log-mean-exp over the keys of each class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# A running float32 sum loses digits as it grows, so long classes are summed in blocks of this many keys and
# the block sums are summed after: about ten times more exact at 32,768 keys a class, at no measurable cost.
_BLOCK = 128


def class_logmeanexp(logits: Tensor, offsets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the log of the mean of ``exp(logits)`` over the keys of each class.

    Keys lie class by class: class c holds columns ``offsets[c]:offsets[c + 1]``. With logits = similarity /
    temperature this is the log of the Gaussian kernel density of each class on the unit sphere (Suh & Seo,
    ICML 2023), up to a constant. The maximum is taken per class, not per row, so a class far from the
    query keeps its density at any temperature. Time and memory are O(B K), whatever the number of classes.

    Args:
        logits: ``[B, K]``, floating point. Fastest when it is the transpose of a contiguous ``[K, B]``.
        offsets: int64 ``[C + 1]``, never falling, from 0 to K.
        mask: bool ``[K]`` or ``[B, K]``, True where a key counts; None counts every key.

    Returns:
        ``[B, C]``, float32 for inputs of half precision, else in the dtype of ``logits``. A class without a
        key that counts gives -inf with zero gradient. The gradient is exact; there is no second derivative.

    Raises:
        ValueError: shapes or dtypes do not fit, or (checked on the CPU only) offsets do not run from 0 to K.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0, 5.0]])
        >>> class_logmeanexp(logits, torch.tensor([0, 2, 2, 3]))
        tensor([[0., -inf, 5.]])
    """
    return _densities(logits, offsets, mask, with_mean=False)[0]


def class_logmeanexp_and_mean(logits: Tensor, offsets: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return ``class_logmeanexp`` and the mean logit of each class under the softmax within the class.

    The second, ``[B, C]`` and without gradient, is the derivative of the first by the log of a common scale
    of the logits, hence minus its derivative by log temperature. It is 0 for a class without a key that
    counts.
    """
    return _densities(logits, offsets, mask, with_mean=True)


def _densities(logits: Tensor, offsets: Tensor, mask: Tensor | None, with_mean: bool) -> tuple[Tensor, Tensor]:
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(f"logits must be floating point [B, K], got {logits.dtype} {list(logits.shape)}.")
    check_keys(*logits.shape, offsets, mask)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    densities, means = _ClassLogMeanExp.apply(wide, offsets, mask, with_mean)
    return densities, means


def check_keys(batch: int, keys: int, offsets: Tensor, mask: Tensor | None) -> None:
    """Raise ValueError unless offsets and mask fit: shapes and dtypes, and values where they lie on the host."""
    if offsets.ndim != 1 or len(offsets) < 2 or offsets.dtype != torch.int64:
        raise ValueError(f"offsets must be int64 [C + 1], got {offsets.dtype} {list(offsets.shape)}.")
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool (True = the key counts), got {mask.dtype}.")
        if mask.shape not in ((keys,), (batch, keys)):
            raise ValueError(f"mask must be [K] or [B, K] = {[batch, keys]} as the logits, got {list(mask.shape)}.")
    if offsets.device.type == "cpu":
        first, last = int(offsets[0]), int(offsets[-1])
        if first != 0 or last != keys or bool((offsets[1:] < offsets[:-1]).any()):
            raise ValueError(f"offsets must never fall and run from 0 to the {keys} keys, got {first} to {last}.")


class _ClassLogMeanExp(torch.autograd.Function):
    """Works on ``[K, B]``: a key is then a contiguous row, and a class a block of rows."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, offsets: Tensor, mask: Tensor | None, with_mean: bool
    ) -> tuple[Tensor, Tensor]:
        rows = logits.t().contiguous()
        lengths = offsets[1:] - offsets[:-1]
        classes = lengths.shape[0]
        index = torch.arange(classes, device=rows.device)
        class_of_key = index.repeat_interleave(lengths, output_size=rows.shape[0])
        if mask is None:
            counts = lengths.to(rows.dtype)[:, None]
        else:
            columns = mask.t() if mask.ndim == 2 else mask[:, None]
            rows = rows.masked_fill(~columns, -torch.inf)
            counts = _class_sum(columns.to(rows.dtype), class_of_key, classes)

        # An all -inf class must not be shifted by -inf: -inf - -inf is NaN, -inf - 0 is not.
        highest = _class_max(rows, class_of_key, classes)
        highest.masked_fill_(highest == -torch.inf, 0.0)
        shifted = rows - highest.index_select(0, class_of_key)
        weights = shifted.exp()
        totals = _class_sum(weights, class_of_key, classes)
        densities = (totals / counts.clamp(min=1)).log_().add_(highest)
        if with_mean:
            # exp underflows long before the lowest finite number, so clamping only turns 0 * -inf into 0.
            moments = shifted.clamp_(min=torch.finfo(rows.dtype).min).mul_(weights)
            means = _class_sum(moments, class_of_key, classes) / totals
            means = torch.where(totals > 0, means.add_(highest), 0.0).t()
        else:
            means = rows.new_empty(0)
        ctx.save_for_backward(weights, totals, class_of_key)
        ctx.mark_non_differentiable(means)
        return densities.t(), means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        weights, totals, class_of_key = ctx.saved_tensors
        # Selected, not multiplied by 0: what arrives for an empty class may be NaN or infinite.
        scale = torch.where(totals > 0, gradient.t() / totals, 0.0)
        return scale.index_select(0, class_of_key).mul_(weights).t(), None, None, None


def _class_max(rows: Tensor, class_of_key: Tensor, classes: int) -> Tensor:
    """Return the maximum ``[C, B]`` of the rows ``[K, B]`` of each class, -inf for an empty class."""
    lowest = rows.new_full((classes, rows.shape[1]), -torch.inf)
    return lowest.scatter_reduce_(0, class_of_key[:, None].expand_as(rows), rows, "amax")


def _class_sum(rows: Tensor, class_of_key: Tensor, classes: int) -> Tensor:
    """Return the sum ``[C, B]`` of the rows ``[K, B]`` of each class, 0 for an empty class.

    ``scatter_add_`` with a row index is the fastest way measured on a CPU among those that are plain
    operations: 0.5 ms at K = 32,768, C = 8142, B = 128 on two EPYC cores, against 0.6 for ``index_add_``,
    6.5 for ``segment_reduce`` and 1.3 for grouping classes of equal length.
    """
    keys = rows.shape[0]
    # Class and key // _BLOCK never fall along the keys, so their sum numbers the (class, block) pairs.
    block_of_key = class_of_key + torch.arange(keys, device=rows.device) // _BLOCK
    blocks = classes + keys // _BLOCK + 1
    class_of_block = class_of_key.new_zeros(blocks).scatter_(0, block_of_key, class_of_key)
    return _row_sum(_row_sum(rows, block_of_key, blocks), class_of_block, classes)


def _row_sum(rows: Tensor, group: Tensor, groups: int) -> Tensor:
    return rows.new_zeros(groups, rows.shape[1]).scatter_add_(0, group[:, None].expand_as(rows), rows)
