"""Supervised contrast: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020; alone, and beside a classifier.

Alone it is a representation, on which a linear classifier is trained with plain cross entropy, as in the paper. Beside
a logit-adjusted classifier it is the ad-hoc combination that the GML paper (Suh & Seo, ICML 2023) argues against: the
classifier knows the class prior, the contrast does not.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from longtail.config import resolved
from longtail.data.loading import Batch
from longtail.losses import SupConLoss
from longtail.methods.base import MethodContext
from longtail.methods.joint import JointContrast
from longtail.methods.representation import Representation


class SupCon(Representation):
    """A representation in which images of a class lie together, then a linear classifier on it."""

    contrast: ClassVar[str] = "supcon"
    own_options: ClassVar[tuple[str, ...]] = (*Representation.own_options, "loss.supcon_log")

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.loss = build_loss(context)

    def contrasted(self, projected: Tensor, batch: Batch) -> Tensor:
        """Both views of every image, each against all the others."""
        loss: Tensor = self.loss(projected, batch.labels.repeat(2))
        return loss


class SupConLogitAdjustment(JointContrast):
    """Supervised contrast of two views beside a logit-adjusted cosine classifier on a third."""

    passes = 3.0
    contrast: ClassVar[str] = "supcon"
    own_options: ClassVar[tuple[str, ...]] = (*JointContrast.own_options, "loss.supcon_log")

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.contrast_loss = build_loss(context)

    def contrasted(self, projected: Tensor, batch: Batch) -> Tensor:
        """Both views of every image, each against all the others."""
        loss: Tensor = self.contrast_loss(projected, batch.labels.repeat(2))
        return loss


def build_loss(context: MethodContext) -> SupConLoss:
    """Return the loss with the run's temperature and form of the log."""
    options = context.config.loss
    return SupConLoss(resolved(options.temperature), options.supcon_log)
