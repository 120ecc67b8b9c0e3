"""What tuning a part of the encoder asks of a run's options, found out before anything is trained."""

from __future__ import annotations

import torch

from longtail.config import TrainConfig
from longtail.errors import UserError
from longtail.methods import get_method, is_read
from longtail.models import build_encoder, check_tuning, layer_depths


def check_tuned_encoders(config: TrainConfig, in_channels: int, image_size: tuple[int, int]) -> None:
    """Raise :class:`UserError` unless the way of tuning fits every encoder that a run of resolved options trains."""
    tune = config.tune
    if tune.kind != "full" and config.decoupled.run is not None and is_read(config.method, "decoupled.run"):
        raise UserError(
            f"--tune.kind {tune.kind} says how an encoder is trained, but the one of --decoupled.run stays as it is; "
            "leave one of them out."
        )
    if tune.kind == "full" and tune.lr_decay == 1:
        return
    for stage in get_method(config.method).stages(config, config.method):
        try:
            check_tuning(tune, stage.backbone, in_channels, image_size)
            if tune.lr_decay != 1:
                with torch.device("meta"):
                    layer_depths(build_encoder(stage.backbone, in_channels, image_size))
        except UserError as error:
            if stage.name != "teacher" or stage.backbone == config.backbone:
                raise
            raise UserError(
                f"{str(error).rstrip('.')}; it is the teacher's, which is tuned likewise: choose another "
                "--teacher.backbone, or train the teacher as a run of its own and give it with --teacher.run."
            ) from None


def check_tuned_start(config: TrainConfig, given: TrainConfig) -> None:
    """Raise :class:`UserError` if a little of an encoder is to be trained that has learned nothing yet.

    Random weights are taken if the user asked for them with ``--pretrained none``.

    Args:
        config: with the weights chosen.
        given: before they were.
    """
    kind = config.tune.kind
    if kind == "full" or given.pretrained == "none":
        return
    starts = [(config.backbone, config.pretrained)]
    teaches = any(stage.name == "teacher" for stage in get_method(config.method).stages(config, config.method))
    if teaches and given.teacher.pretrained != "none":
        starts.append((config.teacher.backbone, config.teacher.pretrained))
    for backbone, weights in starts:
        if weights == "none":
            raise UserError(
                f"--tune.kind {kind} trains little or nothing of an encoder, but there are no pretrained weights for "
                f"{backbone}; give some with --pretrained FILE, or --pretrained none to start from random ones."
            )
