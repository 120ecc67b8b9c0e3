"""The contract between a method of segmentation and the loop that trains it: that of images, with a mask each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from longtail.config import TrainConfig, resolved
from longtail.methods.base import Stage, Trainable
from longtail.segmentation.data.batch import DenseBatch
from longtail.segmentation.data.mask_set import MaskFiles

if TYPE_CHECKING:
    from longtail.segmentation.models.segmenter import Segmenter

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
    """

    config: TrainConfig
    stage: Stage
    train: MaskFiles
    mean: tuple[float, ...]
    std: tuple[float, ...]
    previous: Segmenter | None = None
    resumed: bool = False


class DenseMethod(Trainable):
    """A method of segmentation.

    Attributes:
        own_options: as those of ``longtail.methods.Method``.
        defaults: likewise.
    """

    own_options: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def stages(cls, config: TrainConfig, name: str) -> list[Stage]:
        """Return the stages that a run of this method (registered as ``name``) consists of; the last is the result."""
        weights = config.pretrained or "none"
        return [Stage("train", name, resolved(config.backbone), resolved(config.epochs), weights=weights)]

    @classmethod
    def reads(cls, option: str) -> bool:
        """Return whether a run of this method reads the option with that dotted name."""
        return option.startswith(cls.own_options)

    @classmethod
    def build(cls, context: DenseContext) -> Self:
        """Return the method for ``context``."""
        raise TypeError(f"{cls.__name__} does not say how it is built")

    @classmethod
    def check(cls, config: TrainConfig, train: MaskFiles) -> None:
        """Raise :class:`UserError` for resolved options that this method cannot train with. Default: all fit."""

    def prepare(self, fetch: DenseFetch, labels: Tensor) -> None:
        """Fill the memory before the first step. ``labels [N, C]`` are the pixels of each class in each image."""

    def forward(self, batch: DenseBatch, progress: float) -> dict[str, Tensor]:
        """Return the weighted scalar losses of a step, by name; ``progress`` runs from 0 to 1 over the stage."""
        raise TypeError(f"{type(self).__name__} does not say what a step computes")

    @torch.no_grad()
    def update_memory(self, batch: DenseBatch) -> None:
        """Take a batch into the memory: once an optimiser step, before the loss. Default: nothing."""

    def classifier(self) -> Segmenter:
        """Return what is deployed; it shares the method's tensors."""
        raise TypeError(f"{type(self).__name__} does not say what is deployed")
