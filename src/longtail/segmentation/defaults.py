"""Options of a run on masks that the user left open, chosen from the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from longtail.config import TrainConfig, flatten, get_option, replace_options, resolved
from longtail.data.shares import largest_batch
from longtail.errors import UserError
from longtail.models import choose_weights, encoder_defaults
from longtail.segmentation.data.augment import check_dense_recipe
from longtail.segmentation.data.geometry import Geometry
from longtail.segmentation.data.loading import fits_in_memory
from longtail.segmentation.data.mask_set import MaskFiles, MaskSplits
from longtail.segmentation.methods import dense_is_read, get_dense_method
from longtail.segmentation.models import build_pixel_encoder
from longtail.segmentation_options import SegmentationOptions
from longtail.training.devices import pick_device
from longtail.training.framing_defaults import recorded_defaults

_SMALL_SIDE = 400
"""Images up to this shorter side (pixels) get a ResNet-18, larger ones a ResNet-50."""
_LARGEST_CROP = 512
_STRIDE = 32
_IMAGES_A_STAGE = 60_000
_FEWEST_EPOCHS, _MOST_EPOCHS = 10, 200
_WIDTHS = {"fpn": 128, "unet": 64}
_USUAL_WIDTH = 256
_SLOTS_A_CLASS = 128
_FEWEST_SLOTS, _MOST_SLOTS = 2048, 16384
_NOT_HERE = {
    "imbalance": "classes lie side by side in an image; cut the list of images instead",
    "folds": "hold images out with --source.test_share",
    "image_size": "give --segmentation.resize HEIGHT,WIDTH for whole images, --segmentation.crop for training crops",
    "sampler": "rare classes are drawn more often with --segmentation.rare_crops",
    "decoupled.run": "decoupled training is for images",
    "start.head": "texts are for images",
    "loading.resize": "give --segmentation.resize HEIGHT,WIDTH",
    "loading.interpolation": "images are resized bilinearly, masks to the nearest pixel",
    "views.query": "queries are pixels of the classifier view, whose mask they need",
    "group_edges": "groups are by shares: --segmentation.pixel_edges and --segmentation.image_edges",
    "start.prompts": "texts are for images",
    "source.profile": "classes lie side by side in an image",
    "source.repeats": "hold images out with --source.test_share",
    "source.fold": "hold images out with --source.test_share",
    "source.path_column": "masks go with their images by their names",
    "source.label_column": "masks go with their images by their names",
    "source.split_column": "splits are folders",
    "source.group_column": "give --source.group_pattern",
    "source.labels": "a palette or classes.txt says what mask values mean",
    "source.unknown_labels": "a palette or classes.txt says what mask values mean",
}
_TUNE = ("tune.kind", "tune.rank", "tune.prompts", "tune.lr_decay", "tune.encoder_lr")


def resolve_dense(config: TrainConfig, data: MaskSplits, processes: int = 1) -> tuple[TrainConfig, list[str]]:
    """Return the options with every open one filled in but the weights, and notes for the user on what was changed.

    A batch that is larger than the training set becomes one that can be dealt to so many ``processes``.

    Raises:
        UserError: an option does not fit the data, or is none of segmentation.
    """
    _refuse(config)
    method, train, notes = get_dense_method(config.method), data.train, list[str]()
    chosen: dict[str, Any] = {key: get_option(config, key) for key in ("pretrained", "teacher.run")}

    def choose(key: str, value: Any) -> Any:
        given = get_option(config, key)
        if given is None:
            given = method.defaults.get(key, value)
            given = given(chosen) if callable(given) else given
        chosen[key] = given
        return given

    height, width = typical_size(train)
    backbone = choose("backbone", "resnet18" if min(height, width) <= _SMALL_SIDE else "resnet50")
    decoder = choose("segmentation.decoder", "fpn")
    choose("segmentation.width", _WIDTHS.get(decoder, _USUAL_WIDTH))
    crop = choose("segmentation.crop", [_crop_side(height), _crop_side(width)])
    with torch.device("meta"):
        encoder = build_pixel_encoder(backbone, decoder, 3, chosen["segmentation.width"])
    usual = encoder_defaults(backbone)
    recorded = recorded_defaults(backbone, str(config.pretrained)) if config.pretrained not in (None, "none") else None
    usual = recorded or usual
    known = usual if config.pretrained != "none" else None
    choose("source.mean", list(data.mean if known is None else known.mean))
    choose("source.std", list(data.std if known is None else known.std))
    epochs = choose("epochs", min(max(round(_IMAGES_A_STAGE / len(train)), _FEWEST_EPOCHS), _MOST_EPOCHS))
    batch = choose("batch_size", 8)
    if batch > len(train):
        fitting = largest_batch(len(train), processes, config.optimiser.accumulate)
        notes.append(f"batch_size {batch} is larger than the training set; {fitting} is used.")
        batch = chosen["batch_size"] = fitting
    if batch < 2:
        raise UserError("--batch_size must be 2 or more: batch normalisation needs more than one image.")
    choose("teacher.kind", "none")
    choose("teacher.backbone", backbone)
    choose("teacher.epochs", epochs)
    choose("decoupled.epochs", max(round(epochs / 9), 5))
    for view in ("classifier", "key"):
        check_dense_recipe(choose(f"views.{view}", "colour"), f"--views.{view}")
    choose("views.query", "none")
    has_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in _backbone_of(encoder).modules())
    adamw = choose("optimiser.name", "sgd" if has_norm else "adamw") == "adamw"
    choose("optimiser.lr", 1e-4 if adamw else float(f"{0.05 * batch / 16:.3g}"))
    choose("optimiser.weight_decay", 0.01 if adamw else 5e-4)
    choose("optimiser.schedule", "poly")
    choose("loss.temperature", 0.1)
    choose("loss.distillation_weight", 0.0)
    choose("loss.contrast_weight", 1.0)
    choose("loss.class_weights", "none")
    choose("loss.deferred_from", 0.0)
    choose("sampler", "instance")
    capacity = choose("queue.capacity", _slots(train.num_classes))
    choose("queue.min_per_class", max(1, min(16, capacity // (4 * train.num_classes))))
    choose("queue.projection_dim", 128)
    choose("select", "best" if config.val_fraction else "last")
    choose("loading.resident", fits_in_memory(train))
    device = pick_device(config.device)
    chosen["device"] = str(device)
    if config.precision in ("auto", "fastest"):
        chosen["precision"] = "float32"
    if config.precision == "fastest":
        notes.append("--precision fastest is not timed for segmentation; float32 is used, give bfloat16 to have that.")
    if device.type == "cpu" and config.backbone is None and len(train) * epochs * crop[0] * crop[1] > 5e8:
        notes.append(
            f"{backbone} on crops of {crop[0]} x {crop[1]} takes many hours without an accelerator; for a first look "
            "try --backbone mobilenetv3_large_100 --segmentation.width 32 --segmentation.resize [180,240] --epochs 20."
        )
    return replace_options(config, chosen), notes


def choose_dense_weights(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """Return resolved options with the weights that encoders start from, made sure of, and notes on them.

    Raises:
        UserError: weights that were asked for cannot be had or do not fit.
    """
    backbone, teacher = resolved(config.backbone), resolved(config.teacher.backbone)
    weights, note = choose_weights(backbone, config.pretrained, 3, None)
    notes = [note] if note else []
    others, note = weights, None
    if teacher != backbone or config.teacher.pretrained is not None:
        wanted = config.teacher.pretrained
        others, note = choose_weights(teacher, "none" if wanted is None and weights == "none" else wanted, 3, None)
    notes += [note] if note and note not in notes else []
    return replace_options(config, {"pretrained": weights, "teacher.pretrained": others}), notes


def typical_size(files: MaskFiles) -> tuple[int, int]:
    """Return the median height and width that images are read at, in pixels."""
    if files.size is not None:
        return files.size
    height, width = files.sizes.median(0).values.tolist()
    return int(height), int(width)


def geometry_of(config: TrainConfig) -> Geometry:
    """Return the random geometry of training crops that resolved options say."""
    own = config.segmentation
    height, width = resolved(own.crop)
    low, high = own.scale
    return Geometry((height, width), (low, high), own.flip, own.rare_crops)


def describe_dense(config: TrainConfig, given: set[str]) -> str:
    """Return one line with the options that were chosen from the data (those not in ``given``)."""
    shown = {key: value for key, value in flatten(config).items() if key not in given and value is not None}
    keys = "backbone pretrained segmentation.decoder segmentation.width segmentation.crop epochs batch_size".split()
    keys += "device precision optimiser.name optimiser.lr optimiser.schedule".split()
    own = ("teacher.kind", "teacher.epochs", "queue.capacity", "loss.temperature")
    keys += [key for key in own if dense_is_read(config.method, key)]
    return ", ".join(f"{key} {shown[key]}" for key in keys if key in shown)


def _refuse(config: TrainConfig) -> None:
    """Raise :class:`UserError` for options that mean nothing for masks, or whose values cannot be meant."""
    usual, own = TrainConfig(), config.segmentation
    for key, instead in _NOT_HERE.items():
        if get_option(config, key) not in (get_option(usual, key), None):
            allowed = key == "sampler" and config.sampler == "instance"
            allowed = allowed or (key == "views.query" and config.views.query == "none")
            if not allowed:
                raise UserError(f"--{key} is not for --task segmentation: {instead}.")
    for key in _TUNE:
        if get_option(config, key) != get_option(usual, key):
            raise UserError(
                f"--{key} is not for --task segmentation, where the whole encoder is trained; leave it out."
            )
    for name, value in (("crop", own.crop), ("resize", own.resize)):
        _check_sides(name, value)
    check_test_view(own)
    if len(own.scale) != 2 or not 0 < own.scale[0] <= own.scale[1] <= 16:
        raise UserError(
            f"--segmentation.scale must be two factors, the smaller first, such as [0.5,2], got {own.scale}."
        )
    if not 0 <= own.rare_crops <= 1:
        raise UserError(f"--segmentation.rare_crops must be a share, from 0 to 1, got {own.rare_crops}.")
    if not 0 < own.queue_share <= 1:
        raise UserError(f"--segmentation.queue_share must be a share, above 0 and at most 1, got {own.queue_share}.")
    for name, edges in (("pixel_edges", own.pixel_edges), ("image_edges", own.image_edges)):
        if len(edges) != 2 or not edges[0] >= edges[1] >= 0:
            raise UserError(f"--segmentation.{name} must be two numbers, the larger first, got {edges}.")


def check_test_view(own: SegmentationOptions) -> None:
    """Raise :class:`UserError` for options of testing whose values cannot be meant."""
    _check_sides("window", own.window)
    if not 0 < own.stride <= 1:
        raise UserError(
            f"--segmentation.stride must be a share of the window, above 0 and at most 1, got {own.stride}."
        )
    if not own.test_scales or not all(0 < scale <= 16 for scale in own.test_scales):
        raise UserError(
            f"--segmentation.test_scales must be factors above 0, such as [0.75,1,1.25], got {own.test_scales}."
        )


def _check_sides(name: str, value: list[int] | None) -> None:
    if value is not None and (len(value) != 2 or min(value) < 1):
        raise UserError(
            f"--segmentation.{name} must be a height and a width in pixels, such as [512,512], got {value}."
        )


def _backbone_of(encoder: nn.Module) -> nn.Module:
    """Return the part that came from timm, whose normalisation decides what trains it."""
    part = getattr(encoder, "backbone", encoder)
    assert isinstance(part, nn.Module)
    return part


def _crop_side(side: int) -> int:
    return max(min(side, _LARGEST_CROP) // _STRIDE, 1) * _STRIDE


def _slots(classes: int) -> int:
    return int(min(max(2 ** round(torch.tensor(_SLOTS_A_CLASS * classes).log2().item()), _FEWEST_SLOTS), _MOST_SLOTS))
