"""What a finished run must be like to stand for an earlier stage of another."""

from __future__ import annotations

from pathlib import Path

import torch

from longtail.config import TrainConfig, get_option
from longtail.data import LabelledImages
from longtail.errors import UserError
from longtail.models import Classifier


def check_same_images(what: str, model: Classifier, config: TrainConfig, train: LabelledImages) -> None:
    """Raise :class:`UserError` unless ``model`` knows the classes and images of ``train``; ``what`` names it."""
    if model.class_names != train.class_names:
        raise UserError(f"the {what}'s classes are not those of the training data; train it on the same classes.")
    had, has = (model.spec["in_channels"], model.image_size), (train.channels, train.image_size)
    if had != has:
        raise UserError(
            f"the {what} was trained on {had[0]}-channel images of {had[1]}, the data has {has[0]} channels and "
            f"{has[1]}; train it on the same data."
        )
    if config.source.mean is not None and config.source.std is not None:
        own = torch.tensor([config.source.mean, config.source.std])
        if not torch.allclose(torch.stack([model.mean, model.std]).cpu(), own, atol=1e-3):
            raise UserError(
                f"the {what} was trained on images normalised by mean {model.mean.tolist()} and std "
                f"{model.std.tolist()}, this run normalises by {config.source.mean} and {config.source.std}; "
                f"give the {what}'s with --source.mean and --source.std."
            )


def ready_model(config: TrainConfig, option: str, what: str) -> Classifier:
    """Return the model of the finished run that ``option`` names, which is to be the ``what`` of this one.

    Raises:
        UserError: it has seen what folds test on, or is no run.
    """
    run = str(get_option(config, option))
    if config.folds is not None:
        raise UserError(
            f"--{option} cannot be used with --folds: that {what} has seen images that the folds test on; leave it "
            "out, so that every fold trains its own."
        )
    if not (Path(run) / "model.json").exists():
        raise UserError(f"--{option} {run} is no folder of a finished run.")
    return Classifier.load(run)


def ready_representation(config: TrainConfig, train: LabelledImages) -> Classifier:
    """Return the model of ``decoupled.run``, whose encoder stands for the representation of ``train``.

    Raises:
        UserError: it has seen what folds test on, or is of other images or another encoder.
    """
    model = ready_model(config, "decoupled.run", "representation")
    check_same_images("representation", model, config, train)
    if model.spec["encoder"] != config.backbone:
        raise UserError(
            f"the representation in {config.decoupled.run} is of a {model.spec['encoder']}, this run has --backbone "
            f"{config.backbone}; use --backbone {model.spec['encoder']}."
        )
    return model
