"""Is one model better than another? Differences that are paired, by seed or by test image, and their intervals.

Both kinds leave out what the two models share (the draw of a seed, an easy image), so they are narrower than what two
intervals side by side suggest.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from longtail.metrics.groups import GROUP_EDGES, GROUPS, group_index
from longtail.metrics.inputs import checked_class_vector, checked_indices
from longtail.metrics.intervals import LEVEL, RESAMPLES, MeanInterval, mean_interval

# Strata drawn at a time: bounds memory at RESAMPLES x 3 x this many integers.
_BLOCK_STRATA = 512


def paired_by_seed(one: Mapping[int, float | None], other: Mapping[int, float | None]) -> MeanInterval | None:
    """Return the mean of ``one - other`` over the seeds that have both, with its Student-t interval.

    The interval speaks of new training runs on the same images. It is None in its bounds with one shared seed; the
    whole is None without any.

    Args:
        one, other: a figure of each seed; None where it is not defined.
    """
    pairs = ((one[seed], other[seed]) for seed in sorted(one.keys() & other.keys()))
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    return mean_interval(differences) if differences else None


def paired_by_image(
    right: Tensor,
    other_right: Tensor,
    labels: Tensor,
    class_counts: Tensor,
    edges: tuple[int, int] = GROUP_EDGES,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, MeanInterval | None]:
    """Return the difference of two models on the same test images, with a percentile bootstrap interval.

    Images are resampled within their class, each with both models' answers. Of a class's images only three numbers
    matter (right by the one alone, by the other alone, or neither), so a resampled class is one multinomial draw; so
    are all classes together that are alike in them, of which a test set of 100,000 classes has few kinds.

    The interval speaks of new test images of the same classes, not of new training runs: two seeds of one method may
    well differ "clearly". Like every bootstrap it is too narrow where a class has few images (by (n - 1) / n in
    variance).

    Args:
        right: [N] bool, whether the one model is right.
        other_right: [N] bool, whether the other is.
        labels: [N] class indices.
        class_counts: [C] training images of each class; they set the groups.
        edges: see `group_index`.
        level: coverage aimed at.
        resamples: number of bootstrap test sets.
        seed: of this function's own generator; the same seed gives the same intervals.

    Returns:
        {"top1", "balanced_accuracy", "many", "medium", "few"}: one - other, None where the figure has no test image;
        the bounds are None where the two agree on every image of the figure, or the one is right and the other wrong
        on all of a class: nothing can be resampled there.

    Raises:
        ValueError: shapes differ, an answer is not boolean, or there is no test image.
    """
    num_classes = class_counts.numel()
    labels = checked_indices(labels, num_classes)
    if not right.shape == other_right.shape == labels.shape or not len(labels):
        raise ValueError(f"{list(right.shape)} and {list(other_right.shape)} answers for {list(labels.shape)} labels.")
    if right.dtype != torch.bool or other_right.dtype != torch.bool:
        raise ValueError("answers must be boolean.")
    group = group_index(checked_class_vector(class_counts, num_classes, "class_counts"), edges).numpy()
    gained = torch.bincount(labels[right & ~other_right], minlength=num_classes).numpy()
    lost = torch.bincount(labels[other_right & ~right], minlength=num_classes).numpy()
    images = torch.bincount(labels, minlength=num_classes).numpy()

    tested = np.flatnonzero(images > 0)
    generator = np.random.default_rng(seed)
    drawn_hits = np.zeros(resamples)
    drawn_recall = np.zeros((len(GROUPS), resamples))
    kinds = np.stack([group, images, gained, lost])[:, tested]
    strata, alike = np.unique(kinds, axis=1, return_counts=True)
    for start in range(0, strata.shape[1], _BLOCK_STRATA):
        of_group, n, more, less = strata[:, start : start + _BLOCK_STRATA]
        shares = np.stack([more, less], axis=1) / n[:, None]
        rest = np.clip(1 - shares.sum(axis=1, keepdims=True), 0, 1)
        trials = alike[start : start + _BLOCK_STRATA] * n
        draws = generator.multinomial(trials, np.concatenate([shares, rest], axis=1), size=(resamples, len(n)))
        net = (draws[..., 0] - draws[..., 1]).astype(np.float64)
        drawn_hits += net.sum(axis=1)
        for position in range(len(GROUPS)):
            drawn_recall[position] += (net / n)[:, of_group == position].sum(axis=1)

    recall = (gained - lost)[tested] / images[tested]
    spread = (gained + lost > 0) & (np.maximum(gained, lost) < images)

    def interval(value: float, samples: np.ndarray, members: np.ndarray) -> MeanInterval:
        if not spread[members].any():
            return MeanInterval(value, None, None)
        low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
        return MeanInterval(value, float(low), float(high))

    found: dict[str, MeanInterval | None] = {
        "top1": interval(float((gained - lost).sum() / images.sum()), drawn_hits / images.sum(), tested),
        "balanced_accuracy": interval(float(recall.mean()), drawn_recall.sum(axis=0) / len(tested), tested),
    }
    for position, name in enumerate(GROUPS):
        inside = group[tested] == position
        count = int(inside.sum())
        samples = drawn_recall[position] / max(1, count)
        found[name] = interval(float(recall[inside].mean()), samples, tested[inside]) if count else None
    return found
