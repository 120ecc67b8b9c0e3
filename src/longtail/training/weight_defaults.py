"""The weights that encoders and heads start from: which are meant, made sure of before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longtail.config import TrainConfig, get_option, replace_options, resolved
from longtail.data import DataSplits
from longtail.errors import UserError
from longtail.methods import get_method, is_read
from longtail.models import (
    check_text_tower,
    choose_weights,
    class_prompts,
    encoder_defaults,
    has_several_statistics,
    is_open_clip,
    is_published,
)
from longtail.models.prompts import TEMPLATES, first_identifier
from longtail.option_groups import StartOptions
from longtail.training.framing_defaults import recorded_defaults
from longtail.training.tuned_defaults import check_tuned_start


def choose_pretrained(config: TrainConfig, data: DataSplits) -> tuple[TrainConfig, list[str]]:
    """Return resolved options with the weights that encoders start from, made sure of, and notes on them.

    Raises:
        UserError: weights that were asked for cannot be had or do not fit.
    """
    for key in ("pretrained", "teacher.pretrained"):
        start = get_option(config, key)
        if config.folds is not None and start is not None and (Path(start) / "model.json").exists():
            raise UserError(
                f"--{key} {start} cannot be used with --folds: that run may have seen images that the folds test on."
            )
    channels = data.train.channels
    side = config.image_size
    size = (side, side) if side is not None else data.train.image_size
    chosen: dict[str, Any] = {}
    notes: list[str] = []
    if config.decoupled.run is not None and is_read(config.method, "decoupled.run"):
        chosen["pretrained"], note = config.pretrained or "none", None  # the encoder is that run's
    else:
        chosen["pretrained"], note = choose_weights(resolved(config.backbone), config.pretrained, channels, size)
    notes += [note] if note else []
    teaches = trains_teacher(config) or config.teacher.kind == "pretrained"
    same = config.teacher.backbone == config.backbone and config.teacher.pretrained is None
    if not teaches:
        chosen["teacher.pretrained"] = config.teacher.pretrained or "none"
    elif same:
        chosen["teacher.pretrained"] = chosen["pretrained"]
    else:
        wanted = config.teacher.pretrained
        wanted = "none" if wanted is None and config.pretrained == "none" else wanted
        weights, note = choose_weights(resolved(config.teacher.backbone), wanted, channels, size)
        chosen["teacher.pretrained"] = weights
        notes += [note] if note and note not in notes else []
    notes += _unknown_statistics(config, str(chosen["pretrained"]))
    config, asked = replace_options(config, chosen), config
    check_tuned_start(config, asked)
    chosen["start.head"], note = _choose_head(config, data)
    notes += [note] if note else []
    return replace_options(config, chosen), notes


def _unknown_statistics(config: TrainConfig, weights: str) -> list[str]:
    """Return a note where nothing says how the images that weights were trained on had been normalised."""
    encoder = resolved(config.backbone)
    told = weights == "none" or is_published(encoder, weights) or (Path(weights) / "model.json").exists()
    if told or recorded_defaults(encoder, weights) is not None:
        return []
    if not is_open_clip(encoder):
        return _guessed_statistics(config, encoder, weights)
    if config.source.mean is None or not has_several_statistics(encoder):
        return []
    mean = ", ".join(f"{value:.3g}" for value in config.source.mean)
    return [
        f"{weights} does not say how its images were normalised; those of {encoder} usually are by mean {mean}: if it "
        "was trained otherwise, give --source.mean and --source.std."
    ]


def _guessed_statistics(config: TrainConfig, encoder: str, weights: str) -> list[str]:
    """Return a note on the statistics that are used with a file of weights, unless the user gave them."""
    usual, mean = encoder_defaults(encoder), config.source.mean
    if not Path(weights).is_file() or (mean is not None and (usual is None or list(usual.mean) != list(mean))):
        return []
    what = "those of these training images" if mean is None else f"those usual for {encoder}"
    return [
        f"{weights} does not say how its images were normalised; {what} are used: if it was trained otherwise, give "
        "--source.mean and --source.std."
    ]


def _choose_head(config: TrainConfig, data: DataSplits) -> tuple[str | None, str | None]:
    """Return what the head starts from, for options with their weights, and a note where texts could not be used.

    It is None, which is to say at random, where the encoder leaves no choice.

    Raises:
        UserError: texts were asked for and cannot be used, or their prompts do not fit the classes.
    """
    encoder, weights, wanted = resolved(config.backbone), resolved(config.pretrained), config.start.head
    asked = f"--start.prompts {config.start.prompts} has no effect: the head starts at random."
    unread = asked if config.start.prompts != StartOptions().prompts else None
    if wanted == "random" or (wanted is None and not is_open_clip(encoder)):
        return wanted, unread
    if wanted is None and weights == "none":
        return "random", unread
    try:
        check_text_tower(encoder, weights)
    except UserError as error:
        if wanted == "text":
            raise
        return "random", f"the head starts at random ({str(error).split('; ')[0]})."
    prompts, names = config.start.prompts, data.train.class_names
    class_prompts(prompts, names)
    identifier = first_identifier(names)
    if identifier is not None and prompts in TEMPLATES:
        why = f"the name of class {identifier!r} is an identifier, which says nothing to a text tower"
        if wanted == "text":
            raise UserError(f"{why}; give every class its sentences: --start.prompts FILE, or --start.head random.")
        return "random", f"the head starts at random: {why}; give sentences with --start.prompts FILE."
    return "text", None


def trains_teacher(config: TrainConfig) -> bool:
    """Return whether the run of resolved options trains a frozen teacher before its last stage."""
    return any(stage.name == "teacher" for stage in get_method(config.method).stages(config, config.method))
