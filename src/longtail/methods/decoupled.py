"""Decoupled training: a representation first, a classifier on it afterwards.

Kang et al., "Decoupling representation and classifier for long-tailed recognition", ICLR 2020, Sec. 4. The
representation is the encoder of a cross entropy run with instance sampling, or of a run that is ready. It then stays as
it is, in eval mode, and one of four classifiers is put on its features x:

    crt       a new linear head, trained with class-balanced sampling
    lws       f_c (w_c . x + b_c): a factor f_c for each class of the old head, trained likewise
    tau_norm  w_c . x / |w_c|^tau, closed form
    ncm       cos(m_c, x), m_c the mean feature of class c, closed form
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.config import TrainConfig, resolved
from longtail.data import LabelledImages
from longtail.data.loading import Batch
from longtail.errors import UserError
from longtail.losses import LogitAdjustedCrossEntropy
from longtail.methods.base import Fetch, Method, MethodContext, Stage
from longtail.methods.ready import ready_representation
from longtail.models import Classifier, LinearHead, feature_dim

_REPRESENTATION = "representation"


class Decoupled(Method):
    """A classifier on a frozen encoder.

    Attributes:
        head_kind: of the classifier, where it is a new head.
        needs_linear_head: whether it is made from the head of the representation, which must be a linear one then.
    """

    own_options: ClassVar[tuple[str, ...]] = ("views.classifier", "decoupled.run")
    head_kind: ClassVar[str] = "linear"
    needs_linear_head: ClassVar[bool] = False

    def __init__(self, context: MethodContext) -> None:
        super().__init__()
        if context.previous is None:
            raise ValueError("a classifier on a representation needs the classifier of an earlier stage")
        self.context, self.sampler = context, context.sampler
        self.views = {"classifier": resolved(context.config.views.classifier)}
        self.encoder = copy.deepcopy(context.previous.encoder).requires_grad_(False)
        self.head = self.build_head(context.previous.head)
        self.train()

    def build_head(self, old: nn.Module) -> nn.Module:
        """Return the classifier's head, a new one; ``old`` is that of the representation, and stays as it is."""
        return self.context.build_head(self.encoder, self.head_kind)

    def train(self, mode: bool = True) -> Self:
        """Leave the encoder in eval mode: its BatchNorm statistics are part of the representation."""
        super().train(mode)
        self.encoder.eval()
        return self

    @classmethod
    def stages(cls, config: TrainConfig, name: str) -> list[Stage]:
        """Cross entropy on every image once an epoch, then the classifier; the latter alone if a run is ready."""
        backbone, ready = resolved(config.backbone), config.decoupled.run
        weights, epochs = config.pretrained or "none", resolved(config.epochs)
        first = Stage(_REPRESENTATION, "cross_entropy", backbone, epochs, weights=weights, sampler="instance")
        last = Stage("classifier", name, backbone, cls.classifier_epochs(config), takes=_REPRESENTATION, ready=ready)
        return [last] if ready else [first, last]

    @classmethod
    def classifier_epochs(cls, config: TrainConfig) -> int:
        """Return the epochs of the classifier's stage."""
        return resolved(config.decoupled.epochs)

    @classmethod
    def build(cls, context: MethodContext) -> Self:
        """Build the classifier's stage."""
        return cls(context)

    @classmethod
    def check(cls, config: TrainConfig, train: LabelledImages) -> None:
        """A representation that is ready must fit the images, and be no test image's acquaintance."""
        if config.decoupled.run is None:
            return
        model = ready_representation(config, train)
        if cls.needs_linear_head and not isinstance(model.head, LinearHead):
            raise UserError(
                f"{config.method} rescales the weights of a linear head, but the run in {config.decoupled.run} has a "
                "cosine head; use a run of cross_entropy, or --method crt or ncm."
            )

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return the features ``[B, D]`` of ``images [B, C, H, W]`` (normalised pixels)."""
        features: Tensor = self.encoder(images)
        return features


class _Trained(Decoupled):
    """A head that is trained by plain cross entropy, every class drawn equally often."""

    passes = 1 / 3  # forward through the encoder; the head costs nothing beside it
    own_options: ClassVar[tuple[str, ...]] = (*Decoupled.own_options, "decoupled.epochs")
    defaults: ClassVar[Mapping[str, Any]] = {"sampler": "class_balanced"}

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.loss = LogitAdjustedCrossEntropy(context.train.class_counts, prior_strength=0.0)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Cross entropy of the head on frozen features."""
        return {"rebalanced": self.loss(self.head(self.features(batch.views["classifier"])), batch.labels)}

    def classifier(self) -> Classifier:
        """Encoder and head; the implied prior is that of the sampler."""
        return self.context.build_classifier(self.encoder, self.head, prior_strength=0.0)


class ClassifierRetraining(_Trained):
    """cRT: a linear head trained from scratch."""


