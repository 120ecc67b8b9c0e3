"""PaCo: Cui et al., "Parametric Contrastive Learning", ICCV 2021.

A step, with two views of each image:

    query view > student > head: centre logits, + log p(c)   --+
                         > projection  > queries             --+--> L_PaCo
    key view   > momentum encoder and projection > queue     --+

The centres are the weights of a linear head on the encoder's features (the paper's F is the identity), so that the head
is the classifier; the samples are compared in the projection (its G). The momentum encoder is MoCo's, in eval mode: its
BatchNorm uses averaged statistics, and no shuffling among devices is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from longtail.config import TrainConfig, resolved
from longtail.data import LabelledImages
from longtail.data.loading import Batch
from longtail.errors import UserError
from longtail.losses import LogitAdjustedCrossEntropy, PaCoLoss
from longtail.memory import FifoQueue, MomentumTeacher
from longtail.methods.base import Fetch, Method, MethodContext
from longtail.methods.label_bits import LabelBits
from longtail.models import Classifier, ProjectionHead, feature_dim


class PaCo(Method):
    """Class centres and queued contrast samples in one softmax; the centres are the classifier."""

    # One view forward and backward, one forward only through the momentum encoder.
    passes = 4 / 3
    own_options: ClassVar[tuple[str, ...]] = (
        *("views.query", "views.key", "queue.capacity", "queue.projection_dim", "teacher.kind", "teacher.momentum"),
        *("loss.temperature", "loss.prior_strength", "loss.paco_alpha"),
    )
    defaults: ClassVar[Mapping[str, Any]] = {"teacher.kind": "momentum"}

    def __init__(self, context: MethodContext) -> None:
        super().__init__()
        config, counts = context.config, context.train.class_counts
        self.context, self.sampler = context, context.sampler
        self.views = {name: resolved(getattr(config.views, name)) for name in ("query", "key")}
        self.encoder = context.build_encoder()
        self.head = context.build_head(self.encoder, "linear")
        width = resolved(config.queue.projection_dim)
        self.projection = ProjectionHead(feature_dim(self.encoder), width)
        # What it averages as its head is the projection: its "logits" are the keys.
        self.teacher = MomentumTeacher(self.encoder, self.projection, config.teacher.momentum)
        self.queue = FifoQueue(counts, resolved(config.queue.capacity), width)
        self.prior_strength = config.loss.prior_strength
        self.loss = PaCoLoss(counts, config.loss.paco_alpha, resolved(config.loss.temperature), self.prior_strength)
        self.centre_loss = LogitAdjustedCrossEntropy(counts, self.prior_strength)
        self.label_bits = LabelBits(context)

    @classmethod
    def build(cls, context: MethodContext) -> Self:
        """Build with the run's options."""
        return cls(context)

    @classmethod
    def check(cls, config: TrainConfig, train: LabelledImages) -> None:
        """The queue is filled by a momentum encoder."""
        if config.teacher.kind != "momentum":
            raise UserError("paco fills its queue by a momentum encoder: leave out --teacher.kind, or give momentum.")
        capacity = resolved(config.queue.capacity)
        if capacity > 1000 * len(train):
            raise UserError(
                f"--queue.capacity {capacity} is over 1000 slots for each of the {len(train)} training images; "
                "a queue about as long as the training set holds all that there is to hold."
            )

    def images_prepared(self) -> int:
        """A key a slot."""
        return self.queue.capacity

    @torch.no_grad()
    def prepare(self, fetch: Fetch, labels: Tensor) -> None:
        """Fill every slot of the queue with keys of real images."""
        self.queue.prime(labels, lambda ids, rounds: self.teacher.logits(fetch("key", ids, rounds)))

    @torch.no_grad()
    def update_memory(self, batch: Batch) -> None:
        """Let the momentum encoder follow the student, and enqueue its keys of the key view."""
        self.teacher.update(self.encoder, self.projection)
        self.queue.enqueue(self.teacher.logits(batch.views["key"]), batch.labels, batch.ids)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """L_PaCo of the query view; this batch's keys are the newest of the queue."""
        features = self.encoder(batch.views["query"])
        logits = self.head(features)
        with torch.no_grad():
            self.label_bits.see(self.centre_loss(logits, batch.labels))
        queue = self.queue
        loss = self.loss(
            logits, self.projection(features), batch.labels, queue.features, queue.labels, key_mask=queue.filled
        )
        return {"paco": loss}

    def readings(self) -> dict[str, Tensor]:
        """Bits of label information of the centres."""
        return self.label_bits.readings()

    def classifier(self) -> Classifier:
        """Student encoder and centres; projection, momentum encoder and queue stay behind.

        A sample's own centre gets 1 / (1 + alpha |P|) of its target, and |P| grows with its class: so the centres'
        softmax implies fewer of the frequent classes than a uniform prior does.
        """
        config = self.context.config
        positives = (resolved(config.batch_size) - 1 + self.queue.capacity) * self.context.drawn_shares()
        weights = 1 / (1 + config.loss.paco_alpha * positives)
        return self.context.build_classifier(self.encoder, self.head, self.prior_strength, weights)
