"""Batch normalisation over the batch of all processes, on any device.

torch's SyncBatchNorm refuses tensors on the CPU. This one is plain arithmetic around two small exchanges a layer: the
processes' means and variances forward (put together as Chan, Golub & LeVeque 1983 do, which loses no digits), two sums
backward. Running statistics come out the same in every process.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from longtail.exchange import gathered_rows_of, rows, summed


class JointBatchNorm(nn.modules.batchnorm._BatchNorm):
    """What a BatchNorm layer becomes by :func:`join_batch_norm`; in one process, or in eval mode, it is as it was.

    Made from an existing layer only: its class changes, its parameters, buffers and their names stay.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input [B, C, ...]`` normalised by the statistics of the whole batch."""
        sizes = rows()
        if sizes is None or not self.training:
            result: Tensor = super().forward(input)
            return result
        own = input.numel() // input.shape[1]
        # Numbers of the host: nothing waits for a device.
        counts = tuple(own * size // sizes[dist.get_rank()] for size in sizes)
        mean, variance, output = _JointNorm.apply(input, self.weight, self.bias, self.eps, counts)
        self._follow(mean, variance, sum(counts))
        # timm's layers hold what follows, too.
        for name in ("drop", "act"):
            after = self._modules.get(name)
            output = output if after is None else after(output)
        return output  # type: ignore[no-any-return]

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics towards those of the batch, as torch does: the variance without bias."""
        if self.running_mean is None or self.running_var is None:
            return
        share = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if share is None:
                share = 1.0 / float(self.num_batches_tracked)
        share = 0.0 if share is None else share
        unbiased = variance * (count / max(count - 1, 1))
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(unbiased.to(self.running_var), share)


def join_batch_norm(module: nn.Module) -> nn.Module:
    """Make every BatchNorm layer in ``module`` one over all processes, in place, and return ``module``."""
    for layer in module.modules():
        kind = type(layer)
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not issubclass(kind, JointBatchNorm):
            layer.__class__ = type(f"Joint{kind.__name__}", (JointBatchNorm, kind), {})
    return module


@lru_cache(maxsize=64)
def _shares(counts: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return each process's share of the numbers of a channel, ``[ranks, 1]``; kept, for copying waits for a device."""
    return torch.tensor([[count / sum(counts)] for count in counts], dtype=dtype, device=device)


class _JointNorm(torch.autograd.Function):
    """Returns ``(mean [C], biased variance [C], output)``; only the output has a gradient."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, counts: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        exact = values.double() if values.dtype == torch.float64 else values.float()
        dims = [dim for dim in range(values.ndim) if dim != 1]
        whole = sum(counts)
        shares = _shares(counts, exact.dtype, exact.device)  # [ranks, 1]
        local = torch.stack(torch.var_mean(exact, dims, correction=0))  # [2, C]
        variances, means = gathered_rows_of(local).unbind(1)  # [ranks, C] each
        mean = (means * shares).sum(0)
        variance = ((variances + (means - mean).square()) * shares).sum(0)
        shape = [1, -1] + [1] * (values.ndim - 2)
        inverse = (variance + eps).rsqrt()
        scale = inverse if weight is None else inverse * weight.to(inverse)
        shift = -mean * scale if bias is None else bias.to(mean) - mean * scale
        output = (exact * scale.view(shape) + shift.view(shape)).to(values.dtype)
        ctx.save_for_backward(values, weight, mean, inverse)
        ctx.whole = whole
        ctx.dims, ctx.shape, ctx.has_bias = dims, shape, bias is not None
        ctx.mark_non_differentiable(mean, variance)
        return mean, variance, output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        values, weight, mean, inverse = ctx.saved_tensors
        gradient = gradients[2].to(mean)
        normalised = (values.to(mean) - mean.view(ctx.shape)) * inverse.view(ctx.shape)
        sums = torch.stack([gradient.sum(ctx.dims), (gradient * normalised).sum(ctx.dims)])  # [2, C]
        own_bias, own_weight = sums.clone().unbind(0)
        all_bias, all_weight = (summed(sums) / ctx.whole).unbind(0)
        scale = inverse if weight is None else inverse * weight.to(inverse)
        centred = gradient - all_bias.view(ctx.shape) - normalised * all_weight.view(ctx.shape)
        result = (centred * scale.view(ctx.shape)).to(values.dtype)
        for_weight = None if weight is None else own_weight.to(weight.dtype)
        return result, for_weight, own_bias if ctx.has_bias else None, None, None
