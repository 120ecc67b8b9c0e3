"""The contract between a method and the loop that trains it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from longtail.config import TrainConfig, resolved
from longtail.data import LabelledImages
from longtail.data.loading import Batch
from longtail.data.samplers import class_shares
from longtail.losses import balancing_weights
from longtail.models import (
    Classifier,
    CosineHead,
    apply_tuning,
    build_encoder,
    build_head,
    feature_dim,
    load_weights,
    merge_tuning,
    tuning_spec,
)

OWN_OPTIONS = ("views.", "loss.", "queue.", "teacher.", "decoupled.")
"""Groups of options that belong to methods and not to every run."""

Fetch = Callable[[str, Tensor, Tensor], Tensor]
"""``fetch(view name, ids [M], rounds [M]) -> images [M, C, H, W]``: views made outside any epoch."""


@dataclass(frozen=True)
class Stage:
    """One entry of a run's list of stages.

    Attributes:
        name: of the stage's folder and of its lines in ``metrics.jsonl``.
        method: registered name of the method that it trains.
        backbone: encoder name.
        epochs: passes over the training images.
        takes: name of the earlier stage whose classifier it is given, or None.
        weights: what the encoder starts from (see ``longtail.models.choose_weights``).
        ready: folder of a finished run that stands for the stage named by ``takes``; its model is copied there.
        sampler: how its epochs draw images; None = as the run's ``sampler`` says.
    """

    name: str
    method: str
    backbone: str
    epochs: int
    takes: str | None = None
    weights: str = "none"
    ready: str | None = None
    sampler: str | None = None


@dataclass(frozen=True)
class MethodContext:
    """What a method is built from.

    Attributes:
        config: the resolved options of the run (no None left where a default exists).
        stage: the stage it is built for.
        train: the training set; methods may look at labels and counts, images come through batches.
        mean, std: pixel statistics, for the classifier that is deployed.
        previous: the classifier of the stage named by ``stage.takes``.
        resumed: whether a saved state will replace all that is built, so that initial weights need not be loaded.
        text_weights: ``[C, D]``, what the classes are called in the encoder's space (rows of length 1); heads on the
            encoder start from it. None = they start at random.
    """

    config: TrainConfig
    stage: Stage
    train: LabelledImages
    mean: tuple[float, ...]
    std: tuple[float, ...]
    previous: Classifier | None = None
    resumed: bool = False
    text_weights: Tensor | None = None

    @property
    def sampler(self) -> str:
        """How the stage's epochs draw images."""
        return self.stage.sampler or resolved(self.config.sampler)

    @property
    def of_run(self) -> bool:
        """Whether the stage trains the run's own method: not a teacher, say, which its rebalancing leaves alone."""
        return self.stage.method == self.config.method

    @property
    def mixup(self) -> float:
        """Alpha of mixup in this stage, 0 for none."""
        return self.config.loss.mixup if self.of_run else 0.0

    def class_weights(self) -> Tensor | None:
        """Return the weight of each class in the loss, float32 ``[C]``, or None if all weigh alike."""
        loss = self.config.loss
        kind = resolved(loss.class_weights)
        if kind == "none" or not self.of_run:
            return None
        return balancing_weights(self.train.class_counts, kind, loss.effective_beta).float()

    def drawn_shares(self) -> Tensor:
        """Return the share of each class in what the stage's last epoch draws, float64 ``[C]``."""
        progress = 1.0 - 1.0 / max(self.stage.epochs, 1)
        shares = class_shares(self.sampler, self.train.class_counts.tolist(), progress)
        return torch.tensor(shares, dtype=torch.float64)

    def build_encoder(self) -> nn.Module:
        """Return the stage's encoder, initialised from torch's current random state or from the stage's weights.

        As much of it is trained as ``config.tune`` says, in every stage that builds one: to train a teacher whole for a
        student of which only a little is trained would be a surprise.
        """
        encoder = build_encoder(self.stage.backbone, self.train.channels, self.train.image_size)
        if self.stage.weights != "none" and not self.resumed:
            load_weights(encoder, self.stage.backbone, self.stage.weights, self.train.channels)
        return apply_tuning(encoder, self.config.tune, self.stage.backbone)

    def build_pretrained_teacher(self) -> nn.Module:
        """Return the encoder that ``teacher.backbone`` names with its pretrained weights, which nothing has tuned.

        They are loaded in a run that goes on too: a cache of its features is filled before the saved state is there.
        """
        own = self.config.teacher
        name = resolved(own.backbone)
        encoder = build_encoder(name, self.train.channels, self.train.image_size)
        weights = own.pretrained or "none"
        if weights != "none":
            load_weights(encoder, name, weights, self.train.channels)
        return encoder

    def build_head(self, encoder: nn.Module, kind: str) -> nn.Module:
        """Return a ``cosine`` or ``linear`` head for the training set's classes, fresh or from ``text_weights``.

        From texts either head predicts what the zero-shot classifier does. A cosine head's logits are its cosines times
        ``loss.scale``; a linear head's (weights of length 1, no bias) are its cosines times the feature's own length,
        which shifts no prediction and spares the softmax a scale that was trained for features of length 1.
        """
        head = build_head(kind, feature_dim(encoder), self.train.num_classes, self.config.loss.scale)
        if self.text_weights is not None:
            start = {"weight": self.text_weights, "bias": torch.zeros(self.train.num_classes)}
            head.load_state_dict({name: start[name] for name in head.state_dict()})
        return head

    def build_classifier(
        self,
        encoder: nn.Module,
        head: nn.Module,
        prior_strength: float,
        class_weights: Tensor | None = None,
    ) -> Classifier:
        """Wrap what was trained with ``prior_strength`` times log p(c) added to its logits.

        What the raw softmax implies is told by :func:`implied_prior`: a class that the sampler draws more often, or
        that has a larger weight ``class_weights [C]`` in the loss, counts as if it had so many more images. What is
        deployed of a tuned encoder is the plain one where there is one (``merge_tuning``): of ``lora`` a copy, which
        shares no tensors with ``encoder``.
        """
        counts = self.train.class_counts
        seen = self.drawn_shares() / (counts.double() / counts.sum())
        if class_weights is not None:
            seen *= class_weights.detach().cpu().double()
        kind = "cosine" if isinstance(head, CosineHead) else "linear"
        spec: dict[str, Any] = {
            "encoder": self.stage.backbone,
            "in_channels": self.train.channels,
            "head": kind,
        }
        if isinstance(head, CosineHead):
            spec["scale"] = self.config.loss.scale
        encoder = merge_tuning(encoder)
        tuning = tuning_spec(encoder)
        if tuning is not None:
            spec["tuning"] = tuning
        return Classifier(
            encoder,
            head,
            class_names=self.train.class_names,
            class_counts=counts,
            logit_prior=implied_prior(counts, prior_strength, seen).float(),
            mean=self.mean,
            std=self.std,
            framing=self.train.framing,
            spec=spec,
        )


