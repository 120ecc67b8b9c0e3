"""Cross entropy with a margin that is larger for rarer classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.losses.logit_adjusted import check_labels, checked_counts, checked_weights


class LDAMLoss(nn.Module):
    """Label-distribution-aware margin loss.

    ``L = -log softmax(z')[label]``, mean over the batch, where z' are the logits z = scale * cos with scale * m_y taken
    off that of the label y, and m_c = max_margin * (min_j n_j / n_c)^(1/4). Cao et al., "Learning imbalanced datasets
    with label-distribution-aware margin loss", NeurIPS 2019, Sec. 3.2; scale and cosines as in their release.

    Args:
        class_counts: ``[C]`` training samples of each class; kept as a buffer.
        max_margin: margin of the smallest class that has samples, a difference of cosines; 0 = cross entropy of the
            scaled cosines.
        scale: that of the logits (:class:`longtail.models.CosineHead`), in which the margin is measured.
        class_weights: ``[C]`` weight of each class in the mean (:func:`~longtail.losses.balancing_weights`), kept as a
            buffer that may be changed in place; None = all alike.

    Raises:
        ValueError: counts or weights that are none, max_margin negative, scale not positive; in a call, shapes that do
            not fit and (checked on the CPU only) a label out of range or of a class of count 0, which has no margin.

    Example:
        >>> loss = LDAMLoss([16, 1], max_margin=0.5, scale=2.0)
        >>> loss(torch.zeros(1, 2), torch.tensor([1]))  # log(1 + e^(2 * 0.5))
        tensor(1.3133)
    """

    class_counts: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        class_counts: Tensor | Sequence[int],
        max_margin: float = 0.5,
        scale: float = 30.0,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not (math.isfinite(max_margin) and max_margin >= 0 and math.isfinite(scale) and scale > 0):
            raise ValueError(f"max_margin must be 0 or above and scale above 0, got {max_margin} and {scale}.")
        self.register_buffer("class_counts", checked_counts(class_counts))
        self.register_buffer("class_weights", checked_weights(class_weights, self.class_counts.shape[0]))
        self.max_margin, self.scale = float(max_margin), float(scale)

    def margins(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return m_c ``[C]``; 0 for a class of count 0."""
        counts = self.class_counts.to(dtype)
        smallest = torch.where(counts > 0, counts, torch.inf).min()
        return self.max_margin * torch.where(counts > 0, smallest / counts, 0.0) ** 0.25

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of ``logits [B, C]`` (scale * cos) and ``labels [B]`` (int64), in float32 at least."""
        classes = self.class_counts.shape[0]
        if logits.ndim != 2 or logits.shape[1] != classes:
            raise ValueError(f"logits must be [B, {classes}] as the class counts say, got {list(logits.shape)}.")
        check_labels(labels, logits.shape[0], classes)
        if labels.device.type == "cpu" and bool((self.class_counts[labels] == 0).any()):
            raise ValueError("a label names a class whose count is 0, which has no margin; give it a count.")
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        margin = self.scale * self.margins(logits.dtype)[labels]
        return F.cross_entropy(logits.scatter_add(1, labels[:, None], -margin[:, None]), labels, weights)

    def extra_repr(self) -> str:
        """Return what ``print`` shows of the loss."""
        return f"num_classes={self.class_counts.shape[0]}, max_margin={self.max_margin}, scale={self.scale}"
