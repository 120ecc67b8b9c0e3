"""InfoNCE: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020 (SimCLR).

The second variable of its mutual information is the INPUT (the other view of an image), so that no label and no class
imbalance enters the representation. What the GML paper starts from. The classifier on it is cosine, with the prior.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from longtail.config import resolved
from longtail.data.loading import Batch
from longtail.losses import InfoNCELoss
from longtail.methods.base import MethodContext
from longtail.methods.representation import CosineProbe, LinearProbe, Representation


class InfoNCE(Representation):
    """A representation that tells images apart, then a logit-adjusted cosine classifier on it."""

    contrast: ClassVar[str] = "infonce"
    probe: ClassVar[type[LinearProbe]] = CosineProbe
    own_options: ClassVar[tuple[str, ...]] = (*Representation.own_options, "loss.prior_strength", "loss.scale")

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.loss = InfoNCELoss(resolved(context.config.loss.temperature))

    def contrasted(self, projected: Tensor, batch: Batch) -> Tensor:
        """NT-Xent: each view's only positive is the other view of its image."""
        loss: Tensor = self.loss(*projected.chunk(2))
        return loss
