"""How many images each class keeps, and which: the long-tailed profiles and the standard CIFAR-LT draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from longtail.errors import UserError, unknown_name


def check_imbalance(imbalance: float) -> None:
    """Raise ``UserError`` unless ``imbalance`` (largest over smallest class) is finite and at least 1."""
    if not (math.isfinite(imbalance) and imbalance >= 1):
        raise UserError(
            f"imbalance is the size of the largest class over the smallest, so it must be a finite number "
            f"of at least 1, not {imbalance}."
        )


def exponential_profile(n_max: int | Sequence[int], num_classes: int, imbalance: float) -> list[int]:
    """Return the exponentially falling class counts of Cao et al. (2019, "LDAM"), one for each class.

    Class c keeps floor(n_max * (1/imbalance)^(c / (num_classes - 1))) images, and at least 1.

    Args:
        n_max: images of the largest class; or what each class has (``num_classes`` counts): then the largest
            count is n_max and no class keeps more than it has.
        num_classes: number of classes, at least 2.
        imbalance: largest over smallest class, at least 1 (1 = balanced).

    Raises:
        UserError: ``imbalance`` is below 1 or not finite, or there are fewer than 2 classes.
    """
    shares = [c / (num_classes - 1.0) for c in range(num_classes)] if num_classes > 1 else []
    return _profile(n_max, shares, imbalance)


def step_profile(n_max: int | Sequence[int], num_classes: int, imbalance: float) -> list[int]:
    """Return two-level class counts: n_max for the first half of the classes, n_max / imbalance for the rest.

    Rounded down, and at least 1. This is "step imbalance" with half of the classes in the minority (Buda et
    al. 2018; Cao et al. 2019); of an odd number of classes, the middle one is too. Arguments and errors: see
    ``exponential_profile``.
    """
    shares = [0.0 if c < num_classes // 2 else 1.0 for c in range(num_classes)]
    return _profile(n_max, shares, imbalance)


def _profile(n_max: int | Sequence[int], shares: list[float], imbalance: float) -> list[int]:
    check_imbalance(imbalance)
    num_classes = len(shares)
    if num_classes < 2:
        raise UserError("a long-tailed profile needs at least 2 classes.")
    have = [n_max] * num_classes if isinstance(n_max, int) else list(n_max)
    if len(have) != num_classes or min(have) < 1:
        raise ValueError(f"n_max must be at least 1 for each of the {num_classes} classes, not {n_max}")
    largest = max(have)
    # int() of the double, not an exact floor: published counts were made this way, so they come out the same.
    wanted = [max(1, int(largest * (1.0 / imbalance) ** share)) for share in shares]
    return [min(keep, count) for keep, count in zip(wanted, have, strict=True)]


PROFILES: dict[str, Callable[[int | Sequence[int], int, float], list[int]]] = {
    "exponential": exponential_profile,
    "step": step_profile,
}


def class_profile(profile: str, n_max: int | Sequence[int], num_classes: int, imbalance: float) -> list[int]:
    """Return the counts of the profile of that name, ``"exponential"`` or ``"step"``."""
    if profile not in PROFILES:
        raise unknown_name("profile", profile, PROFILES)
    return PROFILES[profile](n_max, num_classes, imbalance)


def long_tailed_indices(labels: Tensor, counts_per_class: Sequence[int], seed: int = 0) -> Tensor:
    """Return which samples the standard long-tailed CIFAR protocol (Cao et al. 2019) keeps.

    For each class in order: take the positions of its samples, shuffle them, keep the first
    ``counts_per_class[c]``. The shuffles follow each other on one legacy numpy generator, so seed 0 gives the
    sets that published CIFAR-LT results are on, index for index, and a smaller profile keeps prefixes of a
    larger one's lists. numpy's global generator is neither read nor changed.

    Args:
        labels: integers ``[N]``, 0..C-1.
        counts_per_class: how many to keep of each class, length C.
        seed: of the shuffles.

    Returns:
        int64 ``[sum(counts_per_class)]``, class by class, in shuffled order within a class.

    Raises:
        UserError: a class has fewer samples than it is to keep.
    """
    shuffles = np.random.RandomState(seed)
    labels_array = labels.cpu().numpy()
    by_class = labels_array.argsort(kind="stable").astype(np.int64)
    edges = np.searchsorted(labels_array[by_class], np.arange(len(counts_per_class) + 1))
    kept = []
    for label, count in enumerate(counts_per_class):
        positions = by_class[edges[label] : edges[label + 1]]
        if len(positions) < count:
            raise UserError(f"class {label} has {len(positions)} images, fewer than the {count} it is to keep.")
        shuffles.shuffle(positions)
        kept.append(positions[:count])
    return torch.from_numpy(np.concatenate(kept)) if kept else torch.empty(0, dtype=torch.int64)


def imbalance_factor(counts: Sequence[int] | Tensor) -> float:
    """Return the largest class count over the smallest; infinite if a class is empty."""
    values = [int(count) for count in counts]
    if not values or max(values) == 0:
        raise ValueError("imbalance_factor needs at least one class with an image")
    return max(values) / min(values) if min(values) > 0 else math.inf
