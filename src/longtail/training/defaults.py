"""Options that the user left open, chosen from the data.

The rules reproduce the settings of the GML paper where its data sets are concerned (CIFAR-LT: ResNet-32 with a
ResNet-56 teacher, 200 epochs, batch 128, rate 0.1, queue 4096 with at least 2 a class, projection 32, temperature 0.1).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from longtail.config import TrainConfig, flatten, get_option, replace_options
from longtail.data import DataSplits
from longtail.data.views import build_view
from longtail.errors import UserError
from longtail.models import build_encoder, feature_dim

TINY_SIDE = 16
"""Images up to this side (pixels) get the small network; larger ones the CIFAR ResNets."""


def resolve(config: TrainConfig, data: DataSplits) -> tuple[TrainConfig, list[str]]:
    """Return the options with every open one filled in, and notes for the user on what was changed.

    Raises:
        UserError: an option does not fit the data.
    """
    size = len(data.train)
    tiny = max(data.train.image_size) <= TINY_SIDE
    chosen: dict[str, Any] = {}
    notes: list[str] = []

    def choose(key: str, value: Any) -> Any:
        given = get_option(config, key)
        chosen[key] = value if given is None else given
        return chosen[key]

    backbone = choose("backbone", "small_net" if tiny else "cifar_resnet32")
    # The teacher of a CIFAR ResNet-32 is a ResNet-56, as published; other encoders teach their own kind.
    teacher = choose("teacher.backbone", "cifar_resnet56" if backbone == "cifar_resnet32" else backbone)
    with torch.device("meta"):
        build_encoder(teacher, data.train.channels)  # refuses an unknown one
    epochs = choose("epochs", 60 if tiny else 200)
    choose("teacher.epochs", epochs)
    batch = choose("batch_size", 32 if tiny else 128)
    if batch > size:
        notes.append(f"batch_size {batch} is larger than the training set; {size} is used.")
        chosen["batch_size"] = size
    elif batch < 2:
        raise UserError("--batch_size must be 2 or more: batch normalisation needs more than one image.")
    for view in ("classifier", "query", "key"):
        build_view(choose(f"views.{view}", data.views), data.mean, data.std)  # refuses an unknown one
    adamw = config.optimiser.name == "adamw"
    choose("optimiser.lr", 1e-3 if adamw else 0.1)
    choose("optimiser.weight_decay", 0.05 if adamw else 5e-4)
    if chosen["optimiser.lr"] * chosen["optimiser.weight_decay"] > 1:
        raise UserError(
            f"--optimiser.weight_decay {chosen['optimiser.weight_decay']:g} times --optimiser.lr "
            f"{chosen['optimiser.lr']:g} is above 1: every step would turn the weights around; lower one of them."
        )
    choose("optimiser.schedule", "cosine")
    choose("loss.temperature", 0.1)
    choose("loss.distillation_weight", 1.0)
    _choose_queue(choose, data, backbone)
    device = pick_device(config.device)
    chosen["device"] = str(device)
    if config.precision == "auto":
        # bfloat16 is faster where the processor has it (benchmarks/precision.py), but asked for, not assumed: what
        # "auto" gives must not differ from one machine to the next.
        chosen["precision"] = "float32"
    return replace_options(config, chosen), notes


def _choose_queue(choose: Any, data: DataSplits, backbone: str) -> None:
    """Queue size: the power of two nearest to a third of the training set, 256 to 16384, with room for the minimum."""
    classes = data.train.num_classes
    nearest = 2 ** round(math.log2(max(len(data.train) / 3, 1)))
    wanted = min(max(nearest, 256), 16384)
    while wanted < 2 * classes:
        wanted *= 2
    capacity = choose("queue.capacity", wanted)
    choose("queue.min_per_class", max(1, min(3 if capacity >= 16384 else 2, capacity // classes)))
    with torch.device("meta"):
        width = feature_dim(build_encoder(backbone, data.train.channels))
    choose("queue.projection_dim", max(width // 2, 16))


def pick_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is the first accelerator, else the CPU."""
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # "meta" holds no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"--device {name} is not to be had here ({reason}).") from None
    return device


def describe(config: TrainConfig, given: set[str]) -> str:
    """Return one line with the options that were chosen from the data (those not in ``given``)."""
    shown = {key: value for key, value in flatten(config).items() if key not in given and value is not None}
    keys = "backbone epochs batch_size device precision optimiser.lr optimiser.schedule".split()
    if config.method == "gml":
        trains_teacher = config.teacher.kind == "frozen" and config.teacher.run is None
        keys += ["teacher.backbone", "teacher.epochs"] if trains_teacher else []
        keys += ["queue.capacity", "queue.min_per_class", "loss.temperature"]
    return ", ".join(f"{key} {shown[key]}" for key in keys if key in shown)
