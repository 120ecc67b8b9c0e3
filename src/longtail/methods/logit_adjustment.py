"""Cross entropy and logit adjustment: one classifier view, one loss.

Cross entropy is logit adjustment without the prior, on a linear head; logit adjustment (Menon et al., ICLR 2021) is
trained on a cosine head, as L_cls of GML is.
"""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from longtail.data.loading import Batch
from longtail.losses import LogitAdjustedCrossEntropy
from longtail.methods.base import Method, MethodContext
from longtail.models import Classifier, CosineHead, LinearHead


def label_entropy_bits(class_counts: Tensor) -> float:
    """Return H(Y) of the class prior, in bits."""
    prior = class_counts.double() / class_counts.sum()
    return float(-torch.special.xlogy(prior, prior).sum() / math.log(2))


class LogitAdjustment(Method):
    """Logit-adjusted cross entropy on a cosine classifier: L_cls of the paper, and its teacher."""

    cosine: ClassVar[bool] = True

    def __init__(self, context: MethodContext, prior_strength: float) -> None:
        super().__init__()
        self.context = context
        self.prior_strength = prior_strength
        self.views = {"classifier": str(context.config.views.classifier)}
        self.encoder = context.build_encoder()
        self.head = make_head(context, self.encoder, cosine=self.cosine)
        self.loss = LogitAdjustedCrossEntropy(context.train.class_counts, prior_strength)
        self.entropy = label_entropy_bits(context.train.class_counts)
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

    cosine: ClassVar[bool] = False

    @classmethod
    def build(cls, context: MethodContext) -> Self:
        """Build without a prior, whatever the options say."""
        return cls(context, 0.0)


def make_head(context: MethodContext, encoder: nn.Module, *, cosine: bool) -> CosineHead | LinearHead:
    """Return a fresh head for the training set's classes."""
    dim, classes = int(encoder.feature_dim), context.train.num_classes  # type: ignore[arg-type]
    return CosineHead(dim, classes, context.config.loss.scale) if cosine else LinearHead(dim, classes)
