"""What the losses over pairs of unit vectors share: scaled similarities, what may be compared, the mean that counts."""

from __future__ import annotations

import torch
from torch import Tensor

from longtail.losses.autocast import without_autocast
from longtail.losses.logit_adjusted import check_labels


def similarities(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Return ``queries @ keys.T / temperature`` as ``[B, K]``, in float32 at least, also under autocast."""
    dtype = torch.promote_types(torch.promote_types(queries.dtype, keys.dtype), torch.float32)
    with without_autocast(queries):
        return queries.to(dtype) @ keys.to(dtype).t() / temperature


def nothing(logits: Tensor) -> float:
    """Return the logit of what takes no part: its exponential is 0, and where all are it no NaN comes out."""
    return torch.finfo(logits.dtype).min


def itself(logits: Tensor) -> Tensor:
    """Return bool ``[B, K]``, True where query i meets key i: a query among its own keys."""
    rows, columns = (torch.arange(size, device=logits.device) for size in logits.shape)
    return rows[:, None] == columns


def mean_of(losses: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of ``losses [B]`` over the samples where ``counts [B]`` is True; 0 if there is none."""
    return losses.masked_fill(~counts, 0.0).sum() / counts.sum().clamp(min=1)


def check_temperature(temperature: float) -> float:
    """Return the temperature, or raise ValueError unless it is above 0 and finite."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}.")
    return float(temperature)


def check_queries(queries: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless queries are ``[B, D]`` and labels int64 ``[B]``."""
    if queries.ndim != 2 or not queries.is_floating_point():
        raise ValueError(f"queries must be floating point [B, D], got {queries.dtype} {list(queries.shape)}.")
    if labels.shape != queries.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 [{len(queries)}], got {labels.dtype} {list(labels.shape)}.")


def check_keys_of(queries: Tensor, keys: Tensor, key_labels: Tensor) -> None:
    """Raise ValueError unless keys are ``[K, D]`` as wide as the queries and their labels int64 ``[K]``."""
    if keys.ndim != 2 or keys.shape[1] != queries.shape[1]:
        raise ValueError(f"keys must be [K, {queries.shape[1]}] as the queries, got {list(keys.shape)}.")
    if key_labels.shape != keys.shape[:1] or key_labels.dtype != torch.int64:
        raise ValueError(f"key_labels must be int64 [{len(keys)}], got {key_labels.dtype} {list(key_labels.shape)}.")


def check_classes(labels: Tensor, class_counts: Tensor) -> None:
    """Raise ValueError for a label out of range or, where reading it is free, of a class of count 0."""
    check_labels(labels, len(labels), class_counts.shape[0])
    if labels.device.type == "cpu" and bool((class_counts[labels] == 0).any()):
        raise ValueError("a label names a class whose count is 0; give it a count.")
