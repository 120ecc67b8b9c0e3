"""A stage's step, counted: the real method of the run, its encoders on the meta device, takes one step there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from longtail.config import TrainConfig, replace_options, resolved
from longtail.data import DataSplits, ImageFiles
from longtail.data.loading import Batch
from longtail.data.shares import check_divides
from longtail.errors import UserError
from longtail.methods import Method, MethodContext, Stage, get_method
from longtail.models import Classifier, feature_dim
from longtail.planning.communication import StepSizes
from longtail.planning.ledger import Operation, counted_step
from longtail.training.stages import plan_stages
from longtail.training.weights import dealt_weights, pieces_of
from longtail.training.whole_batch import micro_batches

_STATE_TENSORS = {"sgd": 1, "adamw": 2}
_STEP_PASSES = {"sgd": 5, "adamw": 7}
"""How often an optimiser's step reads or writes a number for each parameter."""
PARTS = ("student", "teacher", "projections", "contrast", "classifier", "rest", "optimiser")


@dataclass(frozen=True)
class StageCount:
    """What a step of a stage does on one of several devices, and what it holds.

    Attributes:
        stage: the stage.
        steps: optimiser steps in all.
        operations: of one step.
        views: augmented views of each image that a step takes.
        prepared: images that go through an encoder before the first step.
        memory: bytes by what they are for, without what a program itself takes.
        held_between: of "activations and working memory", bytes that lie between forward and backward pass.
        sizes: what decides how much is exchanged.
    """

    stage: Stage
    steps: int
    operations: tuple[Operation, ...]
    views: int
    prepared: int
    memory: Mapping[str, int]
    held_between: int
    sizes: StepSizes

    @property
    def flops(self) -> int:
        """Operations of a step on one device."""
        return sum(operation.flops for operation in self.operations)


class _OnMeta(MethodContext):
    """Builds encoders without values; all else is as in a run."""

    def build_encoder(self) -> nn.Module:
        with torch.device("meta"):
            return super().build_encoder()

    def build_pretrained_teacher(self) -> nn.Module:
        with torch.device("meta"):
            return super().build_pretrained_teacher()


class _OfAll(nn.Module):
    """An encoder whose features those of the other processes join: their shapes, not their values."""

    def __init__(self, encoder: nn.Module, ranks: int) -> None:
        super().__init__()
        self.encoder, self.ranks, self.feature_dim = encoder, ranks, feature_dim(encoder)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.encoder(images)
        return features.repeat(self.ranks, 1) if self.ranks > 1 else features


def count_stages(config: TrainConfig, data: DataSplits, gpus: int = 1, sharded: bool = False) -> list[StageCount]:
    """Return a step's counts for every stage that is trained.

    Args:
        config: resolved options; ``batch_size`` is that of all devices together.
        data: only labels and sizes of its images are looked at.
        gpus: devices that share a step: encoders take a part of the batch each, what follows them takes all of it.
        sharded: whether each device holds and projects the queue of its own classes only.

    Raises:
        UserError: the batch cannot be shared out equally, or there is nothing to shard.
    """
    check_divides(resolved(config.batch_size), gpus, config.optimiser.accumulate)
    if config.teacher.run is not None or config.decoupled.run is not None:
        option = "teacher.run" if config.teacher.run is not None else "decoupled.run"
        raise UserError(f"--{option} is not looked into by longtail plan; name its encoder (--teacher.backbone).")
    config = replace_options(config, {"pretrained": "none", "teacher.pretrained": "none"})
    # The values do not matter, but a teacher must agree with its student.
    mean, std = (tuple(given or (0.5,) * data.train.channels) for given in (config.source.mean, config.source.std))
    previous: dict[str, Classifier] = {}
    counts = []
    # Building heads draws from torch's generator; the caller's is left as it was.
    with torch.random.fork_rng(devices=[]):
        for stage in plan_stages(config):
            context = _OnMeta(
                _one_share(config, stage, gpus) if sharded else config,
                *(stage, data.train, mean, std, previous.get(stage.takes or "")),
            )
            method = get_method(stage.method).build(context).to("meta").train()
            classifier = method.classifier()
            assert isinstance(classifier, Classifier)
            previous[stage.name] = classifier
            if stage.epochs:
                counts.append(_count(method, config, stage, data, gpus, sharded))
    if sharded and not any(count.sizes.sharded for count in counts):
        raise UserError(f"--queue.sharded shares out a queue of classes, but {config.method} has none; leave it out.")
    return counts


