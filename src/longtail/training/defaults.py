"""Options that the user left open, chosen from the data.

The rules reproduce the settings of the GML paper where its data sets are concerned (CIFAR-LT: ResNet-32 with a
ResNet-56 teacher, 200 epochs, batch 128, rate 0.1, queue 4096 with at least 2 a class, projection 32, temperature 0.1).
They look at the data only, never at the machine: the same command gives the same run everywhere.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from longtail.config import TrainConfig, flatten, get_option, replace_options
from longtail.data import DataSplits, FeatureSet, ImageFiles, LabelledImages
from longtail.data.feature_set import STORED
from longtail.data.shares import largest_batch
from longtail.data.views import check_recipe
from longtail.errors import UserError
from longtail.methods import get_method, is_read
from longtail.models import (
    FEATURE_ENCODERS,
    build_encoder,
    default_rank,
    feature_dim,
    is_open_clip,
)
from longtail.training.devices import pick_device
from longtail.training.framing_defaults import SMALL_SIDE, TINY_SIDE, Choose, choose_framing
from longtail.training.option_effects import effect_notes
from longtail.training.precision import faster_precision, time_encoder
from longtail.training.tuned_defaults import check_tuned_encoders
from longtail.training.weight_defaults import trains_teacher

CIFAR_SIDE = 40
"""Image files up to this side (the median of their shorter sides) get a CIFAR ResNet at 32 pixels: its cost grows with
the square of the side, and a ResNet-18 learns more from 64 pixels in the same time."""
_IMAGES_A_STAGE = {False: 30_000, True: 1_000_000}
"""Small files, photographs: how many images a stage sees by default."""
_FEWEST_EPOCHS = {False: 10, True: 15}
_MOST_EPOCHS = 90


def typical_side(images: LabelledImages) -> int:
    """Return the longer side of arrays, or the median of the shorter sides of files."""
    if isinstance(images, ImageFiles):
        sides = images.sizes.min(1).values
        return int(sides[sides > 0].median())
    return max(images.image_size)


def resolve(config: TrainConfig, data: DataSplits, processes: int = 1) -> tuple[TrainConfig, list[str]]:
    """Return the options with every open one filled in but the weights, and notes for the user on what was changed.

    A batch that is larger than the training set becomes one that can be dealt to so many ``processes``.

    Raises:
        UserError: an option does not fit the data.
    """
    size, side, files = len(data.train), typical_side(data.train), isinstance(data.train, ImageFiles)
    features = isinstance(data.train, FeatureSet)
    # Not open, but what a method's own defaults may hang on.
    chosen: dict[str, Any] = {key: get_option(config, key) for key in ("tune.kind", "pretrained", "teacher.run")}
    notes: list[str] = []
    own = get_method(config.method).defaults

    def choose(key: str, value: Any) -> Any:
        given = get_option(config, key)
        if given is None:
            given = own.get(key, value)
            given = given(chosen) if callable(given) else given
        chosen[key] = given
        return given

    backbone = choose("backbone", _FEATURE_ENCODER if features else _fitting_encoder(side, files))
    check_takes(data.train, backbone, "backbone")
    # The teacher of a CIFAR ResNet-32 is a ResNet-56, as published; other encoders teach their own kind.
    teacher = "cifar_resnet56" if backbone == "cifar_resnet32" and not files else backbone
    if choose("teacher.kind", "none") == "pretrained" and features:
        teacher = "features"  # as they are, they are what a pretrained encoder says
    teacher = choose("teacher.backbone", teacher)
    check_takes(data.train, teacher, "teacher.backbone")
    image_size = choose_framing(choose, config, data, backbone, side)
    tiny, photos = max(image_size) <= TINY_SIDE and not features, files and min(image_size) > SMALL_SIDE
    encoder = _sketch(backbone, data.train.channels, image_size)
    _sketch(teacher, data.train.channels, image_size)  # refuses an unknown one
    passes = min(max(round(_IMAGES_A_STAGE[photos] / size), _FEWEST_EPOCHS[photos]), _MOST_EPOCHS)
    passes = _feature_epochs(size) if features else passes
    epochs = choose("epochs", 60 if tiny else passes if files or features else 200)
    choose("teacher.epochs", epochs)
    choose("decoupled.epochs", max(round(epochs / 9), 5))
    batch = choose("batch_size", 32 if tiny else 64 if files else _feature_batch(size) if features else 128)
    if batch > size:
        most = largest_batch(size, processes, config.optimiser.accumulate)
        notes.append(f"batch_size {batch} is larger than the training set; {most} is used.")
        batch = chosen["batch_size"] = most
    elif batch < 2:
        raise UserError("--batch_size must be 2 or more: batch normalisation needs more than one image.")
    for view in ("classifier", "query", "key"):
        fitting = data.views or ("tiny" if tiny else "light" if not photos else _PHOTO_VIEWS[view])
        recipe = choose(f"views.{view}", fitting)
        if not features:
            check_recipe(recipe, f"--views.{view}")
        elif recipe not in (STORED, "none"):
            raise UserError(
                f"--views.{view} {recipe} cannot be had: features are not augmented any more; store augmented views "
                "with longtail embed --views, and leave this out (stored), or give none for the first of them alone."
            )
    # Without batch normalisation (transformers, ConvNeXt) plain SGD at these rates does not train.
    has_norm = not features and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in encoder.modules())
    # Of a tuned encoder, heads, updates that start at zero, prompts and biases have gradients of very different sizes:
    # AdamW's steps are of one size, where SGD would need a rate for each (LIFT takes 0.01, VPT up to 50).
    tuned = config.tune.kind != "full"
    fine = is_open_clip(backbone) and not tuned and config.pretrained != "none"
    adamw = choose("optimiser.name", "sgd" if has_norm and not tuned and not fine else "adamw") == "adamw"
    if config.tune.kind in ("lora", "adapter"):
        choose("tune.rank", default_rank(config.tune.kind, encoder, data.train.num_classes))
    # CLIP's towers lose what they know at the rates of other transformers (Wortsman et al., CVPR 2022, train them at
    # 3e-5 with AdamW); projections, and a head that starts at random, learn nothing at theirs.
    if fine and config.optimiser.lr is None:
        choose("tune.encoder_lr", 0.01)
    rate = float(f"{0.05 * batch / 128:.3g}") if photos else 0.1
    choose("optimiser.lr", 1e-2 if features else 1e-3 if adamw else rate)
    choose("optimiser.weight_decay", 0.05 if adamw else 5e-4)
    if chosen["optimiser.lr"] * chosen["optimiser.weight_decay"] > 1:
        raise UserError(
            f"--optimiser.weight_decay {chosen['optimiser.weight_decay']:g} times --optimiser.lr "
            f"{chosen['optimiser.lr']:g} is above 1: every step would turn the weights around; lower one of them."
        )
    choose("optimiser.schedule", "cosine")
    choose("loss.temperature", 0.07 if photos else 0.1)
    # The paper distils on CIFAR only, where small networks over-fit; a pretrained tower knows no classes.
    choose("loss.distillation_weight", 0.0 if photos or chosen["teacher.kind"] == "pretrained" else 1.0)
    choose("loss.contrast_weight", 1.0)
    choose("loss.class_weights", "none")
    choose("loss.deferred_from", 0.0)
    choose("sampler", "instance")
    _choose_queue(choose, data, feature_dim(encoder))
    choose("select", "best" if config.val_fraction else "last")
    device = pick_device(config.device)
    chosen["device"] = str(device)
    if photos and device.type == "cpu" and config.backbone is None:
        notes.append(
            f"{backbone} at {image_size[0]} pixels takes hours for thousands of images without an accelerator; for a "
            "first look try --backbone cifar_resnet32 --image_size 32."
        )
    if config.precision == "auto":
        # bfloat16 is faster where the processor has it (benchmarks/step.py), but asked for, not assumed: what "auto"
        # gives must not differ from one machine to the next.
        chosen["precision"] = "float32"
    elif config.precision == "fastest":
        timed = time_encoder(backbone, data.train.channels, image_size, batch, device)
        chosen["precision"], gain = faster_precision(timed)
        notes.append(f"bfloat16 is {gain:.2g} times as fast as float32 here; precision {chosen['precision']} is used.")
    asked, config = config, replace_options(config, chosen)
    notes += effect_notes(asked, config, data)
    check_tuned_encoders(config, data.train.channels, image_size)
    return config, notes


_FEATURE_ENCODER = "residual_adapter"
"""What is trained on features unless told otherwise: without weights of its own a contrast would shape nothing."""
_FEATURE_STEPS = 3000


def _feature_batch(size: int) -> int:
    """Batch of features: large where there are many, since a step costs a projection of the whole queue."""
    return int(2 ** min(max(round(math.log2(max(size / 64, 1))), 5), 10))


def _feature_epochs(size: int) -> int:
    """Epochs on features: some thousand steps, within 10 to 100."""
    return min(max(round(_FEATURE_STEPS * _feature_batch(size) / size), 10), 100)


def check_takes(train: LabelledImages, encoder: str, option: str) -> None:
    """Raise :class:`UserError` unless an encoder takes what there is, images or features."""
    features = isinstance(train, FeatureSet)
    if features == (encoder in FEATURE_ENCODERS):
        return
    known = ", ".join(FEATURE_ENCODERS)
    if features:
        raise UserError(f"--{option} {encoder} takes images, but the data are features; use one of {known}.")
    raise UserError(
        f"--{option} {encoder} takes features, but the data are images; choose an image encoder, or embed the images "
        "first with longtail embed."
    )


def _fitting_encoder(side: int, files: bool) -> str:
    """Name the encoder that fits images of this side."""
    if side <= TINY_SIDE:
        return "small_net"
    if not files or side <= CIFAR_SIDE:
        return "cifar_resnet32"
    return "resnet18" if side <= SMALL_SIDE else "resnet50"


_PHOTO_VIEWS = {"classifier": "imagenet", "query": "imagenet_contrast", "key": "imagenet_contrast"}


def _sketch(name: str, channels: int, image_size: tuple[int, int]) -> nn.Module:
    """Return an encoder without values, to ask it what it is like."""
    with torch.device("meta"):
        return build_encoder(name, channels, image_size)


def _choose_queue(choose: Choose, data: DataSplits, width: int) -> None:
    """Queue size: the power of two nearest to a third of the training set, 256 to 16384, with room for the minimum.

    On features, where projecting the queue is most of a step, 4096 at most, and a narrower projection.
    """
    classes, features = data.train.num_classes, isinstance(data.train, FeatureSet)
    nearest = 2 ** round(math.log2(max(len(data.train) / 3, 1)))
    wanted = min(max(nearest, 256), 4096 if features else 16384)
    while wanted < 2 * classes:
        wanted *= 2
    capacity = choose("queue.capacity", wanted)
    choose("queue.min_per_class", max(1, min(3 if capacity >= 16384 else 2, capacity // classes)))
    choose("queue.projection_dim", min(max(width // 2, 16), 128) if features else max(width // 2, 16))


def describe(config: TrainConfig, given: set[str]) -> str:
    """Return one line with the options that were chosen from the data (those not in ``given``)."""
    shown = {key: value for key, value in flatten(config).items() if key not in given and value is not None}
    keys = "backbone pretrained image_size epochs batch_size device precision optimiser.lr optimiser.schedule".split()
    keys += ["views.classifier"] + (["sampler"] if config.sampler != "instance" else [])
    keys += ["start.head"] if config.start.head == "text" else []
    keys += ["teacher.backbone", "teacher.epochs"] if trains_teacher(config) else []
    keys += ["tune.rank"]
    own = ("decoupled.epochs", "queue.capacity", "queue.min_per_class", "loss.temperature")
    keys += [key for key in own if is_read(config.method, key)]
    return ", ".join(f"{key} {shown[key]}" for key in keys if key in shown)
