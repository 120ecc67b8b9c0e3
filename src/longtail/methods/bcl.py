"""BCL: Zhu et al., "Balanced Contrastive Learning for Long-Tailed Visual Recognition", CVPR 2022.

A step, with three views of each image:

    classifier view     > student > cosine head > + log p(c)  ---------> L_LC (logit compensation)
    query, key view     > student > projection      > samples     --+--> L_BCL
    the head's weights            > their projection > prototypes --+

With ``--teacher.kind frozen`` the key view goes through a frozen teacher instead, and a projection of its own: the
teacher-student strategy of GML (Suh & Seo, ICML 2023), for a method without a queue. The teacher's features of the
batch are then the contrast samples, a query's own image among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from longtail.config import TrainConfig, resolved
from longtail.data import LabelledImages
from longtail.data.loading import Batch
from longtail.errors import UserError
from longtail.losses import BalancedContrastiveLoss
from longtail.memory import FrozenTeacher
from longtail.methods.base import MethodContext, Stage
from longtail.methods.joint import JointContrast
from longtail.methods.teachers import check_ready_teacher, check_teacher, with_teacher
from longtail.models import ProjectionHead, feature_dim


class BCL(JointContrast):
    """Balanced contrast with class prototypes beside a logit-compensated cosine classifier."""

    passes = 3.0
    contrast: ClassVar[str] = "bcl"
    own_options: ClassVar[tuple[str, ...]] = (
        *JointContrast.own_options,
        *("teacher.kind", "teacher.run", "teacher.backbone", "teacher.pretrained", "teacher.epochs"),
    )
    # The weight of L_BCL in the authors' release, for ImageNet-LT and iNaturalist (beside 1 for the classifier); the
    # published weights are per data set. Nothing is distilled, so a teacher need not have a cosine head.
    defaults: ClassVar[Mapping[str, Any]] = {"loss.contrast_weight": 0.35, "loss.distillation_weight": 0.0}

    def __init__(self, context: MethodContext) -> None:
        taught = context.config.teacher.kind == "frozen"
        super().__init__(context, ("query",) if taught else ("query", "key"))
        config, train = context.config, context.train
        width = resolved(config.queue.projection_dim)
        # Its input is a vector of the head, which is as wide as a feature.
        self.prototype_projection = ProjectionHead(feature_dim(self.encoder), width)
        self.contrast_loss = BalancedContrastiveLoss(train.class_counts, resolved(config.loss.temperature))
        self.teacher: FrozenTeacher | None = None
        if taught:
            if context.previous is None:
                raise ValueError("a frozen teacher needs the classifier of an earlier stage")
            check_teacher(context.previous, config, train)
            self.teacher = FrozenTeacher(context.previous.encoder, context.previous.head)
            self.key_projection = ProjectionHead(feature_dim(self.teacher.encoder), width)
            if self.contrasts:
                self.views["key"] = resolved(config.views.key)

    @classmethod
    def stages(cls, config: TrainConfig, name: str) -> list[Stage]:
        """One stage; with a frozen teacher, the teacher (unless it is ready) and the student."""
        if config.teacher.kind != "frozen":
            return super().stages(config, name)
        weights = config.pretrained or "none"
        student = Stage("student", name, resolved(config.backbone), resolved(config.epochs), weights=weights)
        return with_teacher(config, student)

    @classmethod
    def check(cls, config: TrainConfig, train: LabelledImages) -> None:
        """The teacher is frozen or there is none; a ready one must know the same classes and images."""
        if config.teacher.kind == "momentum":
            raise UserError("bcl has no queue for --teacher.kind momentum to fill; use frozen or none.")
        check_ready_teacher(config, train)

    def contrasted(self, projected: Tensor, batch: Batch) -> Tensor:
        """Samples against each other and the prototypes, or against the teacher's samples and the prototypes."""
        weight = self.head.weight
        assert isinstance(weight, Tensor)
        prototypes = self.prototype_projection(weight)
        if self.teacher is None:
            loss: Tensor = self.contrast_loss(projected, batch.labels.repeat(2), prototypes)
        else:
            keys = self.key_projection(self.teacher.features(batch.views["key"]))
            loss = self.contrast_loss(projected, batch.labels, prototypes, keys, batch.labels)
        return loss