def _one_share(config: TrainConfig, stage: Stage, gpus: int) -> TrainConfig:
    """Return options under which a stage's queue is as long as one device's share; how it is dealt costs nothing."""
    capacity = -(-resolved(config.queue.capacity) // gpus)
    return replace_options(config, {"queue.capacity": capacity, "queue.kind": "fifo"})


def _count(method: Method, config: TrainConfig, stage: Stage, data: DataSplits, gpus: int, sharded: bool) -> StageCount:
    batch, parts = resolved(config.batch_size), config.optimiser.accumulate
    trained = [p for p in method.parameters() if p.requires_grad]
    memory = _held(method, config, data, trained)
    memory["gradients"] = sum(p.numel() * 4 for p in trained)
    sizes = _sizes(method, batch, trained, sharded)
    dealt = config.optimiser.shard and gpus > 1
    if dealt:
        student, taught = _dealt(method, memory, gpus)
        sizes = replace(sizes, parts=parts, student_shards=student, teacher_shards=taught)
    method.encoder = _OfAll(method.encoder, gpus)
    teacher = getattr(method, "teacher", None)
    if isinstance(teacher, nn.Module):
        teacher.encoder = _OfAll(teacher.get_submodule("encoder"), gpus)
    half = config.precision == "bfloat16"
    if half:
        # Of shards they are what is put together, and counted there.
        inside = {id(p) for p in dealt_weights(method.encoder)} if dealt else set()
        memory["weights in bfloat16"] = sum(2 * p.numel() for p in trained if id(p) not in inside)
        _halve(method)
    size = data.train.image_size
    shape = (batch // gpus, data.train.channels, *size)
    views = {name: torch.empty(shape, device="meta") for name in method.views}
    whole = torch.empty(batch, dtype=torch.int64, device="meta")
    memory["images (this batch and the next)"] = 2 * sum(view.numel() * 4 for view in views.values())
    with counted_step(method) as ledger:
        for part, module in _parts(method):
            ledger.watch(module, part)
        taken = Batch(views, whole, whole)
        method.update_memory(taken)
        for _ in range(2 if config.optimiser.sharpness else 1):
            for part in micro_batches(taken, parts, gpus):
                losses = method(part, 0.0)
                method.readings()
                held = ledger.alive
                ledger.part = "rest"
                torch.autograd.backward(torch.stack(list(losses.values())).sum())
        gradients = sum(p.grad.numel() * p.grad.element_size() for p in trained if p.grad is not None)
    memory["activations and working memory"] = max(ledger.peak - gradients, 0)
    passes = _STEP_PASSES[resolved(config.optimiser.name)] + (3 if config.optimiser.ema else 0)
    moved = passes * sum(4 * p.numel() for p in trained)
    return StageCount(
        stage,
        stage.epochs * (len(data.train) // batch),
        (*ledger.operations, Operation("optimiser", "memory", 0, moved, False)),
        len(method.views),
        method.images_prepared(),
        memory,
        held,
        sizes,
    )


def _parts(method: Method) -> Iterator[tuple[str, nn.Module]]:
    for name, child in method.named_children():
        if name == "encoder":
            yield "student", child
        elif name == "teacher":
            yield "teacher", child.get_submodule("encoder")
        elif name.endswith("projection"):
            yield "projections", child
        elif "contrast" in name and name.endswith("loss"):
            yield "contrast", child
        elif name in ("head", "classifier_loss", "loss"):
            yield "classifier", child


def _held(method: Method, config: TrainConfig, data: DataSplits, trained: list[nn.Parameter]) -> dict[str, int]:
    """Return the bytes of what lies on a device through the whole stage."""
    memory = {"weights": 0, "teacher": 0, "queue": 0}
    for name, child in method.named_children():
        kind = "teacher" if name in ("teacher", "cache") else "queue" if name == "queue" else "weights"
        memory[kind] += _size(child)
    memory["optimiser"] = _STATE_TENSORS[resolved(config.optimiser.name)] * sum(4 * p.numel() for p in trained)
    if config.optimiser.ema:
        memory["moving average"] = _size(method.encoder) + _size(method.head)
    if not isinstance(data.train, ImageFiles) or config.loading.resident:
        height, width = data.train.image_size
        memory["training images"] = len(data.train) * data.train.channels * height * width
    return memory


def _dealt(method: Method, memory: dict[str, int], gpus: int) -> tuple[int, int]:
    """Deal the encoders' weights in ``memory`` to ``gpus`` devices; return the bytes of the student's and teacher's."""
    teacher = getattr(method, "teacher", None)
    encoders = [(method.encoder, "weights")]
    if isinstance(teacher, nn.Module):
        encoders.append((teacher.get_submodule("encoder"), "teacher"))
    found, away, whole = [], 1 - 1 / gpus, 0
    # A moving average covers all of the encoder, an optimiser what is trained, once or twice.
    states = memory["optimiser"] / max(1, memory["gradients"])
    for encoder, kind in encoders:
        weights = dealt_weights(encoder)
        size = sum(4 * p.numel() for p in weights)
        trained = sum(4 * p.numel() for p in weights if p.requires_grad)
        memory[kind] -= round(away * size)
        if encoder is method.encoder:
            dealt = {"gradients": trained, "optimiser": states * trained, "moving average": size}
            for name in memory.keys() & dealt.keys():
                memory[name] -= round(away * dealt[name])
        # Two pieces are whole at a time: one computes, the next is being gathered; and so is what is in none of them.
        pieces = [sum(4 * p.numel() for p in dealt_weights(piece)) for piece in pieces_of(encoder)]
        whole += 2 * max(pieces, default=0) + size - sum(pieces)
        found.append(size)
    memory["weights put together"] = whole
    return found[0], sum(found[1:])


def _sizes(method: Method, batch: int, trained: list[nn.Parameter], sharded: bool) -> StepSizes:
    queue, teacher = getattr(method, "queue", None), getattr(method, "teacher", None)
    features = getattr(queue, "features", None)
    through = [name for name in method.views if name != "key" or teacher is None]
    norms = [
        module.num_features
        for module in method.encoder.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    ]
    return StepSizes(
        batch=batch,
        gradient_bytes=sum(4 * p.numel() for p in trained),
        student_views=len(through),
        student_dim=feature_dim(method.encoder),
        teacher_dim=0 if features is None else features.shape[1],
        norm_channels=tuple(norms),
        key_norm_channels=sum(
            module.num_features
            for name, child in method.named_children()
            for module in child.modules()
            if name == "key_projection" and isinstance(module, nn.modules.batchnorm._BatchNorm)
        ),
        queue_bytes=0 if features is None else features.numel() * 4,
        sharded=sharded and features is not None,
        buffer_bytes=sum(b.numel() * b.element_size() for b in method.encoder.buffers()),
    )


def _halve(method: Method) -> None:
    """Let the networks take and give bfloat16, which is what autocast comes to in memory and in rates."""

    def cast(_: nn.Module, given: Any) -> Any:
        return tuple(x.to(torch.bfloat16) if isinstance(x, Tensor) and x.is_floating_point() else x for x in given)

    for part, module in _parts(method):
        if part in ("student", "teacher", "projections"):
            module.to(torch.bfloat16)
            module.register_forward_pre_hook(cast)


def _size(module: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in (*module.parameters(), *module.buffers()))
