"""Weights of the classes in a loss: rare ones more."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from longtail.losses.logit_adjusted import checked_counts


def balancing_weights(class_counts: Tensor | Sequence[int], kind: str, beta: float = 0.9999) -> Tensor:
    """Return a weight for each class, float64 ``[C]`` with mean 1 over the classes that have samples.

    ``inverse``: in proportion to 1 / n_c. ``effective``: to (1 - beta) / (1 - beta^n_c), one over the effective number
    of samples; Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019, Sec. 4. With
    beta = 0 all classes weigh alike, as beta goes to 1 it becomes ``inverse``. A class without samples gets 0.

    Args:
        class_counts: ``[C]`` training samples of each class.
        kind: ``"inverse"`` or ``"effective"``.
        beta: of the effective number, 0 <= beta < 1.

    Raises:
        ValueError: counts that are none (see :class:`~longtail.losses.LogitAdjustedCrossEntropy`), an unknown kind, or
            beta out of range.

    Example:
        >>> balancing_weights([90, 10], "inverse")
        tensor([0.2000, 1.8000], dtype=torch.float64)
    """
    counts = checked_counts(class_counts).double().cpu()
    present = counts > 0
    if kind == "inverse":
        raw = 1 / counts
    elif kind == "effective":
        if not 0 <= beta < 1:
            raise ValueError(f"beta must be at least 0 and below 1, got {beta}.")
        # 1 - beta^n loses all its digits for beta near 1.
        log_beta = math.log(beta) if beta else -math.inf
        raw = (1 - beta) / -torch.expm1(counts * log_beta)
    else:
        raise ValueError(f"class weights are 'inverse' or 'effective', not {kind!r}.")
    raw = torch.where(present, raw, 0.0)
    return raw * (present.sum() / raw.sum())


def weighted_mean(losses: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Return sum_i w_{y_i} losses_i / sum_i w_{y_i}, 0-d; the plain mean without weights.

    So torch's cross entropy takes it, and the authors' releases through that: the size of the loss, and so the learning
    rate that fits, does not depend on which classes a batch happens to hold.

    Args:
        losses: ``[B]``.
        labels: ``[B]``.
        weights: ``[C]``, or None.
    """
    if weights is None:
        return losses.mean()
    own = weights.to(losses.dtype)[labels]
    return (own * losses).sum() / own.sum()