def implied_prior(
    class_counts: Tensor,
    prior_strength: float,
    seen: Tensor | None = None,
    adjusted_counts: Tensor | None = None,
) -> Tensor:
    """Return the class prior that the raw softmax implies after training with ``t log q(c)`` added to its logits.

    Training fits softmax(logits + t log q) to the training posterior, so the raw softmax implies a class prior
    proportional to p / q^t. With q = p that is p^(1-t): the training prior for plain cross entropy, uniform at t = 1.

    Args:
        class_counts: ``[C]``, of which p are the shares.
        prior_strength: t.
        seen: ``[C]``, how much more often than by its share the loss sees each class; None = 1 for all.
        adjusted_counts: ``[C]``, of which q are the shares; None = ``class_counts``. 0 where those are 0.

    Returns:
        float64 ``[C]``, sum 1.
    """
    present = class_counts > 0
    shares = class_counts.double() / class_counts.sum()
    prior = shares.pow(1.0 - prior_strength)
    if prior_strength > 1:  # a class without an image would be infinitely frequent
        prior = torch.where(present, prior, 0.0)
    if adjusted_counts is not None:
        prior *= torch.where(present, (shares * adjusted_counts.sum() / adjusted_counts).pow(prior_strength), 1.0)
    if seen is not None:
        prior *= torch.where(present, seen, 1.0)
    return prior / prior.sum()