class ScaledHead(nn.Module):
    """A frozen linear head whose logits are multiplied by a learned factor a class, 1 at first.

    Args:
        head: copied.

    Shape:
        ``[B, D] -> [B, C]``.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, head: LinearHead) -> None:
        super().__init__()
        self.register_buffer("weight", head.weight.detach().clone())
        self.register_buffer("bias", head.bias.detach().clone())
        self.factors = nn.Parameter(torch.ones_like(self.bias))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``[B, C]`` of features ``[B, D]``."""
        return self.factors * F.linear(features, self.weight, self.bias)

    @torch.no_grad()
    def folded(self) -> LinearHead:
        """Return the linear head that gives the same logits."""
        classes, dim = self.weight.shape
        head = LinearHead(dim, classes).to(self.weight)
        head.weight.copy_(self.factors[:, None] * self.weight)
        head.bias.copy_(self.factors * self.bias)
        return head


class LearnableWeightScaling(_Trained):
    """LWS: a learned factor for each class of the representation's own head, bias included as in their release.

    The factors have no weight decay, which would pull them to 0.
    """

    needs_linear_head: ClassVar[bool] = True
    head: ScaledHead

    def build_head(self, old: nn.Module) -> ScaledHead:
        """Return the old head with a factor a class."""
        return ScaledHead(_linear(old))

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the factors alone."""
        return [{"params": [self.head.factors], "weight_decay": 0.0}]

    def classifier(self) -> Classifier:
        """Encoder and the linear head that the factors make."""
        return self.context.build_classifier(self.encoder, self.head.folded(), prior_strength=0.0)


class _ClosedForm(Decoupled):
    """A head that takes no step: its stage has no epochs."""

    @classmethod
    def classifier_epochs(cls, config: TrainConfig) -> int:
        """Return 0."""
        return 0

    @classmethod
    def stages(cls, config: TrainConfig, name: str) -> list[Stage]:
        """As of every one of them; without epochs there is nothing to sample."""
        *before, last = super().stages(config, name)
        return [*before, replace(last, sampler="instance")]


class TauNormalised(_ClosedForm):
    """tau-normalised classifier: w_c / |w_c|^tau of the representation's own head, its bias dropped.

    With tau = 0 the weights stay, and the training prior is what the softmax implies; at tau = 1, which takes from
    frequent classes the longer weights that they have, it is taken to be uniform, and between the two p(c)^(1 - tau).
    """

    own_options: ClassVar[tuple[str, ...]] = (*Decoupled.own_options, "decoupled.tau")
    needs_linear_head: ClassVar[bool] = True

    @torch.no_grad()
    def build_head(self, old: nn.Module) -> nn.Module:
        """Return a linear head of the rescaled weights, without a bias."""
        head = copy.deepcopy(_linear(old)).requires_grad_(False)
        norm = torch.linalg.vector_norm(head.weight, dim=1, keepdim=True)
        # A weight of 0 has no direction, and stays.
        head.weight /= torch.where(norm > 0, norm, 1.0) ** self.context.config.decoupled.tau
        head.bias.zero_()
        return head

    def classifier(self) -> Classifier:
        """Encoder and rescaled head."""
        return self.context.build_classifier(self.encoder, self.head, self.context.config.decoupled.tau)


class NearestClassMean(_ClosedForm):
    """NCM: the class whose mean feature has the largest cosine with an image's.

    That is also the class nearest in Euclidean distance to L2-normalised mean features, the paper's other form: the
    length of the image's own feature does not change which one is nearest. Means are over the training images without
    augmentation. The head is a cosine head, of scale ``loss.scale``, that has them for weights; as it knows no class
    frequencies, a uniform prior is what it implies.
    """

    head_kind: ClassVar[str] = "cosine"
    own_options: ClassVar[tuple[str, ...]] = (*Decoupled.own_options, "loss.scale")

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.head.requires_grad_(False)  # filled by ``prepare``
        self.fetched_views = {"plain": "none"}

    def images_prepared(self) -> int:
        """All of them."""
        return len(self.context.train)

    @torch.no_grad()
    def prepare(self, fetch: Fetch, labels: Tensor) -> None:
        """Make the class means the head's weights."""
        classes = self.context.train.num_classes
        # On the host and in float64: the same sum whatever the device adds up first.
        sums = torch.zeros(classes, feature_dim(self.encoder), dtype=torch.float64)
        every = torch.arange(len(labels), device=labels.device)
        for ids in torch.split(every, resolved(self.context.config.batch_size)):
            features = self.features(fetch("plain", ids, torch.zeros_like(ids)))
            sums.index_add_(0, labels[ids].cpu(), features.cpu().double())
        counts = torch.bincount(labels.cpu(), minlength=classes)
        means = sums / counts.clamp(min=1)[:, None]
        # Nothing is nearest to a class without images: it lies opposite to all.
        means[counts == 0] = -sums.sum(0)
        self.head.weight.copy_(means.float())  # type: ignore[operator]

    def classifier(self) -> Classifier:
        """Encoder and the head of means."""
        return self.context.build_classifier(self.encoder, self.head, prior_strength=1.0)


def _linear(head: nn.Module) -> LinearHead:
    if not isinstance(head, LinearHead):
        raise UserError(
            "the representation has a cosine head, but it is the weights of a linear one that are rescaled."
        )
    return head
