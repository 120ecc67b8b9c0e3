"""Optimisers as a step needs them: fused, told on the device whether to act, with a rate that a captured step reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longtail.config import resolved
from longtail.methods import Trainable
from longtail.models import layer_depths
from longtail.option_groups import OptimiserOptions, TuneOptions
from longtail.training.capture import can_capture
from longtail.training.weights import Weights


def parameter_groups(method: Trainable, tune: TuneOptions) -> list[dict[str, Any]]:
    """Return the parameter groups of a method, those of the encoder split by their rates.

    A group whose rate is another has the factor ``lr_scale``, which :func:`set_rate` reads. Nothing changes where
    ``tune`` asks for nothing: groups and their order are the method's. Biases and normalisation alone
    (``--tune.kind bias`` or ``norm``) get no weight decay, as is usual for them.

    Args:
        method: its encoder's parameters may be in any of its groups, or in none.
        tune: how the encoder is tuned.
    """
    groups, undecayed = method.param_groups(), tune.kind in ("bias", "norm")
    rate = 1.0 if tune.encoder_lr is None else tune.encoder_lr
    if tune.lr_decay == 1 and rate == 1 and not undecayed:
        return groups
    depths = layer_depths(method.encoder) if tune.lr_decay != 1 else {}
    scales = {
        id(parameter): rate * tune.lr_decay ** depths.get(name, 0)
        for name, parameter in method.encoder.named_parameters()
    }
    split: list[dict[str, Any]] = []
    for group in groups:
        rest = [parameter for parameter in group["params"] if id(parameter) not in scales]
        by_scale: dict[float, list[Tensor]] = {}
        for parameter in group["params"]:
            if id(parameter) in scales:
                by_scale.setdefault(scales[id(parameter)], []).append(parameter)
        own = {"weight_decay": 0.0} if undecayed else {}
        split += [{**group, "params": rest}] if rest or not by_scale else []
        split += [{**group, **own, "params": some, "lr_scale": scale} for scale, some in sorted(by_scale.items())]
    return split


def build_optimiser(
    groups: list[dict[str, Any]], options: OptimiserOptions, device: torch.device, weights: Weights | None = None
) -> torch.optim.Optimizer:
    """Return the optimiser of a method's parameter groups; the learning rate is set before every step.

    Fused: one pass over the parameters instead of one for each arithmetic operation, with the same result.

    Args:
        groups: of :func:`parameter_groups`.
        options: which optimiser.
        device: where the training runs.
        weights: of the method, so that of a sharded one each process trains its part; None = all are here.
    """
    if weights is not None:
        groups = [{**group, "params": [weights.here(p) for p in group["params"]]} for group in groups]
    decay = resolved(options.weight_decay)
    optimiser: torch.optim.Optimizer
    if options.name == "adamw":
        optimiser = torch.optim.AdamW(groups, lr=0.0, weight_decay=decay, fused=True, capturable=can_capture(device))
    else:
        optimiser = _start_momentum(
            torch.optim.SGD(groups, lr=0.0, momentum=options.momentum, weight_decay=decay, fused=True)
        )
    if device.type != "cpu":
        # A number would be baked into a captured step. Not given above, where torch would read it.
        for group in optimiser.param_groups:
            group["lr"] = torch.zeros((), device=device)
    return optimiser


def _start_momentum(optimiser: torch.optim.SGD) -> torch.optim.SGD:
    """Start from zeros, which take the same first step; a first step that is refused would leave memory as it lies."""
    for group in optimiser.param_groups:
        for parameter in group["params"] if group["momentum"] else []:
            optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimiser


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group, times its ``lr_scale`` if it has one; in place where it lies on a device."""
    for group in optimiser.param_groups:
        own = rate * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def step_unless(optimiser: torch.optim.Optimizer, bad: Tensor) -> None:
    """Take the optimiser's step unless ``bad`` (bool, 0-d), which is not read from a device.

    A fused optimiser looks itself at ``found_inf``, the attribute through which gradient scaling tells it.
    """
    optimiser.found_inf = bad.float()  # type: ignore[attr-defined]
    optimiser.step()
