"""Cross entropy that looks away from what is already easy."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.losses.class_weights import weighted_mean
from longtail.losses.logit_adjusted import check_labels, checked_weights


class FocalLoss(nn.Module):
    """Focal loss on a softmax.

    ``L = -(1 - q)^gamma * log q`` with q = softmax(logits)[label], mean over the batch. Lin et al., "Focal loss for
    dense object detection", ICCV 2017, Eq. 4, there on sigmoids.

    It is computed from the log odds a = logit[label] - logsumexp(other logits): log q = -softplus(-a) and
    log(1 - q) = -softplus(a). So a label that is all but certain keeps an exact loss and a finite gradient, where
    1 - q would be 0.

    Args:
        gamma: focusing exponent, 0 or above; 0 = exactly plain cross entropy.
        class_weights: ``[C]`` weight of each class in the mean (alpha of Eq. 5;
            :func:`~longtail.losses.balancing_weights`), kept as a buffer that may be changed in place; None = all
            alike.

    Raises:
        ValueError: gamma negative or not finite; weights that are none; in a call, shapes that do not fit and
            (checked on the CPU only) a label out of range.

    Example:
        >>> FocalLoss(gamma=2.0)(torch.zeros(1, 2), torch.tensor([1]))  # 0.5^2 * log 2
        tensor(0.1733)
    """

    class_weights: Tensor | None

    def __init__(self, gamma: float = 2.0, class_weights: Tensor | None = None) -> None:
        super().__init__()
        if not (math.isfinite(gamma) and gamma >= 0):
            raise ValueError(f"gamma must be 0 or above, got {gamma}.")
        self.gamma = float(gamma)
        classes = 0 if class_weights is None else class_weights.numel()
        self.register_buffer("class_weights", checked_weights(class_weights, classes))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of ``logits [B, C]`` and ``labels [B]`` (int64), in float32 at least."""
        if logits.ndim != 2 or (self.class_weights is not None and logits.shape[1] != len(self.class_weights)):
            wanted = "C" if self.class_weights is None else len(self.class_weights)
            raise ValueError(f"logits must be [B, {wanted}], got {list(logits.shape)}.")
        check_labels(labels, logits.shape[0], logits.shape[1])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        if self.gamma == 0:
            return F.cross_entropy(logits, labels, weights)
        at = labels[:, None]
        others = logits.scatter(1, at, -torch.inf).logsumexp(1)
        odds = logits.gather(1, at).squeeze(1) - others
        losses = torch.exp(-self.gamma * F.softplus(odds)) * F.softplus(-odds)
        return weighted_mean(losses, labels, weights)

    def extra_repr(self) -> str:
        """Return what ``print`` shows of the loss."""
        return f"gamma={self.gamma}"
