"""Two stages that contrastive pre-training shares: a representation from two views, then a classifier on it.

query view  > encoder > projection --+
key view    > encoder > projection --+--> contrast          (stage "representation": the encoder learns)
classifier view > encoder, frozen > head > cross entropy    (stage "classifier": the head alone learns)
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from longtail.config import TrainConfig, resolved
from longtail.data import LabelledImages
from longtail.data.loading import Batch
from longtail.errors import UserError
from longtail.losses import LogitAdjustedCrossEntropy
from longtail.methods.base import Method, MethodContext, Stage
from longtail.metrics import label_entropy_bits
from longtail.models import Classifier, ProjectionHead, feature_dim


class Representation(Method):
    """An encoder that learns by the contrast of two views; what a method adds is the contrast.

    The classifier's stage has the same registered name: it is the one that takes a representation.
    """

    passes = 2.0
    classifies = False
    contrast: ClassVar[str]
    head_kind: ClassVar[str] = "linear"
    own_options: ClassVar[tuple[str, ...]] = (
        *("views.", "loss.temperature", "queue.projection_dim", "decoupled.run", "decoupled.epochs"),
    )

    def __init__(self, context: MethodContext) -> None:
        super().__init__()
        self.context, self.sampler = context, context.sampler
        self.views = {name: resolved(getattr(context.config.views, name)) for name in ("query", "key")}
        self.encoder = context.build_encoder()
        # Not trained; it only makes the representation a model that can be kept and loaded as any other.
        self.head = context.build_head(self.encoder, self.head_kind).requires_grad_(False)
        self.projection = ProjectionHead(feature_dim(self.encoder), resolved(context.config.queue.projection_dim))

    @classmethod
    def stages(cls, config: TrainConfig, name: str) -> list[Stage]:
        """The representation, unless a finished run stands for it, and the classifier on it."""
        backbone, own = resolved(config.backbone), config.decoupled
        classifier = Stage("classifier", name, backbone, resolved(own.epochs), takes="representation", ready=own.run)
        if own.run:
            return [classifier]
        weights = config.pretrained or "none"
        epochs = resolved(config.epochs)
        return [Stage("representation", name, backbone, epochs, weights=weights, sampler="instance"), classifier]

    @classmethod
    def build(cls, context: MethodContext) -> Method:
        """Build the representation, or the classifier for the stage that takes one."""
        if context.stage.takes is None:
            return cls(context)
        return FrozenEncoderClassifier(context, cls.head_kind, cls.classifier_prior(context.config))

    @classmethod
    def classifier_prior(cls, config: TrainConfig) -> float:
        """Return how strongly log p(c) is added to the classifier's logits while it is trained."""
        return 0.0

    @classmethod
    def check(cls, config: TrainConfig, train: LabelledImages) -> None:
        """A ready representation must be of the same encoder and take the same images."""
        if config.decoupled.run is not None:
            check_representation(config.decoupled.run, config, train)

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


class FrozenEncoderClassifier(Method):
    """A classifier trained on the features of an encoder that stays as it is (linear evaluation).

    The encoder is in eval mode: its BatchNorm keeps the statistics of the representation's training.
    """

    # Forward only, and no gradient but the head's.
    passes = 1 / 3

    def __init__(self, context: MethodContext, head_kind: str, prior_strength: float) -> None:
        super().__init__()
        if context.previous is None:
            raise ValueError("a classifier on a representation needs the classifier of an earlier stage")
        self.context, self.prior_strength, self.sampler = context, prior_strength, context.sampler
        self.views = {"classifier": resolved(context.config.views.classifier)}
        self.encoder = copy.deepcopy(context.previous.encoder).requires_grad_(False)
        self.head = context.build_head(self.encoder, head_kind)
        self.loss = LogitAdjustedCrossEntropy(context.train.class_counts, prior_strength)
        self.entropy = label_entropy_bits(context.train.labels, context.train.num_classes)
        self._bits: Tensor | None = None

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the head; the encoder stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Cross entropy of the classifier view, logit-adjusted if there is a prior."""
        with torch.no_grad():
            features = self.encoder(batch.views["classifier"])
        loss = self.loss(self.head(features), batch.labels)
        self._bits = self.entropy - loss.detach() / math.log(2)
        return {"classifier": loss}

    def readings(self) -> dict[str, Tensor]:
        """Bits of label information on the training batch: H(Y) - L, optimistic because the batch is trained on."""
        return {} if self._bits is None else {"bits": self._bits}

    def classifier(self) -> Classifier:
        """Frozen encoder and head; the projection stayed behind."""
        return self.context.build_classifier(self.encoder, self.head, self.prior_strength)


def check_representation(run: str, config: TrainConfig, train: LabelledImages) -> None:
    """Raise :class:`UserError` unless the encoder of the finished run ``run`` fits the options and the images."""
    if config.folds is not None:
        raise UserError(
            "--decoupled.run cannot be used with --folds: that run has seen images that the folds test on; leave it "
            "out, so that every fold trains its own."
        )
    ready = Classifier.load(Path(run))
    spec: dict[str, Any] = ready.spec
    if spec["encoder"] != config.backbone:
        raise UserError(f"the encoder of {run} is {spec['encoder']}; add --backbone {spec['encoder']}.")
    had, has = (spec["in_channels"], ready.image_size), (train.channels, train.image_size)
    if had != has:
        raise UserError(
            f"{run} was trained on {had[0]}-channel images of {had[1]}, the data has {has[0]} channels and {has[1]}; "
            "train it on the same data."
        )
    if config.source.mean is not None and config.source.std is not None:
        own = torch.tensor([config.source.mean, config.source.std])
        if not torch.allclose(torch.stack([ready.mean, ready.std]).cpu(), own, atol=1e-3):
            raise UserError(
                f"{run} was trained on images normalised by mean {ready.mean.tolist()} and std {ready.std.tolist()}, "
                f"this run normalises by {config.source.mean} and {config.source.std}; give that run's with "
                "--source.mean and --source.std."
            )
