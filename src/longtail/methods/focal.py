"""Focal loss (Lin et al., ICCV 2017) on a linear head."""

from __future__ import annotations

from typing import ClassVar, Self

from torch import Tensor

from longtail.losses import FocalLoss
from longtail.methods.base import MethodContext
from longtail.methods.logit_adjustment import OF_ONE_VIEW, LogitAdjustment


class Focal(LogitAdjustment):
    """Focal loss: images that are already told apart count less.

    Its softmax is not calibrated to any prior; the training prior is what it is taken to imply.
    """

    head_kind: ClassVar[str] = "linear"
    own_name: ClassVar[str] = "focal"
    own_options: ClassVar[tuple[str, ...]] = (*OF_ONE_VIEW, "loss.focal_gamma")

    def build_loss(self, class_weights: Tensor | None) -> FocalLoss:
        """Return the focal loss with the run's exponent."""
        return FocalLoss(self.context.config.loss.focal_gamma, class_weights)

    @classmethod
    def build(cls, context: MethodContext) -> Self:
        """Build without a prior, whatever the options say."""
        return cls(context, 0.0)
