"""Optimisers as a step needs them: fused, told on the device whether to act, with a rate that a captured step reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longtail.config import resolved
from longtail.option_groups import OptimiserOptions
from longtail.training.capture import can_capture


def build_optimiser(
    groups: list[dict[str, Any]], options: OptimiserOptions, device: torch.device
) -> torch.optim.Optimizer:
    """Return the optimiser of a method's parameter groups; the learning rate is set before every step.

    Fused: one pass over the parameters instead of one for each arithmetic operation, with the same result.
    """
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
    """Set the learning rate of every group, in place where it lies on a device."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def step_unless(optimiser: torch.optim.Optimizer, bad: Tensor) -> None:
    """Take the optimiser's step unless ``bad`` (bool, 0-d), which is not read from a device.

    A fused optimiser looks itself at ``found_inf``, the attribute through which gradient scaling tells it.
    """
    optimiser.found_inf = bad.float()  # type: ignore[attr-defined]
    optimiser.step()
