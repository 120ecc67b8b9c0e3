"""The contract between a method of segmentation and the loop that trains it: that of images, with a mask each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from longtail.config import TrainConfig
from longtail.errors import UserError
from longtail.losses import balancing_weights
from longtail.methods.base import OWN_OPTIONS, Stage, Trainable, implied_prior
from longtail.segmentation.data.batch import DenseBatch
from longtail.segmentation.data.mask_set import MaskFiles
from longtail.segmentation.models import PixelHead, Segmenter, build_pixel_encoder, load_backbone

DENSE_OPTIONS = (
    *OWN_OPTIONS,
    *("segmentation.prior", "segmentation.queries", "segmentation.keys_per_class", "segmentation.queue_share"),
    *("segmentation.region_weight", "segmentation.overlap_weight"),
)
"""Options that belong to methods and not to every run, each a dotted name or the start of one."""

CHANNELS = 3
DECODER = "fpn"
"""Where ``segmentation.decoder`` is left open."""

DenseFetch = Callable[[str, Tensor, Tensor], DenseBatch]
"""``fetch(view name, ids [M], rounds [M])``: one view of images outside any epoch, with the masks of its crops."""


@dataclass(frozen=True)
class DenseContext:
    """What a method of segmentation is built from (see ``longtail.methods.MethodContext``).

    Attributes:
        config: the resolved options of the run.
        stage: the stage it is built for.
        train: the training set; methods may look at counts, images come through batches.
        mean, std: pixel statistics, for the segmenter that is deployed.
        previous: the segmenter of the stage named by ``stage.takes``.
        resumed: whether a saved state will replace all that is built, so that initial weights need not be loaded.
        shown: int64 ``[M, C]``, pixels of each class in some training crops; None = crops are as the images are.
        seen: float64 ``[C]``, how many times its share of the pixels each class has in crops; None = 1 for all.
    """

    config: TrainConfig
    stage: Stage
    train: MaskFiles
    mean: tuple[float, ...]
    std: tuple[float, ...]
    previous: Segmenter | None = None
    resumed: bool = False
    shown: Tensor | None = None
    seen: Tensor | None = None

    @property
    def of_run(self) -> bool:
        """Whether the stage trains the run's own method: not a teacher, which its rebalancing leaves alone."""
        return self.stage.method == self.config.method

    @property
    def decoder(self) -> str:
        """Name of the decoder of all encoders of the run."""
        return self.config.segmentation.decoder or DECODER

    @property
    def regions(self) -> int | None:
        """Soft regions of the decoder, which then predicts classes coarsely too: one a class; None of most decoders."""
        return self.train.num_classes if self.decoder == "ocr" else None

    @property
    def counts(self) -> Tensor:
        """What the class prior and the class weights of the losses go by, int64 ``[C]``: pixels, or images.

        Pixels as crops show them: a class that crops are laid around is seen more often than its pixels say.
        """
        if self.config.segmentation.prior == "images":
            return self.train.image_counts
        counts = self.train.class_counts
        if self.seen is None:
            return counts
        return torch.where(counts > 0, (counts * self.seen).round().long().clamp(min=1), 0)

    def class_weights(self) -> Tensor | None:
        """Return the weight of each class in the loss, float32 ``[C]``, or None if all weigh alike."""
        kind = self.config.loss.class_weights or "none"
        if kind == "none" or not self.of_run:
            return None
        return balancing_weights(self.counts, kind, self.config.loss.effective_beta).float()

    def build_encoder(self) -> nn.Module:
        """Return the stage's encoder with its decoder, fresh or with the encoder's pretrained weights."""
        width = self.config.segmentation.width
        encoder = build_pixel_encoder(self.stage.backbone, self.decoder, CHANNELS, width, self.regions)
        if self.stage.weights != "none" and not self.resumed:
            load_backbone(encoder, self.stage.backbone, self.stage.weights, CHANNELS)
        return encoder

    def build_head(self, encoder: nn.Module, kind: str) -> PixelHead:
        """Return a fresh ``cosine`` or ``linear`` pixel classifier for the training set's classes."""
        return PixelHead(kind, pixel_dim(encoder), self.train.num_classes, self.config.loss.scale)

    def build_segmenter(
        self,
        encoder: nn.Module,
        head: nn.Module,
        kind: str,
        prior_strength: float,
        class_weights: Tensor | None = None,
    ) -> Segmenter:
        """Wrap what was trained with ``prior_strength`` times the log of the shares of ``counts`` added to its logits.

        The prior that the raw softmax implies is over pixels, whatever was counted for the loss (see
        ``longtail.methods.base.implied_prior``), as crops show them.
        """
        own, train = self.config.segmentation, self.train
        seen = self.seen
        if class_weights is not None:
            weights = class_weights.detach().cpu().double()
            seen = weights if seen is None else seen * weights
        adjusted = None if own.prior == "pixels" and self.seen is None else self.counts
        spec: dict[str, Any] = {
            "task": "segmentation",
            "encoder": self.stage.backbone,
            "decoder": self.decoder,
            "width": own.width,
            "regions": self.regions,
            "in_channels": CHANNELS,
            "head": kind,
            "scale": self.config.loss.scale,
        }
        return Segmenter(
            encoder,
            head,
            class_names=train.class_names,
            class_counts=train.class_counts,
            image_counts=train.image_counts,
            logit_prior=implied_prior(train.class_counts, prior_strength, seen, adjusted).float(),
            mean=self.mean,
            std=self.std,
            palette=train.palette,
            size=train.size,
            spec=spec,
        )


class DenseMethod(Trainable):
    """A method of segmentation."""

    @classmethod
    def build(cls, context: DenseContext) -> Self:
        """Return the method for ``context``."""
        raise TypeError(f"{cls.__name__} does not say how it is built")

    @classmethod
    def check(cls, config: TrainConfig, train: MaskFiles) -> None:
        """Raise :class:`UserError` for resolved options that this method cannot train with.

        Default: those that no method of segmentation has.
        """
        if config.loss.mixup:
            raise UserError("--loss.mixup blends images, which no mask can follow; leave it out for segmentation.")
        if config.loss.deferred_from:
            raise UserError(
                "--loss.deferred_from is not there for segmentation, where class weights hold from the start; leave it "
                "out."
            )
        if not int(train.class_counts.sum()):
            raise UserError("no training mask holds a pixel of a class; check the masks and --segmentation.ignore.")

    def classifier(self) -> Segmenter:
        """Return what is deployed; it shares the method's tensors."""
        raise TypeError(f"{type(self).__name__} does not say what is deployed")


def stride_of(encoder: nn.Module) -> int:
    """Return the pixels that a place of the feature map lies over, along one side."""
    return int(encoder.stride)  # type: ignore[arg-type]


def pixel_dim(encoder: nn.Module) -> int:
    """Return the width D of the feature map of an encoder with its decoder."""
    return int(encoder.feature_dim)  # type: ignore[arg-type]
