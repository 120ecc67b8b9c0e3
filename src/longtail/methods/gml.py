"""GML: Suh & Seo, "Long-Tailed Recognition by Mutual Information Maximization between Latent Features and
Ground-Truth Labels", ICML 2023.

A step, with three views of each image:

    key view        > teacher > class-wise queue > key projection   > keys    --+
    query view      > student > query projection                    > queries --+--> L_GML
    classifier view > student > cosine head > + log p(c)            ---------------> L_cls
                                            > against the teacher's ---------------> L_distillation
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from longtail.config import TrainConfig, resolved
from longtail.data import LabelledImages
from longtail.data.keyed import derive_seed
from longtail.data.loading import Batch
from longtail.errors import UserError
from longtail.losses import DistillationLoss, GMLLoss, LogitAdjustedCrossEntropy, ShardedGMLLoss
from longtail.memory import FrozenTeacher, MomentumTeacher, ShardedClassQueue, TeacherCache, project_share
from longtail.memory.class_queue import queue_lengths
from longtail.methods.base import Fetch, Method, MethodContext, Stage
from longtail.methods.contrast_queue import build_fresh_keys, build_queue, check_queue, leave_to_each_process
from longtail.methods.label_bits import LabelBits
from longtail.methods.mixup import mixup
from longtail.methods.teachers import (
    check_cache,
    check_pretrained_teacher,
    check_ready_teacher,
    check_same_width,
    check_teacher,
    fitting_teacher,
    with_teacher,
)
from longtail.models import (
    Classifier,
    ProjectionHead,
    UnitVectors,
)


class GML(Method):
    """Cosine classifier and contrast against a teacher's class-wise queue, trained side by side."""

    # Two views forward and backward; of the teacher two forward only, about a third each.
    passes = 8 / 3
    own_options: ClassVar[tuple[str, ...]] = (
        *("views.", "queue.", "teacher."),
        *("loss.temperature", "loss.learn_temperature", "loss.prior_strength", "loss.exclude_own_key", "loss.scale"),
        *("loss.classifier_weight", "loss.contrast_weight", "loss.distillation_", "loss.class_pooling", "loss.mixup"),
    )
    defaults: ClassVar[Mapping[str, Any]] = {"teacher.kind": lambda chosen: fitting_teacher(chosen)}

    def __init__(self, context: MethodContext) -> None:
        super().__init__()
        config, counts = context.config, context.train.class_counts
        self.context = context
        self.options = config.loss
        # A term of weight 0 costs nothing: no view, no pass through the teacher, no queue to fill.
        self.contrasts = resolved(config.loss.contrast_weight) > 0
        self.sampler = context.sampler
        self.classifier_name = LabelBits(context, context.mixup == 0).loss_name
        self.views = {"classifier": resolved(config.views.classifier)}
        if self.contrasts:
            self.views["query"] = resolved(config.views.query)
            # With a cache the key view is only fetched, once, to fill it.
            keys = self.fetched_views if config.teacher.cache else self.views
            keys["key"] = resolved(config.views.key)
        self.encoder = context.build_encoder()
        self.head = context.build_head(self.encoder, "cosine")
        self.teacher = self._build_teacher()
        key_dim = int(self.teacher.encoder.feature_dim)  # type: ignore[arg-type]
        query_dim = int(self.encoder.feature_dim)  # type: ignore[arg-type]
        width, project = resolved(config.queue.projection_dim), config.queue.project
        self.query_projection = ProjectionHead(query_dim, width) if project else UnitVectors()
        self.key_projection = ProjectionHead(key_dim, width) if project else UnitVectors()
        self.queue = build_queue(config, counts, key_dim)
        self.fresh_keys = build_fresh_keys(config, self.queue)
        loss = config.loss
        self.classifier_loss = LogitAdjustedCrossEntropy(counts, loss.prior_strength)
        sharded = isinstance(self.queue, ShardedClassQueue)
        self.contrast_loss = (ShardedGMLLoss if sharded else GMLLoss)(
            counts,
            temperature=resolved(loss.temperature),
            learn_temperature=loss.learn_temperature,
            prior_strength=loss.prior_strength,
            exclude_own_key=loss.exclude_own_key,
            class_pooling=loss.class_pooling,
        )
        self.distillation_loss = DistillationLoss(loss.distillation_temperature)
        self.cache: TeacherCache | None = None
        if config.teacher.cache and self.contrasts:
            seed = derive_seed(config.seed, context.stage.name)
            self.cache = TeacherCache(len(context.train), config.teacher.cache, key_dim, seed)
        leave_to_each_process(self)

    def _build_teacher(self) -> FrozenTeacher | MomentumTeacher:
        previous = self.context.previous
        if self.context.config.teacher.kind == "momentum":
            return MomentumTeacher(self.encoder, self.head, self.context.config.teacher.momentum)
        if self.context.config.teacher.kind == "pretrained":
            return FrozenTeacher(self.context.build_pretrained_teacher(), nn.Identity())
        if previous is None:
            raise ValueError("a frozen teacher needs the classifier of an earlier stage")
        check_teacher(previous, self.context.config, self.context.train)
        return FrozenTeacher(previous.encoder, previous.head)

    @classmethod
    def stages(cls, config: TrainConfig, name: str) -> list[Stage]:
        """A teacher trained with L_cls, then the student; the student alone if its teacher needs no training."""
        student = Stage(
            "student",
            name,
            resolved(config.backbone),
            resolved(config.epochs),
            weights=config.pretrained or "none",
        )
        if config.teacher.kind in ("momentum", "pretrained"):
            return [student]
        return with_teacher(config, student)

    @classmethod
    def build(cls, context: MethodContext) -> Self:
        """Build the student stage."""
        return cls(context)

    @classmethod
    def check(cls, config: TrainConfig, train: LabelledImages) -> None:
        """The queue must hold every class, and a ready teacher must know the same classes and images."""
        if config.teacher.kind == "none":
            raise UserError("gml needs a teacher to fill its queue: --teacher.kind frozen, pretrained or momentum.")
        if config.teacher.kind == "pretrained":
            check_pretrained_teacher(config)
        capacity = resolved(config.queue.capacity)
        if config.queue.kind == "class_wise":
            queue_lengths(train.class_counts, capacity, resolved(config.queue.min_per_class))
        check_queue(config)
        if not config.queue.project:
            check_same_width(config, train)
        if capacity > 1000 * len(train):
            raise UserError(
                f"--queue.capacity {capacity} is over 1000 slots for each of the {len(train)} training images; "
                "a queue about as long as the training set holds all that there is to hold."
            )
        if config.teacher.cache and config.teacher.kind == "momentum":
            raise UserError(
                "--teacher.cache keeps features of a frozen teacher; those of --teacher.kind momentum change."
            )
        if config.teacher.cache:
            check_cache(config, train)
        check_ready_teacher(config, train)

    def param_groups(self) -> list[dict[str, Any]]:
        """Weight decay on everything but the temperature, which it would pull towards 1."""
        temperature = list(self.contrast_loss.parameters())
        own = {id(p) for p in temperature}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.parameters() if p.requires_grad and id(p) not in own]}
        ]
        return [*groups, {"params": temperature, "weight_decay": 0.0}] if temperature else groups

    @torch.no_grad()
    def recompute(self, fetch: Fetch, labels: Tensor) -> None:
        """Fill the cache of the teacher's features, if there is one."""
        if self.cache is not None:
            self.cache.fill(lambda ids, rounds: self.teacher.features(fetch("key", ids, rounds)))

    def images_prepared(self) -> int:
        """A key a slot; with a cache, each of its views of every image."""
        if not self.contrasts:
            return 0
        views = self.context.config.teacher.cache
        return views * len(self.context.train) if views else self.queue.capacity

    @torch.no_grad()
    def prepare(self, fetch: Fetch, labels: Tensor) -> None:
        """Fill every slot of the queue with the teacher's features of real images."""
        if self.cache is not None:
            self.queue.prime(labels, self.cache.view)
        elif self.contrasts:
            self.queue.prime(labels, lambda ids, rounds: self.teacher.features(fetch("key", ids, rounds)))
        if self.fresh_keys is not None and self.contrasts:
            self.fresh_keys.start(self.queue.content().features, self.key_projection)

    def on_epoch(self, progress: float) -> None:
        """Tell the cache which epoch it draws for."""
        if self.cache is not None:
            self.cache.set_epoch(round(progress * self.context.stage.epochs))

    @torch.no_grad()
    def update_memory(self, batch: Batch) -> None:
        """Enqueue the teacher's features of the key view; a momentum teacher first follows the student."""
        if isinstance(self.teacher, MomentumTeacher):
            self.teacher.update(self.encoder, self.head)
        if self.contrasts:
            drawn = self.teacher.features(batch.views["key"]) if self.cache is None else self.cache.draw(batch.ids)
            written = self.queue.enqueue(drawn, batch.labels, batch.ids)
            if self.fresh_keys is not None:
                self.fresh_keys.begin_step(written)

    def keys(self, features: Tensor) -> Tensor:
        """Return the key of each slot of the queue, ``[K, P]`` unit vectors, of what it holds, ``[K, D]``."""
        if self.fresh_keys is not None:
            kept: Tensor = self.fresh_keys(features, self.key_projection)
            return kept
        if isinstance(self.queue, ShardedClassQueue):
            return project_share(self.key_projection, features, sum(self.queue.shares), self.queue.group)
        # The whole queue is projected anew: stored features are the teacher's, the gradient trains the projection.
        projected: Tensor = self.key_projection(features)
        return projected

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """L_cls + L_GML (+ distillation), weighted."""
        size = len(batch.labels)
        # One pass for both views: their BatchNorm statistics are joint, as in the authors' release.
        mixed = mixup(batch.views["classifier"], batch.labels, self.context.mixup)
        # Views that are one tensor (features without stored augmentations) go through once.
        views = [mixed.images]
        if self.contrasts and batch.views["query"] is not mixed.images:
            views.append(batch.views["query"])
        features = self.encoder(torch.cat(views) if len(views) > 1 else views[0])
        logits = self.head(features[:size])
        losses = {self.classifier_name: self.options.classifier_weight * mixed.loss(self.classifier_loss, logits)}
        if self.contrasts:
            queries = self.query_projection(features[-size:])
            queue = self.queue.content()
            keys = self.keys(queue.features)
            losses["gml"] = resolved(self.options.contrast_weight) * self.contrast_loss(
                queries,
                batch.labels,
                keys,
                queue.offsets,
                query_ids=batch.ids,
                key_ids=queue.ids,
                key_mask=queue.filled,
                longest_class=queue.longest,
            )
        if self.options.distillation_weight:
            teacher_logits = self.teacher.logits(mixed.images)
            losses["distillation"] = self.options.distillation_weight * self.distillation_loss(logits, teacher_logits)
        return losses

    def readings(self) -> dict[str, Tensor]:
        """Temperature, and bits of label information H(Y) - L_GML without a sample's own keys."""
        if not self.contrasts:
            return {}
        temperature = self.contrast_loss.temperature.detach()
        return {
            "temperature": temperature,
            **({"bits": self.contrast_loss.information} if self.sampler == "instance" else {}),
        }

    def classifier(self) -> Classifier:
        """Student encoder and cosine head; projections, queue and teacher stay behind."""
        return self.context.build_classifier(self.encoder, self.head, self.options.prior_strength)
