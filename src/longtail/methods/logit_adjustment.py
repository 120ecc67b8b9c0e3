"""Cross entropy and logit adjustment: one classifier view, one loss.

Cross entropy is logit adjustment without the prior, on a linear head; logit adjustment (Menon et al., ICLR 2021) is
trained on a cosine head, as L_cls of GML is.
"""

from __future__ import annotations

import math
from typing import ClassVar, Self

from torch import Tensor

from longtail.config import resolved
from longtail.data.loading import Batch
from longtail.losses import LogitAdjustedCrossEntropy
from longtail.methods.base import Method, MethodContext
from longtail.metrics import label_entropy_bits
from longtail.models import Classifier


class LogitAdjustment(Method):
    """Logit-adjusted cross entropy on a cosine classifier: L_cls of the paper, and its teacher."""

    head_kind: ClassVar[str] = "cosine"
    own_options: ClassVar[tuple[str, ...]] = ("views.classifier", "loss.prior_strength", "loss.scale")

    def __init__(self, context: MethodContext, prior_strength: float) -> None:
        super().__init__()
        self.context = context
        self.prior_strength = prior_strength
        self.sampler = context.sampler
        self.views = {"classifier": resolved(context.config.views.classifier)}
        self.encoder = context.build_encoder()
        self.head = context.build_head(self.encoder, self.head_kind)
        self.loss = LogitAdjustedCrossEntropy(context.train.class_counts, prior_strength)
        self.entropy = label_entropy_bits(context.train.labels, context.train.num_classes)
        self._bits: Tensor | None = None

    @classmethod
    def build(cls, context: MethodContext) -> Self:
        """Build with the run's prior strength."""
        return cls(context, context.config.loss.prior_strength)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """L_cls of the classifier view."""
        loss = self.loss(self.head(self.encoder(batch.views["classifier"])), batch.labels)
        self._bits = self.entropy - loss.detach() / math.log(2)
        return {"classifier": loss}

    def readings(self) -> dict[str, Tensor]:
        """Bits of label information on the training batch: H(Y) - L, optimistic because the batch is trained on."""
        return {} if self._bits is None else {"bits": self._bits}

    def classifier(self) -> Classifier:
        """Encoder and head; the implied prior follows from the prior strength."""
        return self.context.build_classifier(self.encoder, self.head, self.prior_strength)


class CrossEntropy(LogitAdjustment):
    """Plain softmax cross entropy on a linear head, the usual starting point."""

    head_kind: ClassVar[str] = "linear"
    own_options: ClassVar[tuple[str, ...]] = ("views.classifier",)

    @classmethod
    def build(cls, context: MethodContext) -> Self:
        """Build without a prior, whatever the options say."""
        return cls(context, 0.0)
