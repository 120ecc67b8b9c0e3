"""How images become what an encoder sees: size, crop and statistics, chosen from the images and the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longtail.config import TrainConfig, resolved
from longtail.data import DataSplits, FeatureSet, Framing, ImageFiles
from longtail.data.feature_origin import read_origin
from longtail.errors import UserError
from longtail.files import load_meta
from longtail.models import (
    Classifier,
    EncoderDefaults,
    encoder_defaults,
    published_name,
)
from longtail.training.kept_encoder import with_encoder

TINY_SIDE = 16
"""Images up to this side (pixels) get the small network; arrays of any larger size a CIFAR ResNet."""


SMALL_SIDE = 96
"""Files up to this side get a ResNet-18 and stay in memory; larger ones are photographs: ResNet-50 at 224, streamed."""


SMALL_FRAMES = (16, 24, 32, 48, 64, 96)
"""Sides that small files are brought to, whichever is nearest."""


Choose = Callable[[str, Any], Any]


def choose_framing(choose: Choose, config: TrainConfig, data: DataSplits, backbone: str, side: int) -> tuple[int, int]:
    """Choose how files become what the encoder sees, and return that size; arrays are used as they are."""
    train = data.train
    if isinstance(train, FeatureSet) and (config.source.mean is not None or config.source.std is not None):
        raise UserError("features are standardised by their own statistics; leave out --source.mean and --source.std.")
    own = None if isinstance(train, FeatureSet) else _own_defaults(backbone, config.pretrained)
    # Weights know images that are normalised as theirs were, whatever the statistics of these.
    known = own is not None and (config.pretrained != "none" or not data.mean)
    if own is not None and known and len(own.mean) == train.channels:
        choose("source.mean", list(own.mean))
        choose("source.std", list(own.std))
    if not isinstance(train, ImageFiles):
        size = train.image_size
        if config.image_size is not None and isinstance(train, FeatureSet):
            raise UserError("--image_size is for images, but the data are features; leave it out.")
        if config.image_size is not None and size != (config.image_size, config.image_size):
            raise UserError(
                f"--image_size {config.image_size} cannot be had: arrays are used at their own size, {size[0]} x "
                f"{size[1]}; leave it out, or give the images as files."
            )
        _check_statistics(config, train.channels)
        return size
    small = side <= SMALL_SIDE and (own is None or config.backbone is None)
    nearest = side if side <= TINY_SIDE else min(SMALL_FRAMES, key=lambda frame: abs(frame - side))
    usual = min(nearest, 32) if own is None else nearest if small else own.image_size[0]
    side_chosen = choose("image_size", usual)
    # The edge of a photograph is cut off as the model is used to; of a small image nothing is.
    ratio = 1.0 if own is None or small else own.resize / own.image_size[0]
    choose("loading.resize", max(math.floor(side_chosen * ratio), side_chosen))
    choose("loading.interpolation", "bilinear" if own is None else own.interpolation)
    choose("loading.resident", encoder_defaults(backbone) is None or small)
    if config.loading.resize is not None and config.loading.resize < side_chosen:
        raise UserError(
            f"--loading.resize {config.loading.resize} is below --image_size {side_chosen}, which is cut out of it."
        )
    _check_statistics(config, train.channels)
    return side_chosen, side_chosen


def _own_defaults(backbone: str, weights: str | None) -> EncoderDefaults | None:
    """Return how an encoder takes its images: as its weights were trained, if they are not its usual ones."""
    usual = encoder_defaults(backbone)
    if weights in (None, "auto", "none", "hub"):
        return usual
    recorded = recorded_defaults(backbone, str(weights))
    if recorded is not None:
        return recorded
    if usual is None or Path(str(weights)).exists():
        return usual
    try:
        return encoder_defaults(published_name(backbone, str(weights)))
    except UserError:  # a repository, or a name that is refused before training
        return usual


def recorded_defaults(backbone: str, weights: str) -> EncoderDefaults | None:
    """Return how the images of a run's weights were taken, or of those that ``longtail embed`` wrote; None of others.

    Both are also known by their file, beside which their record lies.
    """
    path = Path(weights)
    if (path / "model.json").exists():
        return _of_run(path)
    if path.suffix != ".safetensors" or not (path.is_file() and path.with_suffix(".json").is_file()):
        return None
    try:
        record = load_meta(path.parent, path.stem)
        if path.stem == "model":
            return _of_run(path.parent)
        origin = read_origin(record["origin"], path.parent)
    except (UserError, KeyError, TypeError, ValueError):  # a record of another program, or of something else
        return None
    framing = origin.framing
    # A record of features names the encoder's file too, but lies beside the features.
    if origin.encoder != backbone or path.name not in ("encoder.safetensors", str(record["origin"]["file"])):
        return None
    return EncoderDefaults(framing.size, framing.resize, framing.interpolation, origin.mean, origin.std)


def _of_run(path: Path) -> EncoderDefaults:
    """Return how a run took its images, whose weights were made for them."""
    run = with_encoder(Classifier.load(path), path)  # of a run on features, the encoder that made them
    if run.takes_features:
        raise UserError(
            f"--pretrained {path} was trained on features, and their encoder is not kept; name another run."
        )
    framing, mean, std = run.framing, tuple(run.mean.tolist()), tuple(run.std.tolist())
    return EncoderDefaults(framing.size, framing.resize, framing.interpolation, mean, std)


def _check_statistics(config: TrainConfig, channels: int) -> None:
    source = config.source
    for key, values in (("source.mean", source.mean), ("source.std", source.std)):
        if values is not None and len(values) != channels:
            raise UserError(f"--{key} has {len(values)} values, but the images have {channels} channels.")
    if (source.mean is None) != (source.std is None):
        raise UserError("--source.mean and --source.std go together; give both.")


def chosen_framing(config: TrainConfig) -> Framing:
    """Return the framing of image files that resolved options say."""
    side = resolved(config.image_size)
    return Framing((side, side), resolved(config.loading.resize), resolved(config.loading.interpolation))
