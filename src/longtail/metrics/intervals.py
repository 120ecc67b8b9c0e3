"""How sure a figure is: intervals over test images and over seeds."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit
from torch import Tensor

from longtail.metrics.groups import GROUP_EDGES, GROUPS, group_index
from longtail.metrics.inputs import checked_class_vector

LEVEL = 0.95
RESAMPLES = 2000

# Strata drawn at a time: bounds memory at RESAMPLES x this many integers.
_BLOCK_STRATA = 1024


class MeanInterval(NamedTuple):
    """A mean over seeds and its interval; the bounds are None with a single value."""

    mean: float
    low: float | None
    high: float | None


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}.")


def wilson_interval(correct: int, total: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the Wilson score interval (low, high) of a proportion `correct` / `total`; (0, 1) for no trial.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    _check_level(level)
    if not 0 <= correct <= total:
        raise ValueError(f"correct must lie in 0..total, got {correct} of {total}.")
    if total == 0:
        return 0.0, 1.0
    z = _normal_quantile((1 + level) / 2)
    share = correct / total
    centre = share + z**2 / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    scale = 1 + z**2 / total
    # At the ends the bound is exactly 0 or 1; rounding would leave a stray 1e-17.
    low = 0.0 if correct == 0 else (centre - half) / scale
    high = 1.0 if correct == total else (centre + half) / scale
    return low, high


@functools.cache
def _normal_quantile(share: float) -> float:
    # Asked for once a class.
    return NormalDist().inv_cdf(share)


def mean_interval(values: Sequence[float], level: float = LEVEL) -> MeanInterval:
    """Return the mean of independent `values` (one a seed) with its Student-t interval.

    A single value has no interval: its bounds are None. Raises ValueError for no value, or one not finite.
    """
    _check_level(level)
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError("a mean interval needs at least one value, and finite ones.")
    mean = fmean(values)
    if len(values) == 1:
        return MeanInterval(mean, None, None)
    half = float(stdtrit(len(values) - 1, (1 + level) / 2)) * stdev(values) / math.sqrt(len(values))
    return MeanInterval(mean, mean - half, mean + half)


def bootstrap_intervals(
    correct: Tensor,
    total: Tensor,
    class_counts: Tensor,
    edges: tuple[int, int] = GROUP_EDGES,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, tuple[float, float] | None]:
    """Return percentile bootstrap intervals of top-1, balanced accuracy and each group's accuracy.

    Test images are resampled within their class, so no class vanishes: a class's correct answers are then
    Binomial(total, correct / total), and no image need be touched.

    The interval speaks of new test images of the same classes, not of new training runs. The resampled
    variance of a class with n test images is (n - 1) / n of the true one, so with 3 images a class the
    interval is about 0.82 of the width it should have, and classes with one image add no width at all.

    Args:
        correct: [C] test images of each class that were right.
        total: [C] test images of each class.
        class_counts: [C] training images of each class; they set the groups.
        edges: see `group_index`.
        level: coverage aimed at.
        resamples: number of bootstrap test sets.
        seed: of this function's own generator; the same seed gives the same intervals.

    Returns:
        {"top1", "balanced_accuracy", "many", "medium", "few"}, each (low, high), or None where every class
        of the figure is all right or all wrong (so also with one test image): nothing can be resampled there.
    """
    _check_level(level)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}.")
    num_classes = class_counts.numel()
    hits = checked_class_vector(correct, num_classes, "correct").long().numpy()
    images = checked_class_vector(total, num_classes, "total").long().numpy()
    if (hits > images).any() or images.sum() == 0:
        raise ValueError("total must hold a test image, and correct must not exceed total in any class.")
    group = group_index(class_counts, edges).numpy()

    # Classes alike in group, images and hits are interchangeable: their sum is one binomial, drawn once.
    tested = images > 0
    strata, alike = np.unique(np.stack([group, images, hits])[:, tested], axis=1, return_counts=True)
    generator = np.random.default_rng(seed)
    drawn_hits = np.zeros(resamples, dtype=np.int64)
    drawn_recall = np.zeros((len(GROUPS), resamples))
    for start in range(0, strata.shape[1], _BLOCK_STRATA):
        of_group, n, k = strata[:, start : start + _BLOCK_STRATA]
        draws = generator.binomial(alike[start : start + _BLOCK_STRATA] * n, k / n, size=(resamples, len(n)))
        drawn_hits += draws.sum(axis=1)
        for position in range(len(GROUPS)):
            drawn_recall[position] += (draws / n)[:, of_group == position].sum(axis=1)

    def interval(samples: np.ndarray, members: np.ndarray) -> tuple[float, float] | None:
        # All right or all wrong has no spread to resample, which is not certainty: [1, 1] would claim it.
        if not ((hits > 0) & (hits < images))[members].any():
            return None
        low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    intervals = {
        "top1": interval(drawn_hits / images.sum(), tested),
        "balanced_accuracy": interval(drawn_recall.sum(axis=0) / tested.sum(), tested),
    }
    for position, name in enumerate(GROUPS):
        members = tested & (group == position)
        intervals[name] = interval(drawn_recall[position] / max(1, members.sum()), members)
    return intervals