class Trainable(nn.Module):
    """What the loop trains: it owns encoder, heads and memory, so that one ``state_dict`` is all it has learned.

    The loop calls, in this order: ``recompute`` whenever a stage starts or goes on; ``prepare`` once; then each step
    ``update_memory`` and ``forward``; ``on_epoch`` at the start of each epoch; ``finish`` once at the end;
    ``classifier`` whenever a model is wanted. Distributed training wraps and calls ``forward`` only, so ``forward``
    must not touch the memory.

    Attributes:
        views: view name to augmentation recipe; every batch holds these views.
        fetched_views: likewise; views that no batch holds, but that may be fetched.
        sampler: how an epoch draws images, a name of ``longtail.data.samplers``.
        classifies: whether ``classifier()`` can tell classes apart; if not (a representation alone), nothing of the
            stage is evaluated or selected, and its last epoch is what the next stage is given.
        encoder, head: what is deployed, and what a moving average of the weights covers.
        uses_progress: whether ``forward`` computes something else as ``progress`` rises, or shapes change from step to
            step. If not, a step may be captured once and replayed; ``on_epoch`` then changes what it changes in place
            (buffers, not attributes).
        passes: what a step costs, for the time left: forward and backward of one view through the encoder = 1.
        own_options: options of methods that it reads, each a dotted name or the start of one (``views.``).
        defaults: options of the method that are left open, by dotted name; they go before those chosen from the data.
            Each is a value, or a function of those chosen so far (by dotted name) that returns it.
    """

    own_options: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[Mapping[str, Any]] = {}
    views: dict[str, str]
    fetched_views: dict[str, str]
    passes: float = 1.0
    uses_progress: bool = False
    sampler: str = "instance"
    classifies: bool = True
    encoder: nn.Module
    head: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.fetched_views = {}

    @classmethod
    def stages(cls, config: TrainConfig, name: str) -> list[Stage]:
        """Return the stages that a run of this method (registered as ``name``) consists of; the last is the result."""
        weights = config.pretrained or "none"
        return [Stage("train", name, resolved(config.backbone), resolved(config.epochs), weights=weights)]

    @classmethod
    def reads(cls, option: str) -> bool:
        """Return whether a run of this method reads the option with that dotted name.

        Asked only of options that belong to methods: every run reads the others. What is not read is neither told as a
        difference between runs nor part of the command that trains a run again.
        """
        return option.startswith(cls.own_options)

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's parameter groups; a group may set its own ``weight_decay``."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def recompute(self, fetch: Any, labels: Tensor) -> None:
        """Compute what no checkpoint holds because it can be had again; as ``prepare`` is called. Default: nothing."""

    def prepare(self, fetch: Any, labels: Tensor) -> None:
        """Fill the memory before the first step, with what the loader's ``fetch`` gives. Default: nothing."""

    def forward(self, batch: Any, progress: float) -> dict[str, Tensor]:
        """Return the weighted scalar losses of a step, by name; ``progress`` runs from 0 to 1 over the stage."""
        raise TypeError(f"{type(self).__name__} does not say what a step computes")

    @torch.no_grad()
    def update_memory(self, batch: Any) -> None:
        """Take a batch into the memory: once an optimiser step, before the loss. Default: nothing."""

    def on_epoch(self, progress: float) -> None:
        """Start an epoch, or go on in the middle of one; what it sets may follow from ``progress`` only."""

    def finish(self) -> None:
        """Closed-form fits after the last step. Default: nothing."""

    def readings(self) -> dict[str, Tensor]:
        """Return figures of the last step worth a look (0-d tensors, by name), such as the temperature."""
        return {}

    def classifier(self) -> nn.Module:
        """Return what is deployed; it shares the method's tensors, but for an encoder tuned by ``lora``."""
        raise TypeError(f"{type(self).__name__} does not say what is deployed")


class Method(Trainable):
    """A method of image classification."""

    own_options: ClassVar[tuple[str, ...]] = OWN_OPTIONS

    @classmethod
    def build(cls, context: MethodContext) -> Method:
        """Return the method for ``context``."""
        raise TypeError(f"{cls.__name__} does not say how it is built")

    @classmethod
    def check(cls, config: TrainConfig, train: LabelledImages) -> None:
        """Raise :class:`UserError` for resolved options that this method cannot train with. Default: all fit."""

    def recompute(self, fetch: Fetch, labels: Tensor) -> None:
        """Compute what no checkpoint holds because it can be had again; as ``prepare`` is called. Default: nothing."""

    def images_prepared(self) -> int:
        """Return how many images ``recompute`` and ``prepare`` send through an encoder, for the time it takes."""
        return 0

    def prepare(self, fetch: Fetch, labels: Tensor) -> None:
        """Fill the memory before the first step. ``labels [N]`` are those of the training set. Default: nothing."""

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the weighted scalar losses of a step, by name; ``progress`` runs from 0 to 1 over the stage."""
        raise TypeError(f"{type(self).__name__} does not say what a step computes")

    @torch.no_grad()
    def update_memory(self, batch: Batch) -> None:
        """Take a batch into the memory: once an optimiser step, before the loss. Default: nothing."""

    def classifier(self) -> Classifier:
        """Return what is deployed; it shares the method's tensors, but for an encoder tuned by ``lora``."""
        raise TypeError(f"{type(self).__name__} does not say what is deployed")
