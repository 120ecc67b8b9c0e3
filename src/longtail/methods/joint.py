"""What methods with a classifier and a contrast side by side share: one student, a logit-adjusted classifier, its bits.

classifier view       > student > cosine head > + log p(c)  --> L_classifier
query (and key) view  > student > projection                --> L_contrast
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from longtail.config import resolved
from longtail.data.loading import Batch
from longtail.losses import LogitAdjustedCrossEntropy
from longtail.methods.base import Method, MethodContext
from longtail.methods.label_bits import LabelBits
from longtail.models import Classifier, ProjectionHead, feature_dim


class JointContrast(Method):
    """A logit-adjusted cosine classifier and a contrast, trained side by side; what a method adds is the contrast.

    ``L = classifier_weight * L_classifier + contrast_weight * L_contrast``. A contrast of weight 0 costs nothing: its
    views are not made.

    Args:
        context: what it is built from.
        contrast_views: views of the contrast, all of which go through the student.
    """

    contrast: ClassVar[str]
    own_options: ClassVar[tuple[str, ...]] = (
        *("views.", "queue.projection_dim", "loss.temperature", "loss.prior_strength", "loss.scale"),
        *("loss.classifier_weight", "loss.contrast_weight"),
    )

    def __init__(self, context: MethodContext, contrast_views: tuple[str, ...] = ("query", "key")) -> None:
        super().__init__()
        config = context.config
        self.context, self.options, self.sampler = context, config.loss, context.sampler
        self.contrast_weight = resolved(config.loss.contrast_weight)
        self.contrasts = self.contrast_weight > 0
        self.contrast_views = contrast_views if self.contrasts else ()
        self.views = {name: resolved(getattr(config.views, name)) for name in ("classifier", *self.contrast_views)}
        self.encoder = context.build_encoder()
        self.head = context.build_head(self.encoder, "cosine")
        self.projection = ProjectionHead(feature_dim(self.encoder), resolved(config.queue.projection_dim))
        self.classifier_loss = LogitAdjustedCrossEntropy(context.train.class_counts, config.loss.prior_strength)
        self.label_bits = LabelBits(context)

    @classmethod
    def build(cls, context: MethodContext) -> Self:
        """Build with the run's options."""
        return cls(context)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """The classifier's loss and the contrast, weighted; all views go through the student in one pass."""
        size = len(batch.labels)
        features = self.encoder(torch.cat([batch.views[name] for name in ("classifier", *self.contrast_views)]))
        loss = self.classifier_loss(self.head(features[:size]), batch.labels)
        self.label_bits.see(loss)
        losses = {self.label_bits.loss_name: self.options.classifier_weight * loss}
        if self.contrasts:
            losses[self.contrast] = self.contrast_weight * self.contrasted(self.projection(features[size:]), batch)
        return losses

    def contrasted(self, projected: Tensor, batch: Batch) -> Tensor:
        """Return the scalar contrast of ``projected [V B, D]``, the unit vectors of each contrast view in turn."""
        raise TypeError(f"{type(self).__name__} does not say what it contrasts")

    def readings(self) -> dict[str, Tensor]:
        """Bits of label information."""
        return self.label_bits.readings()

    def classifier(self) -> Classifier:
        """Student encoder and cosine head; the projection and all that it is compared with stay behind."""
        return self.context.build_classifier(self.encoder, self.head, self.options.prior_strength)
