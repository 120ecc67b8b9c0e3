"""The teacher of GML: which kind fits, the stage that trains it, and what cannot teach these images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from longtail.config import TrainConfig, resolved
from longtail.data import LabelledImages
from longtail.data.loading import free_memory
from longtail.data.memory import available_bytes
from longtail.errors import UserError
from longtail.methods.base import Stage
from longtail.methods.ready import check_same_images, ready_model
from longtail.models import (
    FEATURE_ENCODERS,
    Classifier,
    CosineHead,
    build_encoder,
    feature_dim,
    is_open_clip,
)

CACHE_SHARE = 0.5
"""Of the free memory that cached features of a teacher may take."""


def fitting_teacher(chosen: Mapping[str, Any]) -> str:
    """Return the kind of teacher for what is chosen so far.

    An encoder that was pretrained on far more than these images knows more than a teacher trained on them would: that
    of features, CLIP's towers, and any that is only tuned. A ready run is a frozen teacher, whatever the student is.
    """
    if chosen["teacher.run"] is not None:
        return "frozen"
    encoder = chosen["backbone"]
    foundation = is_open_clip(encoder) or chosen["tune.kind"] != "full"
    known = encoder in FEATURE_ENCODERS or (foundation and chosen["pretrained"] != "none")
    return "pretrained" if known else "frozen"


def with_teacher(config: TrainConfig, student: Stage) -> list[Stage]:
    """Return the student's stage with a frozen teacher: trained before it with L_cls, or of a ready run."""
    own = config.teacher
    student = replace(student, takes="teacher", ready=own.run)
    if own.run:
        return [student]
    backbone, epochs, weights = resolved(own.backbone), resolved(own.epochs), own.pretrained or "none"
    return [Stage("teacher", "logit_adjustment", backbone, epochs, weights=weights, sampler="instance"), student]


def check_same_width(config: TrainConfig, train: LabelledImages) -> None:
    """Raise :class:`UserError` unless features of student and teacher can be compared as they are."""
    if config.teacher.kind == "momentum":
        return
    teacher = (
        config.teacher.backbone if config.teacher.run is None else Classifier.load(config.teacher.run).spec["encoder"]
    )
    with torch.device("meta"):
        widths = [
            feature_dim(build_encoder(str(name), train.channels, train.image_size))
            for name in (config.backbone, teacher)
        ]
    if widths[0] != widths[1]:
        raise UserError(
            f"--queue.project false compares features as they are, but {config.backbone} gives {widths[0]} of them and "
            f"the teacher's {teacher} {widths[1]}; leave it out, or give both the same encoder."
        )


def check_pretrained_teacher(config: TrainConfig) -> None:
    """Raise :class:`UserError` unless the teacher has pretrained weights, and nothing is asked of its classifier."""
    if config.teacher.pretrained == "none" and config.teacher.backbone not in FEATURE_ENCODERS:
        raise UserError(
            "--teacher.kind pretrained needs pretrained weights, but the teacher has none; name some with "
            "--pretrained, or let a teacher be trained: --teacher.kind frozen."
        )
    if config.loss.distillation_weight:
        raise UserError(
            "distillation compares the logits of two classifiers, but --teacher.kind pretrained has none; leave out "
            "--loss.distillation_weight, or give --teacher.kind frozen."
        )


def check_cache(config: TrainConfig, train: LabelledImages) -> None:
    """Raise :class:`UserError` if the features that ``--teacher.cache`` keeps do not fit into memory."""
    with torch.device("meta"):
        encoder = build_encoder(resolved(config.teacher.backbone), train.channels, train.image_size)
    needed = 4 * len(train) * config.teacher.cache * feature_dim(encoder)
    device = torch.device(config.device)
    free = available_bytes() if device.type == "cpu" else free_memory(device)
    if free is not None and needed > CACHE_SHARE * free:
        raise UserError(
            f"--teacher.cache {config.teacher.cache} keeps {needed / 2**30:.1f} GiB of features ({len(train)} images), "
            f"but {free / 2**30:.1f} GiB of memory are free; use fewer views, or 0."
        )


def check_ready_teacher(config: TrainConfig, train: LabelledImages) -> None:
    """Raise :class:`UserError` if there is a ``teacher.run`` that cannot be the frozen teacher of ``train``."""
    if config.teacher.run is None:
        return
    if config.teacher.kind != "frozen":
        raise UserError(
            f"--teacher.run gives a frozen teacher, not --teacher.kind {config.teacher.kind}; leave one of them out, "
            "or give --teacher.kind frozen."
        )
    check_teacher(ready_model(config, "teacher.run", "teacher"), config, train)


def check_teacher(teacher: Classifier, config: TrainConfig, train: LabelledImages) -> None:
    """Raise :class:`UserError` unless ``teacher`` knows the classes and images of ``train``."""
    check_same_images("teacher", teacher, config, train)
    if config.loss.distillation_weight and not isinstance(teacher.head, CosineHead):
        raise UserError(
            "distillation compares cosine logits, but the teacher has a linear head; use a teacher trained with "
            "logit_adjustment, or --loss.distillation_weight 0."
        )
