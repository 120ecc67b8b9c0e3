"""What options come to in a run: those that change nothing, or less than their name says, are told before training."""

from __future__ import annotations

from longtail.config import TrainConfig
from longtail.data import DataSplits, FeatureSet, ImageFiles
from longtail.errors import UserError
from longtail.methods import is_read
from longtail.models import encoder_defaults
from longtail.training.weight_defaults import trains_teacher

_FAR = 2
"""How many times larger the images of an encoder are than those at hand for it to be told."""


def effect_notes(asked: TrainConfig, config: TrainConfig, data: DataSplits) -> list[str]:
    """Return sentences on options of a run that do not do what their user may think.

    Args:
        asked: options as given.
        config: with every open one chosen.
        data: that the run is on.

    Raises:
        UserError: an option of images, for features.
    """
    features, kind = isinstance(data.train, FeatureSet), config.tune.kind
    if features and kind != "full":
        raise UserError(
            f"--tune.kind {kind} is for an encoder of images, but the data are features; leave it out, or give "
            "--backbone features for a classifier alone."
        )
    if asked == config:  # a run that goes on: all was chosen, and told, when it began
        return []
    notes = []
    if config.loss.contrast_weight and is_read(config.method, "loss.contrast_weight"):
        idle = "the contrast shapes its own projections and nothing that is deployed"
        if config.backbone == "features":
            notes.append(f"with --backbone features {idle}; leave it out to train a residual adapter.")
        if kind == "frozen":
            notes.append(
                f"with --tune.kind frozen {idle}; take --tune.kind adapter or lora, or embed the images (longtail "
                "embed) and train on their features."
            )
    usual = None if features or isinstance(data.train, ImageFiles) else encoder_defaults(str(config.backbone))
    side = max(data.train.image_size) if usual is not None else 0
    if usual is not None and asked.pretrained != "none" and usual.image_size[0] >= _FAR * side:
        notes.append(
            f"{config.backbone} was made for images of {usual.image_size[0]} pixels, and these arrays have {side}: it "
            "may see little in them; give them as files to have them enlarged."
        )
    if asked.teacher.epochs is not None and is_read(config.method, "teacher.epochs") and not trains_teacher(config):
        why = f"a teacher of --teacher.kind {config.teacher.kind} is not trained"
        why = "the teacher of --teacher.run is trained already" if config.teacher.run is not None else why
        notes.append(f"--teacher.epochs {asked.teacher.epochs} is not used: {why}.")
    return notes
