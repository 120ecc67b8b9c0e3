"""GML the textbook way, to measure against: a one-hot density, a queue filled sample by sample, float32, eager, NCHW.

Written for the benchmarks from the paper's description: the same networks, views, queue lengths and losses as
`longtail train --method gml`, without any of its care for speed.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.memory import queue_lengths
from longtail.models import build_encoder


def projection(width: int, out: int) -> nn.Module:
    """Return the two-layer head in front of the contrast."""
    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, out))


class PlainGML(nn.Module):
    """Student, frozen teacher, class-wise queue and the three losses of the CIFAR recipe.

    Args:
        class_counts: ``[C]`` training images of each class.
        capacity, min_per_class: of the queue (Eq. 6 of the paper).
        student, teacher: encoder names.
        width: of the projections.
        temperature: of the kernel, learned.
    """

    def __init__(
        self,
        class_counts: Tensor,
        capacity: int = 4096,
        min_per_class: int = 2,
        student: str = "cifar_resnet32",
        teacher: str = "cifar_resnet56",
        width: int = 32,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder, self.teacher = build_encoder(student, 3), build_encoder(teacher, 3)
        self.teacher.requires_grad_(False).eval()
        dim, key_dim = int(self.encoder.feature_dim), int(self.teacher.feature_dim)
        classes = len(class_counts)
        self.classifier, self.taught = (nn.Linear(d, classes, bias=False) for d in (dim, key_dim))
        self.taught.requires_grad_(False)
        self.query_projection, self.key_projection = projection(dim, width), projection(key_dim, width)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.register_buffer("prior", class_counts / class_counts.sum())
        self.lengths = queue_lengths(class_counts, capacity, min_per_class).tolist()
        self.starts = [sum(self.lengths[:c]) for c in range(classes)]
        self.heads = [0] * classes
        labels = torch.arange(classes).repeat_interleave(torch.tensor(self.lengths))
        self.register_buffer("members", F.one_hot(labels, classes).float())
        self.register_buffer("queue", torch.randn(capacity, key_dim))
        self.register_buffer("ids", torch.full((capacity,), -1))

    @torch.no_grad()
    def enqueue(self, features: Tensor, labels: Tensor, ids: Tensor) -> None:
        """Write the batch into the queue, one sample after the other."""
        for row, label in enumerate(labels.tolist()):
            slot = self.starts[label] + self.heads[label]
            self.queue[slot], self.ids[slot] = features[row], ids[row]
            self.heads[label] = (self.heads[label] + 1) % self.lengths[label]

    def density_loss(self, similarity: Tensor, labels: Tensor, temperature: Tensor, own: Tensor | None) -> Tensor:
        """Return L_GML through the ``[K, C]`` one-hot matrix."""
        logits = similarity / temperature
        weights = (logits - logits.detach().amax(1, keepdim=True)).exp()
        if own is not None:
            weights = weights * ~own
        counts = (torch.ones_like(weights) if own is None else (~own).float()) @ self.members
        densities = (weights @ self.members) / counts
        return F.cross_entropy(densities.clamp(min=1e-30).log() + self.prior.log(), labels)

    def forward(self, classifier: Tensor, query: Tensor, key: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        """Return the loss of a step; the queue takes in the batch first."""
        with torch.no_grad():
            self.enqueue(self.teacher(key), labels, ids)
            teacher_logits = 30 * F.linear(F.normalize(self.teacher(classifier)), F.normalize(self.taught.weight))
        features = self.encoder(torch.cat([classifier, query]))
        first, second = features.chunk(2)
        logits = 30 * F.linear(F.normalize(first), F.normalize(self.classifier.weight))
        queries = F.normalize(self.query_projection(second))
        keys = F.normalize(self.key_projection(self.queue))
        similarity, temperature = queries @ keys.t(), self.log_temperature.exp()
        own = ids[:, None] == self.ids[None, :]
        loss = F.cross_entropy(logits + self.prior.log(), labels)
        loss = loss + self.density_loss(similarity, labels, temperature.detach(), None)
        loss = loss + self.density_loss(similarity.detach(), labels, temperature, own)
        soft = F.kl_div(F.log_softmax(logits / 4, 1), F.softmax(teacher_logits / 4, 1), reduction="batchmean")
        return loss + 16 * soft


class PlainLogitAdjustment(nn.Module):
    """The teacher's training: a logit-adjusted cross entropy on a cosine classifier."""

    def __init__(self, class_counts: Tensor, encoder: str = "cifar_resnet56") -> None:
        super().__init__()
        self.encoder = build_encoder(encoder, 3)
        self.classifier = nn.Linear(int(self.encoder.feature_dim), len(class_counts), bias=False)
        self.register_buffer("prior", class_counts / class_counts.sum())

    def forward(self, classifier: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a step."""
        features = F.normalize(self.encoder(classifier))
        logits = 30 * F.linear(features, F.normalize(self.classifier.weight))
        return F.cross_entropy(logits + self.prior.log(), labels)


def plain_optimiser(module: nn.Module) -> torch.optim.Optimizer:
    """Return SGD as published runs have it, with torch's defaults."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=5e-4)
