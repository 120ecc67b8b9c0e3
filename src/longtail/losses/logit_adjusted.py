"""Cross entropy with the log class prior added to the logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LogitAdjustedCrossEntropy(nn.Module):
    """Logit-adjusted cross entropy, also known as balanced softmax.

    ``L = -log softmax_c(logits_c + prior_strength * log p_c)[label]``, mean over the batch, with p_c the
    share of class c in the training set. The raw logits then suit a balanced test set: nothing is added
    there. Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, Eq. 10; Ren et al., "Balanced
    meta-softmax", NeurIPS 2020; the classifier term of Suh & Seo, ICML 2023.

    With a prior, a class of count 0 has logit -inf: it drops out of every sum and cannot be a label.

    Args:
        class_counts: ``[C]`` training samples of each class; kept as a buffer.
        prior_strength: scale of log p_c, 1 = the papers, 0 = exactly plain cross entropy.
        class_weights: ``[C]`` weight of each class in the mean (:func:`~longtail.losses.balancing_weights`), kept as a
            buffer that may be changed in place; None = all alike.

    Raises:
        ValueError: counts not one-dimensional, negative or all zero; weights that are none; in a call, shapes that
            do not fit and (checked on the CPU only) a label out of range or of a class of count 0, whose loss
            would be infinite.

    Example:
        >>> loss = LogitAdjustedCrossEntropy(torch.tensor([90, 10]))
        >>> loss(torch.zeros(1, 2), torch.tensor([1]))  # -log(10 / 100)
        tensor(2.3026)
    """

    class_counts: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        class_counts: Tensor | Sequence[int],
        prior_strength: float = 1.0,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("class_counts", checked_counts(class_counts))
        self.register_buffer("class_weights", checked_weights(class_weights, self.class_counts.shape[0]))
        self.prior_strength = float(prior_strength)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of ``logits [B, C]`` and ``labels [B]`` (int64), in float32 at least."""
        classes = self.class_counts.shape[0]
        if logits.ndim != 2 or logits.shape[1] != classes:
            raise ValueError(f"logits must be [B, {classes}] as the class counts say, got {list(logits.shape)}.")
        check_labels(labels, logits.shape[0], classes)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        if self.prior_strength == 0:
            return F.cross_entropy(logits, labels, weights)
        if labels.device.type == "cpu" and bool((self.class_counts[labels] == 0).any()):
            raise ValueError("a label names a class whose count is 0; give it a count or set prior_strength=0.")
        prior = weighted_log_prior(self.class_counts, self.prior_strength, logits.dtype)
        return F.cross_entropy(logits + prior, labels, weights)

    def extra_repr(self) -> str:
        """Return what ``print`` shows of the loss."""
        return f"num_classes={self.class_counts.shape[0]}, prior_strength={self.prior_strength}"


def checked_counts(class_counts: Tensor | Sequence[int]) -> Tensor:
    """Return a copy ``[C]`` of the class counts, or raise ValueError where they cannot be counts."""
    counts = torch.as_tensor(class_counts).detach().clone()
    if counts.ndim != 1 or counts.numel() == 0:
        raise ValueError(f"class_counts must be [C] with C >= 1, got shape {list(counts.shape)}.")
    if counts.dtype == torch.bool or counts.is_complex():
        raise ValueError(f"class_counts must be numbers of samples, got {counts.dtype}.")
    if not bool(torch.isfinite(counts).all()) or bool((counts < 0).any()):
        raise ValueError("class_counts must be finite and not negative.")
    if bool((counts == 0).all()):
        raise ValueError("class_counts are all zero: at least one class needs a sample.")
    return counts


def check_labels(labels: Tensor, batch: int, classes: int) -> None:
    """Raise ValueError unless labels are int64 ``[batch]`` and, where reading them is free, name a class."""
    if labels.shape != (batch,) or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 [{batch}], got {labels.dtype} {list(labels.shape)}.")
    if labels.device.type == "cpu" and batch and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {int(labels.min())}..{int(labels.max())}.")


def checked_weights(weights: Tensor | None, classes: int) -> Tensor | None:
    """Return a copy of class weights ``[classes]``, None for None, or raise ValueError where they cannot be weights."""
    if weights is None:
        return None
    if weights.shape != (classes,) or not weights.is_floating_point():
        raise ValueError(f"class_weights must be floats [{classes}], got {weights.dtype} {list(weights.shape)}.")
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()) or not bool((weights > 0).any()):
        raise ValueError("class_weights must be finite, not negative and not all zero.")
    return weights.detach().clone()


def weighted_log_prior(class_counts: Tensor, prior_strength: float, dtype: torch.dtype) -> Tensor:
    """Return ``prior_strength * log p_c`` as ``[C]``: -inf for count 0, but all zeros at strength 0."""
    counts = class_counts.to(dtype)
    if prior_strength == 0:
        return torch.zeros_like(counts)
    return prior_strength * (counts.log() - counts.sum().log())
