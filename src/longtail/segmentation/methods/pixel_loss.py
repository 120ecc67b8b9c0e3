"""Methods that are one classifier view and its losses: cross entropy, logit adjustment, focal, Dice, Lovasz."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from torch import Tensor, nn

from longtail.config import resolved
from longtail.segmentation.data.batch import DenseBatch
from longtail.segmentation.losses import OverlapLoss, PixelCrossEntropy, PixelFocalLoss
from longtail.segmentation.methods.base import DenseContext, DenseMethod, stride_of
from longtail.segmentation.models import Segmenter, to_image

AUXILIARY_WEIGHT = 0.4
"""Of the loss of a decoder's coarse prediction beside the final one (OCR, Yuan et al., ECCV 2020; PSPNet before)."""

OF_ONE_VIEW = ("views.classifier", "loss.class_weights", "loss.effective_beta")
"""Options of every method that is a loss of one view."""


class PixelMethod(DenseMethod):
    """A pixel classifier and the loss that trains it. What a method changes is the head, the prior or the loss.

    Attributes:
        head_kind: of the classifier.
        loss_name: in the log.
        uses_progress: the pixels that count change from step to step, and so do shapes.
    """

    uses_progress = True
    head_kind: ClassVar[str] = "linear"
    loss_name: ClassVar[str] = "classifier"
    loss: nn.Module

    def __init__(self, context: DenseContext) -> None:
        super().__init__()
        self.context = context
        self.views = {"classifier": resolved(context.config.views.classifier)}
        self.encoder = context.build_encoder()
        self.head = context.build_head(self.encoder, self.head_kind)
        self.loss = self.build_loss()

    @property
    def prior_strength(self) -> float:
        """How strongly log p(c) is added to the logits while they are trained."""
        return 0.0

    @property
    def weights(self) -> Tensor | None:
        """Weight of each class in the loss, ``[C]``, or None."""
        return self.context.class_weights()

    def build_loss(self) -> nn.Module:
        """Return the loss of logits ``[B, C, H, W]`` and labels ``[B, H, W]``."""
        return PixelCrossEntropy(self.context.counts, self.prior_strength, self.weights)

    @classmethod
    def build(cls, context: DenseContext) -> Self:
        """Build with the run's options."""
        return cls(context)

    def forward(self, batch: DenseBatch, progress: float) -> dict[str, Tensor]:
        """The losses of the classifier view."""
        maps, coarse = self.maps(batch)
        return self.of_maps(maps, coarse, batch)

    def maps(self, batch: DenseBatch) -> tuple[Tensor, Tensor | None]:
        """Return the feature maps ``[B, D, h, w]`` of the classifier view, and the decoder's coarse logits, if any."""
        images = batch.views["classifier"]
        if self.context.regions is None:
            return self.encoder(images), None
        maps, coarse = self.encoder(images, auxiliary=True)
        return maps, coarse

    def of_maps(self, maps: Tensor, coarse: Tensor | None, batch: DenseBatch) -> dict[str, Tensor]:
        """Return the losses of what :meth:`maps` returned."""
        labels, stride = batch.labels, stride_of(self.encoder)
        losses = self.of_logits(to_image(self.head(maps), labels.shape[1:], stride), labels)
        if coarse is not None:
            losses["auxiliary"] = AUXILIARY_WEIGHT * self.loss(to_image(coarse, labels.shape[1:], stride), labels)
        return losses

    def of_logits(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the losses of ``logits [B, C, H, W]`` and ``labels [B, H, W]``."""
        return {self.loss_name: self.loss(logits, labels)}

    def classifier(self) -> Segmenter:
        """Encoder, decoder and pixel classifier; the implied prior follows from prior strength and weights."""
        return self.context.build_segmenter(self.encoder, self.head, self.head_kind, self.prior_strength, self.weights)


class CrossEntropy(PixelMethod):
    """Plain (or class-weighted) cross entropy on a linear pixel classifier, the usual starting point."""

    own_options: ClassVar[tuple[str, ...]] = (*OF_ONE_VIEW, "segmentation.prior")


class LogitAdjustment(PixelMethod):
    """Logit-adjusted cross entropy on a cosine pixel classifier: L_cls of GML, and its teacher."""

    head_kind: ClassVar[str] = "cosine"
    own_options: ClassVar[tuple[str, ...]] = (
        *OF_ONE_VIEW,
        *("loss.prior_strength", "loss.scale", "segmentation.prior"),
    )

    @property
    def prior_strength(self) -> float:
        """That of the run."""
        return self.context.config.loss.prior_strength


class Focal(PixelMethod):
    """Focal loss on a linear pixel classifier: pixels that are already told apart count less."""

    loss_name: ClassVar[str] = "focal"
    own_options: ClassVar[tuple[str, ...]] = (*OF_ONE_VIEW, "loss.focal_gamma", "segmentation.prior")

    def build_loss(self) -> nn.Module:
        """Return the focal loss with the run's exponent."""
        return PixelFocalLoss(self.context.config.loss.focal_gamma, self.weights)


class Dice(PixelMethod):
    """Cross entropy and the Dice loss on a linear pixel classifier."""

    overlap: ClassVar[Literal["dice", "lovasz"]] = "dice"
    own_options: ClassVar[tuple[str, ...]] = (*OF_ONE_VIEW, "segmentation.overlap_weight", "segmentation.prior")

    def __init__(self, context: DenseContext) -> None:
        super().__init__(context)
        self.overlap_loss = OverlapLoss(self.overlap)

    def of_logits(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Add the overlap of prediction and mask."""
        weight = self.context.config.segmentation.overlap_weight
        return {**super().of_logits(logits, labels), self.overlap: weight * self.overlap_loss(logits, labels)}


class Lovasz(Dice):
    """Cross entropy and the Lovasz-softmax loss, which is the mean IoU's own surrogate."""

    overlap: ClassVar[Literal["dice", "lovasz"]] = "lovasz"
