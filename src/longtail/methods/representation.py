"""Two stages that contrastive pre-training shares: a representation from two views, then a classifier on it.

query view  > encoder > projection --+
key view    > encoder > projection --+--> contrast          (stage "representation": the encoder learns)
classifier view > encoder, frozen > head > cross entropy    (stage "classifier": the head alone learns)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from longtail.config import TrainConfig, resolved
from longtail.data import LabelledImages
from longtail.data.loading import Batch
from longtail.errors import UserError
from longtail.losses import LogitAdjustedCrossEntropy
from longtail.methods.base import Method, MethodContext, Stage
from longtail.methods.decoupled import Decoupled
from longtail.methods.label_bits import LabelBits
from longtail.models import Classifier, ProjectionHead, feature_dim


class LinearProbe(Decoupled):
    """A linear classifier trained by plain cross entropy on an encoder that stays as it is (linear evaluation)."""

    passes = 1 / 3  # forward through the encoder; the head costs nothing beside it

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.prior_strength = self.prior_of(context.config)
        self.loss = LogitAdjustedCrossEntropy(context.train.class_counts, self.prior_strength)
        self.label_bits = LabelBits(context)

    @staticmethod
    def prior_of(config: TrainConfig) -> float:
        """Return how strongly log p(c) is added to the logits while they are trained."""
        return 0.0

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Cross entropy of the head on frozen features, logit-adjusted if there is a prior."""
        loss = self.loss(self.head(self.features(batch.views["classifier"])), batch.labels)
        self.label_bits.see(loss)
        return {self.label_bits.loss_name: loss}

    def readings(self) -> dict[str, Tensor]:
        """Bits of label information."""
        return self.label_bits.readings()

    def classifier(self) -> Classifier:
        """Frozen encoder and head; the projection stayed behind."""
        return self.context.build_classifier(self.encoder, self.head, self.prior_strength)


class CosineProbe(LinearProbe):
    """A cosine classifier with logit adjustment on an encoder that stays as it is."""

    head_kind: ClassVar[str] = "cosine"

    @staticmethod
    def prior_of(config: TrainConfig) -> float:
        """Return the run's prior strength."""
        return config.loss.prior_strength


class Representation(Method):
    """An encoder that learns by the contrast of two views; what a method adds is the contrast.

    The classifier's stage has the same registered name: it is the one that takes a representation.

    Attributes:
        contrast: name of the loss.
        probe: the classifier that is trained on it.
    """

    passes = 2.0
    classifies = False
    contrast: ClassVar[str]
    probe: ClassVar[type[LinearProbe]] = LinearProbe
    own_options: ClassVar[tuple[str, ...]] = (
        *("views.", "loss.temperature", "queue.projection_dim", "decoupled.run", "decoupled.epochs"),
    )
    # No head was trained beside the encoder, so this one has all to learn: a ninth of the epochs leaves rare classes
    # unlearned. A step costs a sixth of one of the representation.
    defaults: ClassVar[Mapping[str, Any]] = {"decoupled.epochs": lambda chosen: chosen["epochs"]}

    def __init__(self, context: MethodContext) -> None:
        super().__init__()
        self.context, self.sampler = context, context.sampler
        self.views = {name: resolved(getattr(context.config.views, name)) for name in ("query", "key")}
        self.encoder = context.build_encoder()
        # Not trained; it only makes the representation a model that can be kept and loaded as any other.
        self.head = context.build_head(self.encoder, "linear").requires_grad_(False)
        self.projection = ProjectionHead(feature_dim(self.encoder), resolved(context.config.queue.projection_dim))

    @classmethod
    def stages(cls, config: TrainConfig, name: str) -> list[Stage]:
        """The representation, unless a finished run stands for it, and the classifier on it."""
        backbone, own, weights = resolved(config.backbone), config.decoupled, config.pretrained or "none"
        first = Stage("representation", name, backbone, resolved(config.epochs), weights=weights, sampler="instance")
        last = Stage("classifier", name, backbone, resolved(own.epochs), takes="representation", ready=own.run)
        return [last] if own.run else [first, last]

    @classmethod
    def build(cls, context: MethodContext) -> Method:
        """Build the representation, or the classifier for the stage that takes one."""
        return cls(context) if context.stage.takes is None else cls.probe(context)

    @classmethod
    def check(cls, config: TrainConfig, train: LabelledImages) -> None:
        """A representation that is ready must fit the images, as for the decoupled methods; another must learn."""
        if config.tune.kind == "frozen":
            raise UserError(
                f"{config.method} trains an encoder, of which --tune.kind frozen leaves nothing to train; use --method "
                "logit_adjustment for a classifier on an encoder as it is, or another --tune.kind."
            )
        Decoupled.check(config, train)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """The contrast of both views, which go through the encoder in one pass."""
        projected = self.projection(self.encoder(torch.cat([batch.views["query"], batch.views["key"]])))
        return {self.contrast: self.contrasted(projected, batch)}

    def contrasted(self, projected: Tensor, batch: Batch) -> Tensor:
        """Return the scalar loss of ``projected [2B, D]``: the query views, then the key views."""
        raise TypeError(f"{type(self).__name__} does not say what it contrasts")

    def classifier(self) -> Classifier:
        """The encoder, below a head that nothing has trained."""
        return self.context.build_classifier(self.encoder, self.head, 0.0)
