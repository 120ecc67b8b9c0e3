"""LDAM, and LDAM with deferred re-weighting: Cao et al., "Learning imbalanced datasets with label-distribution-aware
margin loss", NeurIPS 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor

from longtail.losses import LDAMLoss
from longtail.methods.base import MethodContext
from longtail.methods.logit_adjustment import OF_ONE_VIEW, LogitAdjustment


class LDAM(LogitAdjustment):
    """Margins that are larger for rarer classes, on a cosine classifier.

    Its softmax is not calibrated to any prior; the training prior, weighted, is what it is taken to imply.
    """

    own_name: ClassVar[str] = "ldam"
    own_options: ClassVar[tuple[str, ...]] = (*OF_ONE_VIEW, "loss.max_margin", "loss.scale")

    def build_loss(self, class_weights: Tensor | None) -> LDAMLoss:
        """Return the loss with the run's largest margin, on the scale of the cosine head."""
        loss = self.context.config.loss
        return LDAMLoss(self.context.train.class_counts, loss.max_margin, loss.scale, class_weights)

    @classmethod
    def build(cls, context: MethodContext) -> Self:
        """Build without a prior, whatever the options say."""
        return cls(context, 0.0)


class LDAMDRW(LDAM):
    """LDAM whose classes weigh one over their effective number, in the last fifth of the epochs."""

    defaults: ClassVar[Mapping[str, Any]] = {"loss.class_weights": "effective", "loss.deferred_from": 0.8}
