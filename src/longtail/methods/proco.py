"""ProCo: Du et al., "Probabilistic Contrastive Learning for Long-Tailed Visual Recognition", TPAMI 2024.

A step, with three views of each image:

    classifier view > student > cosine head > + log p(c)  ---------------------------> L_LA
    query, key view > student > projection  > queries     ---------------------------> L_ProCo
                                            > mean of each class, of the epoch before ----^

The means are gathered from the query view.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from longtail.config import resolved
from longtail.data.loading import Batch
from longtail.losses import ProCoLoss
from longtail.memory import ClassDirections
from longtail.memory.class_directions import FIRST_IMAGES
from longtail.methods.base import Fetch, MethodContext
from longtail.methods.joint import JointContrast


class ProCo(JointContrast):
    """Contrast with the von Mises-Fisher distribution of each class beside a logit-adjusted cosine classifier."""

    # Three views forward and backward, one forward again for the estimate.
    passes = 10 / 3
    contrast: ClassVar[str] = "proco"

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        options, train = context.config.loss, context.train
        width = resolved(context.config.queue.projection_dim)
        self.contrast_loss = ProCoLoss(train.class_counts, resolved(options.temperature), options.prior_strength)
        self.estimate = ClassDirections(train.num_classes, width)

    def images_prepared(self) -> int:
        """Some of each class."""
        counts = self.context.train.class_counts
        return int(counts.clamp(max=FIRST_IMAGES).sum()) if self.contrasts else 0

    @torch.no_grad()
    def prepare(self, fetch: Fetch, labels: Tensor) -> None:
        """Estimate each class from some of its images, for the first epoch."""
        if self.contrasts:
            zeros = torch.zeros_like
            self.estimate.prime(labels, lambda ids, _: self._features(fetch("query", ids, zeros(ids))))

    @torch.no_grad()
    def update_memory(self, batch: Batch) -> None:
        """Add the student's features of the query view to the estimate of the next epoch."""
        if self.contrasts:
            self.estimate.absorb(self._features(batch.views["query"]), batch.labels)

    def _features(self, images: Tensor) -> Tensor:
        """Return projected features ``[B, D]`` as a step computes them, leaving all statistics as they are."""
        features: Tensor = images
        for module in (self.encoder, self.projection):
            features = _without_trace(module, features)
        return features

    def on_epoch(self, progress: float) -> None:
        """Take over the means of the epoch before."""
        self.estimate.start_epoch(round(progress * self.context.stage.epochs))

    def contrasted(self, projected: Tensor, batch: Batch) -> Tensor:
        """Both views of every image against the distributions."""
        directions, concentrations = self.estimate.parameters_of_classes()
        known = self.estimate.known
        loss: Tensor = self.contrast_loss(projected, batch.labels.repeat(2), directions, concentrations, known)
        return loss

    def readings(self) -> dict[str, Tensor]:
        """Bits of label information on the training batch, and the geometric mean of the classes' concentrations."""
        found = super().readings()
        if self.contrasts:
            known = self.estimate.known
            _, concentrations = self.estimate.parameters_of_classes()
            logs = concentrations.clamp(min=1e-6).log().masked_fill(~known, 0.0)
            found["concentration"] = (logs.sum() / known.sum().clamp(min=1)).exp()
        return found


def _without_trace(module: nn.Module, inputs: Tensor) -> Tensor:
    """Call ``module`` in the mode that it is in, with its buffers (BatchNorm statistics) written to copies."""
    copies = {name: buffer.clone() for name, buffer in module.named_buffers()}
    result: Tensor = functional_call(module, copies, (inputs,))
    return result
