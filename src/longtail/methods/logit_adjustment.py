"""Cross entropy and logit adjustment: one classifier view, one loss.

Cross entropy is logit adjustment without the prior, on a linear head; logit adjustment (Menon et al., ICLR 2021) is
trained on a cosine head, as L_cls of GML is. Either may weigh the classes, from the start or from some epoch on
(deferred re-weighting, Cao et al., NeurIPS 2019, Algorithm 1), and cross entropy may be adjusted once it is trained.
"""

from __future__ import annotations

import copy
from typing import ClassVar, Self

import torch
from torch import Tensor

from longtail.config import TrainConfig, resolved
from longtail.data import LabelledImages
from longtail.data.loading import Batch
from longtail.errors import UserError
from longtail.losses import FocalLoss, LDAMLoss, LogitAdjustedCrossEntropy
from longtail.methods.base import Method, MethodContext
from longtail.methods.label_bits import LabelBits
from longtail.methods.mixup import mixup
from longtail.metrics.inputs import zeros_as_rarest
from longtail.models import Classifier

OF_ONE_VIEW = ("views.classifier", "loss.mixup", "loss.class_weights", "loss.effective_beta", "loss.deferred_from")
"""Options of every method that is one loss of one view."""


class LogitAdjustment(Method):
    """Logit-adjusted cross entropy on a cosine classifier: L_cls of the paper, and its teacher.

    Other losses of one classifier view are subclasses that say what ``build_loss`` gives.

    Attributes:
        own_name: of the loss in the log, where it is no cross entropy; "" = as it compares with the labels' entropy.
    """

    head_kind: ClassVar[str] = "cosine"
    own_name: ClassVar[str] = ""
    own_options: ClassVar[tuple[str, ...]] = (*OF_ONE_VIEW, "loss.prior_strength", "loss.scale")
    loss: LogitAdjustedCrossEntropy | FocalLoss | LDAMLoss
    balancing: Tensor | None

    def __init__(self, context: MethodContext, prior_strength: float) -> None:
        super().__init__()
        self.context = context
        self.prior_strength = prior_strength
        self.sampler = context.sampler
        self.views = {"classifier": resolved(context.config.views.classifier)}
        self.encoder = context.build_encoder()
        self.head = context.build_head(self.encoder, self.head_kind)
        self.register_buffer("balancing", context.class_weights(), persistent=False)
        self.loss = self.build_loss(None if self.balancing is None else torch.ones_like(self.balancing))
        self.on_epoch(0.0)
        plain = self.balancing is None and context.mixup == 0 and not self.own_name
        self.label_bits = LabelBits(context, plain)

    def build_loss(self, class_weights: Tensor | None) -> LogitAdjustedCrossEntropy | FocalLoss | LDAMLoss:
        """Return the loss of logits and labels, with these weights ``[C]`` in its buffer ``class_weights``."""
        return LogitAdjustedCrossEntropy(self.context.train.class_counts, self.prior_strength, class_weights)

    @classmethod
    def build(cls, context: MethodContext) -> Self:
        """Build with the run's prior strength."""
        return cls(context, context.config.loss.prior_strength)

    @classmethod
    def check(cls, config: TrainConfig, train: LabelledImages) -> None:
        """Weights that are deferred must be some."""
        if config.loss.deferred_from and config.loss.class_weights == "none":
            raise UserError(
                f"--loss.deferred_from {config.loss.deferred_from:g} says when class weights begin, but there are "
                "none; add --loss.class_weights effective (or inverse), or leave it out."
            )

    def on_epoch(self, progress: float) -> None:
        """Let the classes' weights begin when their time has come; in place, for a captured step."""
        if self.balancing is not None and self.loss.class_weights is not None:
            # The epoch that is nearest to it, as a schedule's milestones; of few epochs the last at least.
            epochs, deferred = self.context.stage.epochs, resolved(self.context.config.loss.deferred_from)
            begun = round(progress * epochs) >= min(round(deferred * epochs), epochs - 1)
            self.loss.class_weights.copy_(self.balancing if begun else torch.ones_like(self.balancing))

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """The loss of the classifier view."""
        mixed = mixup(batch.views["classifier"], batch.labels, self.context.mixup)
        loss = mixed.loss(self.loss, self.head(self.encoder(mixed.images)))
        self.label_bits.see(loss)
        return {self.own_name or self.label_bits.loss_name: loss}

    def readings(self) -> dict[str, Tensor]:
        """Bits of label information."""
        return self.label_bits.readings()

    def classifier(self) -> Classifier:
        """Encoder and head; the implied prior follows from prior strength, sampler and weights."""
        return self.context.build_classifier(self.encoder, self.head, self.prior_strength, self.loss.class_weights)


class CrossEntropy(LogitAdjustment):
    """Plain softmax cross entropy on a linear head, the usual starting point.

    With ``loss.post_hoc_strength`` tau, the deployed head's bias is that of the trained one less tau log p(c): post-hoc
    logit adjustment, Menon et al., ICLR 2021, Eq. 9.
    """

    head_kind: ClassVar[str] = "linear"
    own_options: ClassVar[tuple[str, ...]] = (*OF_ONE_VIEW, "loss.post_hoc_strength")

    @classmethod
    def build(cls, context: MethodContext) -> Self:
        """Build without a prior, whatever the options say."""
        return cls(context, 0.0)

    @torch.no_grad()
    def classifier(self) -> Classifier:
        """Encoder and head, adjusted if asked for; what is trained stays as it is."""
        strength = self.context.config.loss.post_hoc_strength if self.context.of_run else 0.0
        if strength == 0:
            return super().classifier()
        head = copy.deepcopy(self.head)
        prior = zeros_as_rarest(self.context.train.class_counts.double())
        head.bias -= strength * (prior / prior.sum()).log().to(head.bias)  # type: ignore[operator,arg-type]
        return self.context.build_classifier(self.encoder, head, strength, self.loss.class_weights)
