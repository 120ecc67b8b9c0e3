"""Projecting keys of which each process holds a share, with batch statistics over the keys of all."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from longtail.models import ProjectionHead
from longtail.models.heads import unit_vectors


def project_share(projection: nn.Module, features: Tensor, keys: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """Return the keys of this process's features: the rows that ``projection`` of all processes' features would have.

    A BatchNorm in training mode takes ``mean = sum of x / K`` and ``variance = sum of (x - mean)^2 / K`` over the K
    rows of all processes (two all-reduces of its width forward, one of twice that backward), and moves its running
    statistics alike in all of them. The gradients of weights are those through this process's own rows; the gradient of
    its features takes the other rows' dependence on the statistics in, for the sum of all processes' losses.

    Args:
        projection: a :class:`longtail.models.ProjectionHead`, or a module without BatchNorm.
        features: ``[K_r, D]``, none or more.
        keys: K, rows of all processes together.
        group: the processes; None = all of them.

    Returns:
        ``[K_r, P]`` unit vectors.

    Raises:
        ValueError: another module with a BatchNorm.
    """
    if not isinstance(projection, ProjectionHead):
        if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in projection.modules()):
            raise ValueError(
                f"{type(projection).__name__} has a BatchNorm; only a ProjectionHead is projected in shares"
            )
        result: Tensor = projection(features)
        return result
    for layer in projection.layers:
        if isinstance(layer, nn.BatchNorm1d) and layer.training:
            features = _normalised(layer, features, keys, group)
        else:
            features = layer(features)
    return unit_vectors(features)


def _normalised(layer: nn.BatchNorm1d, values: Tensor, keys: int, group: dist.ProcessGroup | None) -> Tensor:
    """Return what ``layer`` in training mode makes of ``values [K_r, H]`` among the ``keys`` rows of all processes."""
    output: Tensor
    output, mean, variance = _SharedNorm.apply(values, layer.weight, layer.bias, layer.eps, keys, group)
    with torch.no_grad():
        if layer.running_mean is not None and layer.running_var is not None:
            share = layer.momentum
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.add_(1)
                share = 1 / float(layer.num_batches_tracked) if share is None else share
            share = 0.0 if share is None else share
            layer.running_mean.lerp_(mean.to(layer.running_mean), share)
            layer.running_var.lerp_((variance * (keys / max(keys - 1, 1))).to(layer.running_var), share)
    return output


class _SharedNorm(torch.autograd.Function):
    """Returns ``(output, mean [H], biased variance [H])``; only the output has a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        keys: int,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        exact = values.to(torch.promote_types(values.dtype, torch.float32))
        mean = exact.sum(0)
        dist.all_reduce(mean, group=group)
        mean /= keys
        centred = exact - mean
        variance = centred.square().sum(0)
        dist.all_reduce(variance, group=group)
        variance /= keys
        inverse = (variance + eps).rsqrt()
        output = centred.mul_(inverse if weight is None else inverse * weight.to(inverse))
        if bias is not None:
            output = output.add_(bias.to(output))
        ctx.save_for_backward(values, weight, mean, inverse)
        ctx.keys, ctx.group, ctx.has_bias = keys, group, bias is not None
        ctx.mark_non_differentiable(mean, variance)
        return output.to(values.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, mean, inverse = ctx.saved_tensors
        gradient = gradients[0].to(mean)
        normalised = (values.to(mean) - mean) * inverse
        own = torch.stack([gradient.sum(0), (gradient * normalised).sum(0)])  # [2, H], of bias and weight
        whole = own.clone()
        dist.all_reduce(whole, group=ctx.group)
        whole /= ctx.keys
        for_values = gradient - whole[0] - normalised * whole[1]
        for_values *= inverse if weight is None else inverse * weight.to(inverse)
        for_weight = None if weight is None else own[1].to(weight.dtype)
        return for_values.to(values.dtype), for_weight, own[0] if ctx.has_bias else None, None, None, None
