"""Learning rate as a function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Sequence


def learning_rate_factor(
    step: int,
    steps_per_epoch: int,
    epochs: int,
    *,
    schedule: str = "cosine",
    warmup: float = 0.0,
    milestones: Sequence[float] = (0.8, 0.9),
    decay: float = 0.1,
) -> float:
    """Return the factor on the base learning rate for optimiser step ``step`` (0-based).

    Warm-up is linear over a share ``warmup`` of the steps and reaches exactly 1 at its last step, never above it.
    Then ``cosine`` falls from 1 to 0 over the steps that remain, ``step`` multiplies by ``decay`` at
    each milestone (a share of the epochs, at an epoch's start), ``constant`` stays.
    """
    total = steps_per_epoch * epochs
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        epoch = step // steps_per_epoch
        # round() first: 0.9 * 200 is 180.00000000000003 in floating point for some shares.
        return decay ** sum(epoch >= round(share * epochs) for share in milestones)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(total - rising, 1)))
    raise ValueError(f"unknown schedule {schedule!r}")
