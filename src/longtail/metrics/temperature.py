"""Temperature scaling, fitted on held-out logits.

Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017 (Sec. 4.2): logits are divided by
one number, which changes no prediction, only how sure the model is of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longtail.metrics.inputs import checked_class_vector, checked_indices, checked_logits, row_blocks

LOWEST, HIGHEST = 0.01, 100.0
"""Range of temperatures that are looked at."""
_STEPS = 100
_TOLERANCE = 1e-12


def prior_weights(labels: Tensor, prior: Tensor) -> Tensor:
    """Return a weight for each image, float64 ``[N]``, under which the classes of ``labels`` have the prior ``prior``.

    That is ``prior[y] / share of y among the labels``: held-out images of a long-tailed set then speak for a model
    whose softmax implies another prior. A class without images has no voice.

    Args:
        labels: [N] class indices.
        prior: [C], not negative.
    """
    prior = checked_class_vector(prior, prior.numel(), "prior")
    labels = checked_indices(labels, len(prior))
    share = torch.bincount(labels, minlength=len(prior)).double() / len(labels)
    return prior[labels] / share[labels]


def negative_log_likelihood(
    logits: Tensor, labels: Tensor, temperature: float = 1.0, weights: Tensor | None = None
) -> float:
    """Return the (weighted) mean of -log softmax(logits / temperature)[label], in nats.

    Args and errors as in :func:`fit_temperature`.
    """
    labels, weights = _checked(logits, labels, weights)
    return _objective(logits, labels, weights, 1 / temperature)[0]


def fit_temperature(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Return the temperature T that minimises the (weighted) mean of -log softmax(logits / T)[label].

    The objective is convex in 1/T, so Newton's method inside a bracket finds its one minimum. The result lies in
    0.01..100. Where every image is classified rightly the likelihood only grows as T falls, and says nothing of how
    sure the model may be: the result is then 1.

    Args:
        logits: [N, C], finite.
        labels: [N] class indices.
        weights: [N], not negative, not all 0; default: all alike. See :func:`prior_weights`.

    Raises:
        ValueError: shapes that differ, an empty set, labels or weights out of range, or a logit that is not finite.
    """
    labels, weights = _checked(logits, labels, weights)
    low, high = 1 / HIGHEST, 1 / LOWEST
    if _objective(logits, labels, weights, low)[1] >= 0:
        return HIGHEST
    if _all_right(logits, labels, weights):
        return 1.0
    if _objective(logits, labels, weights, high)[1] <= 0:
        return LOWEST
    inverse = 1.0
    for _ in range(_STEPS):
        _, slope, curvature = _objective(logits, labels, weights, inverse)
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        newton = inverse - slope / curvature if curvature > 0 else -1.0
        new = newton if low <= newton <= high else math.sqrt(low * high)
        done, inverse = abs(new - inverse) <= _TOLERANCE * inverse, new
        if done:
            break
    return 1 / inverse


def _checked(logits: Tensor, labels: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return labels [N] and weights [N] in float64 with sum 1, on the CPU."""
    labels = checked_logits(logits, labels)
    weights = torch.ones(len(labels)) if weights is None else weights
    weights = checked_class_vector(weights, len(labels), "weights")
    total = math.fsum(weights.tolist())
    if not total > 0:
        raise ValueError("weights are all 0.")
    return labels, weights / total


def _objective(logits: Tensor, labels: Tensor, weights: Tensor, inverse: float) -> tuple[float, float, float]:
    """Return the weighted mean of -log softmax(inverse * logits)[label], and its two derivatives by ``inverse``."""
    terms: tuple[list[float], list[float], list[float]] = ([], [], [])
    for rows, block in row_blocks(logits):
        # Only differences count: with the label's own logit taken off, each row's loss is its normaliser.
        apart = block - block.gather(1, labels[rows, None])
        shares = (inverse * apart).softmax(dim=1)
        mean = (shares * apart).sum(dim=1)
        spread = (shares * (apart - mean[:, None]) ** 2).sum(dim=1)
        for collected, figures in zip(terms, ((inverse * apart).logsumexp(dim=1), mean, spread), strict=True):
            collected += (weights[rows] * figures).tolist()
    # Summed without rounding: the same on any number of threads.
    value, slope, curvature = (math.fsum(of_one) for of_one in terms)
    return value, slope, curvature


def _all_right(logits: Tensor, labels: Tensor, weights: Tensor) -> bool:
    """Return whether no image that counts has a logit above its label's."""
    for rows, block in row_blocks(logits):
        own = block.gather(1, labels[rows, None]).squeeze(1)
        if bool(((block.amax(dim=1) > own) & (weights[rows] > 0)).any()):
            return False
    return True
