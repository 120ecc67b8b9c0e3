"""Class-balanced loss: cross entropy weighted by the effective number of samples (Cui et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from longtail.config import TrainConfig
from longtail.data import LabelledImages
from longtail.errors import UserError
from longtail.methods.logit_adjustment import CrossEntropy


class ClassBalanced(CrossEntropy):
    """Cross entropy whose classes weigh (1 - beta) / (1 - beta^n_c), from the first epoch on unless told otherwise."""

    defaults: ClassVar[Mapping[str, Any]] = {"loss.class_weights": "effective"}

    @classmethod
    def check(cls, config: TrainConfig, train: LabelledImages) -> None:
        """Without weights it would be cross entropy under another name."""
        super().check(config, train)
        if config.loss.class_weights == "none":
            raise UserError("class_balanced without --loss.class_weights is cross entropy; use --method cross_entropy.")
