"""Losses of pixels: logits ``[B, C, H, W]``, brought to the mask's size, and labels ``[B, H, W]`` with ``IGNORE``.

All are computed in float32 at least, also under autocast. A pixel that is ignored counts nowhere, and a batch of
nothing else gives exactly 0 with gradients of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.errors import UserError
from longtail.losses import FocalLoss
from longtail.losses.logit_adjusted import checked_counts, checked_weights, weighted_log_prior
from longtail.segmentation.data.mask_set import IGNORE


class PixelCrossEntropy(nn.Module):
    """Logit-adjusted cross entropy of pixels: :class:`~longtail.losses.LogitAdjustedCrossEntropy` for masks.

    ``L = -log softmax_c(logits_c + prior_strength * log p_c)[label]``, mean over the pixels that are not ignored, with
    p_c the share of class c in ``class_counts``: of the training pixels, or of (class, image) pairs where images are
    counted. Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, Eq. 10. With a prior, a class of count
    0 drops out of every softmax.

    Args:
        class_counts: ``[C]`` training pixels (or images) of each class; kept as a buffer.
        prior_strength: scale of log p_c, 0 = plain cross entropy.
        class_weights: ``[C]`` weight of each class in the mean (:func:`~longtail.losses.balancing_weights`), kept as a
            buffer; None = all alike. The mean is over the weights, as torch's cross entropy takes it.

    Raises:
        ValueError: counts or weights that are none; in a call, shapes that do not fit and (checked on the CPU only) a
            label of a class of count 0 under a prior, whose loss would be infinite.

    Example:
        >>> loss = PixelCrossEntropy(torch.tensor([90, 10]))
        >>> loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[1, -1]]]))  # -log(10 / 100)
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
        self.register_buffer("class_weights", checked_weights(class_weights, len(self.class_counts)))
        self.prior_strength = float(prior_strength)
        self._all_present = bool((self.class_counts > 0).all())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of ``logits [B, C, H, W]`` and ``labels [B, H, W]`` (int64)."""
        check_shapes(logits, labels, len(self.class_counts))
        with torch.autocast(logits.device.type, enabled=False):
            logits = wide(logits)
            if self.prior_strength:
                self._check_present(labels)
                prior = weighted_log_prior(self.class_counts, self.prior_strength, logits.dtype)
                logits = logits + prior[:, None, None]
            weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
            # Not summed by cross_entropy itself, whose sum on a GPU depends on the order of its threads.
            total = F.cross_entropy(logits, labels, weights, ignore_index=IGNORE, reduction="none").sum()
            counts = labels != IGNORE
            weight = (counts if weights is None else weights[labels.clamp(min=0)] * counts).sum()
            return total / torch.where(weight > 0, weight, 1)

    def _check_present(self, labels: Tensor) -> None:
        if self._all_present or labels.device.type != "cpu":
            return
        if bool(((self.class_counts[labels.clamp(min=0)] == 0) & (labels != IGNORE)).any()):
            raise ValueError("a label names a class whose count is 0; give it a count or set prior_strength=0.")

    def extra_repr(self) -> str:
        """Return what ``print`` shows of the loss."""
        return f"num_classes={len(self.class_counts)}, prior_strength={self.prior_strength}"


class PixelFocalLoss(nn.Module):
    """Focal loss (Lin et al., ICCV 2017) over the pixels that are not ignored: :class:`~longtail.losses.FocalLoss`.

    Args:
        gamma: focusing exponent, 0 = plain cross entropy.
        class_weights: ``[C]``, or None; see :class:`PixelCrossEntropy`.

    Raises:
        ValueError: see :class:`~longtail.losses.FocalLoss`; in a call, shapes that do not fit.
    """

    def __init__(self, gamma: float = 2.0, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.of_samples = FocalLoss(gamma, class_weights)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of ``logits [B, C, H, W]`` and ``labels [B, H, W]`` (int64)."""
        check_shapes(logits, labels, logits.shape[1])
        counts = labels != IGNORE
        with torch.autocast(logits.device.type, enabled=False):
            chosen = wide(logits.movedim(1, -1)[counts])
            if not len(chosen):
                return chosen.sum()
            loss: Tensor = self.of_samples(chosen, labels[counts])
            return loss


class OverlapLoss(nn.Module):
    """Dice loss or Lovasz-softmax of segmentation_models_pytorch, mean over the classes that the batch holds.

    ``dice``: 1 - 2 |P and T| / (|P| + |T|) with soft predictions, over all pixels of the batch; Milletari et al., 3DV
    2016. ``lovasz``: the Lovasz extension of the Jaccard loss, in float32; Berman et al., CVPR 2018. The library's Dice
    loss divides by all classes, also by those that no pixel of the batch shows; here both are means over those that it
    shows, so that one weight beside cross entropy suits either.

    Args:
        kind: ``"dice"`` or ``"lovasz"``.

    Raises:
        UserError: segmentation_models_pytorch is not installed.
        ValueError: in a call, shapes that do not fit.
    """

    def __init__(self, kind: Literal["dice", "lovasz"]) -> None:
        super().__init__()
        try:
            from segmentation_models_pytorch.losses import DiceLoss, LovaszLoss
        except ImportError as error:
            raise UserError(
                f"the {kind} loss needs segmentation_models_pytorch; install it: pip install 'longtail[seg]'."
            ) from error
        self.kind = kind
        self.term: nn.Module = (DiceLoss if kind == "dice" else LovaszLoss)("multiclass", ignore_index=IGNORE)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of ``logits [B, C, H, W]`` and ``labels [B, H, W]`` (int64)."""
        classes = logits.shape[1]
        check_shapes(logits, labels, classes)
        with torch.autocast(logits.device.type, enabled=False):
            if self.kind == "lovasz":
                # Of ignored pixels alone it is an empty tensor, whose sum is 0. It knows float32 alone.
                jaccard: Tensor = self.term(logits.float(), labels).sum()
                return jaccard
            loss: Tensor = self.term(wide(logits), labels)
        shown = torch.zeros(classes + 1, dtype=torch.bool, device=labels.device)
        shown[labels.flatten() + 1] = True
        return loss * (classes / shown[1:].sum().clamp(min=1))


def to_size(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Return ``logits [B, C, h, w]`` brought to ``size`` (height, width) bilinearly, in float32 at least."""
    logits = wide(logits)
    if tuple(logits.shape[2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def wide(values: Tensor) -> Tensor:
    """Return ``values`` in float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def check_shapes(logits: Tensor, labels: Tensor, classes: int) -> None:
    """Raise ValueError unless they are ``[B, classes, H, W]`` and int64 ``[B, H, W]``."""
    if logits.ndim != 4 or logits.shape[1] != classes:
        raise ValueError(f"logits must be [B, {classes}, H, W], got {list(logits.shape)}.")
    wanted = (logits.shape[0], *logits.shape[2:])
    if labels.shape != wanted or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 {list(wanted)}, got {labels.dtype} {list(labels.shape)}.")
