"""GML for pixels: Suh & Seo, "Long-Tailed Recognition by Mutual Information Maximization between Latent Features and
Ground-Truth Labels", ICML 2023, with pixels for images.

A step, with two views of the same crop of each image, unlike in their colours:

    key view        > teacher > pixels drawn > class-wise queue > key projection   > keys    --+
    classifier view > student > pixels drawn > query projection                    > queries --+--> L_GML
                              > cosine pixel classifier > + log p(c)               ---------------> L_cls
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from longtail.config import TrainConfig, resolved
from longtail.data.keyed import derive_seed
from longtail.errors import UserError
from longtail.losses import DistillationLoss, GMLLoss
from longtail.memory import ClassQueue, FrozenTeacher, MomentumTeacher
from longtail.memory.class_queue import queue_lengths
from longtail.methods.base import Stage
from longtail.methods.teachers import with_teacher
from longtail.models import ProjectionHead
from longtail.segmentation.data.batch import DenseBatch
from longtail.segmentation.data.mask_set import IGNORE, MaskFiles
from longtail.segmentation.losses import wide
from longtail.segmentation.memory import Keys, filled_keys, prime_queue
from longtail.segmentation.methods.base import DenseContext, DenseFetch, pixel_dim, stride_of
from longtail.segmentation.methods.pixel_loss import LogitAdjustment
from longtail.segmentation.methods.teachers import check_teacher, check_teacher_options, ready_segmenter
from longtail.segmentation.sampling import capped_counts, drawn_counts, labels_at, pixels_at, sample_pixels

MAX_SIMILARITIES = 2**25
"""Held at once, 4 bytes each and four times that in all: half a GB. 65,536 queries and 16,384 keys take 32 parts."""


class GML(LogitAdjustment):
    """Cosine pixel classifier and contrast of pixels against a teacher's class-wise queue, trained side by side.

    Queries are drawn evenly from (image, class) pairs. The prior of the contrast is therefore that of the pixels drawn
    (``drawn_counts``), not the classifier's: what maximises the mutual information of features and labels is the
    likelihood of the labels under the prior that they are drawn by. That is estimated, and so the bits in ``readings``
    are a bound but for the estimate's error.
    """

    # The classifier view forward and backward; of the teacher forward only, about a third.
    passes = 4 / 3
    own_options: ClassVar[tuple[str, ...]] = (
        *("views.classifier", "views.key", "teacher.", "queue.capacity", "queue.min_per_class", "queue.projection_dim"),
        *("loss.temperature", "loss.learn_temperature", "loss.prior_strength", "loss.exclude_own_key", "loss.scale"),
        *("loss.classifier_weight", "loss.contrast_weight", "loss.distillation_", "loss.class_pooling"),
        *("loss.class_weights", "loss.effective_beta", "segmentation.prior", "segmentation.queries"),
        *("segmentation.keys_per_class", "segmentation.queue_share"),
    )
    defaults: ClassVar[Mapping[str, Any]] = {"teacher.kind": "frozen", "loss.distillation_weight": 0.0}

    def __init__(self, context: DenseContext) -> None:
        super().__init__(context)
        config, train = context.config, context.train
        loss, own = config.loss, config.segmentation
        # A term of weight 0 costs nothing: no view, no pass through the teacher, no queue to fill.
        self.contrasts = resolved(loss.contrast_weight) > 0
        if self.contrasts:
            self.views["key"] = resolved(config.views.key)
        self.teacher = self._build_teacher()
        key_dim, width = pixel_dim(self.teacher.encoder), resolved(config.queue.projection_dim)
        self.query_projection = ProjectionHead(pixel_dim(self.encoder), width)
        self.key_projection = ProjectionHead(key_dim, width)
        slots = capped_counts(train.class_counts, own.queue_share)
        queue = config.queue
        self.queue = ClassQueue(slots, resolved(queue.capacity), key_dim, resolved(queue.min_per_class))
        self.contrast_loss = GMLLoss(
            self._drawn_counts(),
            temperature=resolved(loss.temperature),
            learn_temperature=loss.learn_temperature,
            prior_strength=loss.prior_strength,
            exclude_own_key=loss.exclude_own_key,
            class_pooling=loss.class_pooling,
            max_similarities=MAX_SIMILARITIES,
        )
        self.distillation_loss = DistillationLoss(loss.distillation_temperature)
        self.seed = derive_seed(config.seed, context.stage.name)

    def _drawn_counts(self) -> Tensor:
        """Return about how many queries of each class are drawn, float32 ``[C]``; above 0 where a class has a pixel."""
        own, train = self.context.config.segmentation, self.context.train
        an_image = own.queries / resolved(self.context.config.batch_size)
        rule = own.queries_per_class, stride_of(self.encoder), an_image
        whole = drawn_counts(train.read_pixels, *rule)
        if self.context.shown is None:
            return whole
        found = drawn_counts(self.context.shown, *rule)
        # A class so rare that none of the crops looked at showed it keeps its place by what the images hold.
        return torch.where(found > 0, found, whole * (found.sum() / whole.sum().clamp(min=1e-30)))

    def _build_teacher(self) -> FrozenTeacher | MomentumTeacher:
        teacher, previous = self.context.config.teacher, self.context.previous
        if teacher.kind in ("momentum", "none"):
            # The student itself, as it is at each step, is a moving average that keeps nothing.
            return MomentumTeacher(self.encoder, self.head, teacher.momentum if teacher.kind == "momentum" else 0.0)
        if previous is None:
            raise ValueError("a frozen teacher needs the segmenter of an earlier stage")
        check_teacher(previous, self.context.config, self.context.train)
        return FrozenTeacher(previous.encoder, previous.head)

    @classmethod
    def stages(cls, config: TrainConfig, name: str) -> list[Stage]:
        """A teacher trained with L_cls, then the student; the student alone if its teacher needs no training."""
        weights = config.pretrained or "none"
        student = Stage("student", name, resolved(config.backbone), resolved(config.epochs), weights=weights)
        return [student] if config.teacher.kind in ("momentum", "none") else with_teacher(config, student)

    @classmethod
    def check(cls, config: TrainConfig, train: MaskFiles) -> None:
        """The queue must hold every class, and a ready teacher must know the same classes."""
        super().check(config, train)
        if config.queue.kind != "class_wise":
            raise UserError(f"--queue.kind {config.queue.kind} is not there for segmentation; use class_wise.")
        if not config.queue.project:
            raise UserError("--queue.project false is not there for segmentation; leave it out.")
        if config.queue.sharded:
            raise UserError("--queue.sharded is not there for segmentation; leave it out.")
        if config.queue.fresh_share != 1:
            raise UserError("--queue.fresh_share is not there for segmentation; leave it out.")
        share = config.segmentation.queue_share
        counts = capped_counts(train.class_counts, share)
        queue_lengths(counts, resolved(config.queue.capacity), resolved(config.queue.min_per_class))
        check_teacher_options(config)
        if config.teacher.run is not None:
            check_teacher(ready_segmenter(config.teacher.run), config, train)

    def param_groups(self) -> list[dict[str, Any]]:
        """Weight decay on everything but the temperature, which it would pull towards 1."""
        temperature = list(self.contrast_loss.parameters())
        own = {id(p) for p in temperature}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.parameters() if p.requires_grad and id(p) not in own]}
        ]
        return [*groups, {"params": temperature, "weight_decay": 0.0}] if temperature else groups

    @torch.no_grad()
    def prepare(self, fetch: DenseFetch, labels: Tensor) -> None:
        """Fill the queue with the teacher's features of real pixels, the rarest classes first."""
        if self.contrasts:
            config = self.context.config
            prime_queue(
                self.queue,
                labels,
                lambda ids, rounds: self._keys(fetch("key", ids, rounds)),
                config.segmentation.keys_per_class,
                resolved(config.batch_size),
                self.seed,
            )

    @torch.no_grad()
    def update_memory(self, batch: DenseBatch) -> None:
        """Enqueue the teacher's features of some pixels of the key view; a momentum teacher first follows."""
        asked = self.contrasts or self.context.config.loss.distillation_weight
        if isinstance(self.teacher, MomentumTeacher) and asked:
            self.teacher.update(self.encoder, self.head)
        if self.contrasts:
            self.queue.enqueue(*self._keys(batch))

    def _keys(self, batch: DenseBatch) -> Keys:
        """Return teacher features of pixels of the key view, evenly from all classes of each image."""
        maps = self.teacher.features(batch.views["key"])
        cells = labels_at(batch.labels, stride_of(self.teacher.encoder))
        per_class = self.context.config.segmentation.keys_per_class
        places, labels, images = sample_pixels(
            cells, batch.keys, cells.numel(), per_class, derive_seed(self.seed, "keys")
        )
        return pixels_at(maps, places), labels, batch.ids[images]

    def forward(self, batch: DenseBatch, progress: float) -> dict[str, Tensor]:
        """L_cls + L_GML (+ distillation), weighted."""
        options = self.context.config.loss
        maps, coarse = self.maps(batch)
        losses = {name: options.classifier_weight * loss for name, loss in self.of_maps(maps, coarse, batch).items()}
        if self.contrasts:
            losses["gml"] = resolved(options.contrast_weight) * self._contrast(maps, batch)
        if options.distillation_weight:
            losses["distillation"] = options.distillation_weight * self._distillation(maps, batch)
        return losses

    def _contrast(self, maps: Tensor, batch: DenseBatch) -> Tensor:
        own = self.context.config.segmentation
        cells = labels_at(batch.labels, stride_of(self.encoder))
        places, labels, images = sample_pixels(
            cells, batch.keys, own.queries, own.queries_per_class, derive_seed(self.seed, "queries")
        )
        keys = filled_keys(self.queue)
        if min(len(places), len(keys.ids)) < 2:  # too few for the projections' batch statistics
            self.contrast_loss.information = torch.full((), torch.nan, device=maps.device)
            return wide(maps).sum() * 0.0
        loss: Tensor = self.contrast_loss(
            self.query_projection(pixels_at(maps, places)),
            labels,
            # The whole queue is projected anew: stored features are the teacher's, the gradient trains the projection.
            self.key_projection(keys.features),
            keys.offsets,
            query_ids=batch.ids[images],
            key_ids=keys.ids,
            longest_class=self.queue.longest,
        )
        return loss

    def _distillation(self, maps: Tensor, batch: DenseBatch) -> Tensor:
        """Return the divergence from the teacher's prediction of the same view, over the map's cells that count."""
        counts = labels_at(batch.labels, stride_of(self.encoder)) != IGNORE
        both = self.head(maps), self.teacher.logits(batch.views["classifier"])
        student, teacher = (logits.movedim(1, -1)[counts] for logits in both)
        loss: Tensor = self.distillation_loss(student, teacher) if len(student) else student.sum()
        return loss

    def readings(self) -> dict[str, Tensor]:
        """Temperature, bits of label information H - L_GML without a sample's own keys, and the queue's filled share.

        H is that of the labels drawn, whose shares are as ``drawn_counts`` estimates them.
        """
        if not self.contrasts:
            return {}
        return {
            "temperature": self.contrast_loss.temperature.detach(),
            "bits": self.contrast_loss.information,
            "queue_filled": self.queue.filled.float().mean(),
        }
