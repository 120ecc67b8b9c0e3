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
    Then ``cosine`` falls from 1 to 0 over the steps that remain, ``poly`` likewise as (1 - t)^0.9 of their share t
    (usual for segmentation; Chen et al., DeepLab, TPAMI 2018), ``step`` multiplies by ``decay`` at each milestone (a
    share of the epochs, at an epoch's start), ``constant`` stays.
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
    over = (step - rising) / max(total - rising, 1)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * over))
    if schedule == "poly":
        return float((1.0 - over) ** 0.9)
    raise ValueError(f"unknown schedule {schedule!r}")
