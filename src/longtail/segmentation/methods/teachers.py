"""What a teacher of pixels must be like, and which options of one there are."""

from __future__ import annotations

from pathlib import Path

import torch

from longtail.config import TrainConfig
from longtail.errors import UserError
from longtail.segmentation.data.mask_set import MaskFiles
from longtail.segmentation.methods.base import CHANNELS
from longtail.segmentation.models import Segmenter


def check_teacher_options(config: TrainConfig) -> None:
    """Raise :class:`UserError` for options of a teacher that segmentation has not, or that contradict each other."""
    own = config.teacher
    if own.kind == "pretrained":
        raise UserError(
            "--teacher.kind pretrained has no decoder that was trained, so it knows no pixels; use frozen, momentum or "
            "none."
        )
    if own.cache:
        raise UserError(
            "--teacher.cache keeps one feature an image, and segmentation needs its pixels; leave it out (0)."
        )
    if own.run is not None and own.kind != "frozen":
        raise UserError(
            f"--teacher.run gives a frozen teacher, not --teacher.kind {own.kind}; leave one of them out, or give "
            "--teacher.kind frozen."
        )
    if own.kind == "none" and config.loss.distillation_weight:
        raise UserError(
            "--loss.distillation_weight needs a teacher, but --teacher.kind none has none; leave one of them out."
        )


def ready_segmenter(run: str) -> Segmenter:
    """Return the model of the finished run that ``teacher.run`` names.

    Raises:
        UserError: it is no run, or not one of segmentation.
    """
    if not (Path(run) / "model.json").exists():
        raise UserError(f"--teacher.run {run} is no folder of a finished run.")
    return Segmenter.load(run)


def check_teacher(teacher: Segmenter, config: TrainConfig, train: MaskFiles) -> None:
    """Raise :class:`UserError` unless ``teacher`` knows the classes and images of ``train``."""
    if tuple(teacher.class_names) != tuple(train.class_names):
        raise UserError("the teacher's classes are not those of the training masks; train it on the same classes.")
    if teacher.spec["in_channels"] != CHANNELS:
        raise UserError(f"the teacher takes {teacher.spec['in_channels']}-channel images, segmentation takes 3.")
    had, has = teacher.size, train.size
    if had != has:
        raise UserError(
            f"the teacher was trained on images brought to {_in_words(had)}, this run's are brought to "
            f"{_in_words(has)}; give both the same --segmentation.resize."
        )
    if config.source.mean is not None and config.source.std is not None:
        own = torch.tensor([config.source.mean, config.source.std])
        if not torch.allclose(torch.stack([teacher.mean, teacher.std]).cpu(), own, atol=1e-3):
            raise UserError(
                f"the teacher was trained on images normalised by mean {teacher.mean.tolist()} and std "
                f"{teacher.std.tolist()}, this run normalises by {config.source.mean} and {config.source.std}; "
                "give the teacher's with --source.mean and --source.std."
            )


def _in_words(size: tuple[int, int] | None) -> str:
    return "no size" if size is None else f"{size[0]}x{size[1]}"
