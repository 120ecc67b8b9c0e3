"""What figures need of each image's logits, a few numbers an image: ``[N, C]`` is looked at once, block by block.

With 100,000 classes the logits of 25,000 images take 10 GB, these numbers 1 MB.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from longtail.metrics.information import LabelLikelihood
from longtail.metrics.inputs import checked_class_vector, checked_indices, checked_logits, row_blocks


@dataclass(frozen=True)
class PerImage:
    """What figures need to know of N images of C classes.

    Attributes:
        labels: int64 ``[N]``.
        predictions: int64 ``[N]``, class of the highest logit; of equals, the first.
        confidence: float64 ``[N]``, softmax probability of the prediction.
        rank: int64 ``[N]``, how many classes come before the label, sorted by logit, equal ones by class index.
        log_likelihood: float64 ``[N]``, of the label, see `LabelLikelihood`; None if the logits imply the prior 0 for
            a class that occurs.
        num_classes: C.
    """

    labels: Tensor
    predictions: Tensor
    confidence: Tensor
    rank: Tensor
    log_likelihood: Tensor | None
    num_classes: int


def summarise_logits(parts: Iterable[Tensor], labels: Tensor, logit_prior: Tensor) -> PerImage:
    """Return what figures need of logits that come in parts, in order: they need never exist together.

    Args:
        parts: logits ``[any, C]``, finite, N rows in all.
        labels: ``[N]`` class indices.
        logit_prior: ``[C]`` class prior that softmax(logits) implies.

    Raises:
        ValueError: for an empty test set, labels out of range, shapes that differ or a logit not finite.
    """
    num_classes = logit_prior.numel()
    prior = checked_class_vector(logit_prior, num_classes, "logit_prior")
    labels = checked_indices(labels, num_classes)
    covered = bool((prior[labels] > 0).all())
    likelihood = LabelLikelihood(labels, prior) if covered else None
    predictions, rank = torch.empty_like(labels), torch.empty_like(labels)
    confidence, found = (torch.empty(len(labels), dtype=torch.float64) for _ in range(2))
    columns = torch.arange(num_classes)
    done = 0
    for logits in parts:
        if logits.ndim == 2 and (logits.shape[1] != num_classes or done + len(logits) > len(labels)):
            raise ValueError(
                f"logits of {list(logits.shape)} do not fit {len(labels)} labels of {num_classes} classes."
            )
        checked_logits(logits, labels[done : done + len(logits)])
        for rows, block in row_blocks(logits, done):
            target = labels[rows]
            own = block.gather(1, target[:, None])
            highest, predictions[rows] = block.max(dim=1)
            rank[rows] = ((block > own) | ((block == own) & (columns < target[:, None]))).sum(dim=1)
            # The winner's logit is the row's maximum, so its probability is one over the normaliser.
            confidence[rows] = 1 / (block - highest[:, None]).exp_().sum(dim=1)
            if likelihood is not None:
                found[rows] = likelihood(block, target)
        done += len(logits)
    if done != len(labels):
        raise ValueError(f"there are {done} rows of logits for {len(labels)} labels.")
    return PerImage(labels, predictions, confidence, rank, found if covered else None, num_classes)
