"""A training step of segmentation, UPerNet with ResNet-50 on crops of 512 x 512: images a second, share of each part.

    python benchmarks/dense_step.py [--device cuda] [--batch 16] [--side 512] [--repeats 5] [--out FILE]

Images and masks are generated; nothing is read from disk. Compared in turn, on the same batch: logit-adjusted cross
entropy alone (the teacher's step, the reference), and GML with its frozen teacher. The contrast is checked against a
float64 copy of it first.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch

from longtail.config import replace_options
from longtail.data.path_table import PathTable
from longtail.losses import GMLLoss
from longtail.options import make_config
from longtail.segmentation.data.batch import DenseBatch
from longtail.segmentation.data.mask_set import MaskFiles
from longtail.segmentation.methods import DenseContext, get_dense_method
from longtail.training.devices import pick_device
from longtail.training.optimisers import build_optimiser
from longtail.training.run_folder import environment
from longtail.training.step import TrainingStep
from measuring import RESULTS, in_turn, ratios, spread

CLASSES = 150


def generated(images: int, side: int) -> MaskFiles:
    """Return a set whose images are never read: pixel counts with a long tail, five classes or more an image."""
    shares = torch.arange(1, CLASSES + 1, dtype=torch.float64).pow(-1.2)
    pixels = torch.zeros(images, CLASSES, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    for row in pixels:
        held = torch.multinomial(shares, 8, generator=generator)
        row[held] = (side * side * shares[held] / shares[held].sum()).long()
    names = PathTable(f"{number}.png" for number in range(images))
    classes = tuple(f"class {number}" for number in range(CLASSES))
    palette = torch.zeros(CLASSES, 3, dtype=torch.uint8)
    sizes = torch.full((images, 2), side)
    return MaskFiles(Path("."), names, names, lambda path: torch.empty(0), classes, palette, pixels, sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--decoder", default="upernet")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "dense_step.json")
    options = parser.parse_args()
    device = pick_device(options.device)
    train = generated(2000, options.side)
    given = {
        "task": "segmentation",
        "data": "generated",
        "backbone": options.backbone,
        "pretrained": "none",
        "segmentation.decoder": options.decoder,
        "segmentation.width": options.width,
        "epochs": 1,
        "segmentation.queries": 8192,
        "segmentation.queries_per_class": 100,
        "batch_size": options.batch,
        "queue.capacity": 16384,
        "queue.min_per_class": 16,
        "queue.projection_dim": 256,
        "sampler": "instance",
        "teacher.kind": "none",
        "teacher.backbone": options.backbone,
        "views.classifier": "none",
        "views.key": "none",
        "loss.temperature": 0.1,
        "loss.contrast_weight": 1.0,
        "loss.class_weights": "none",
        "loss.distillation_weight": 0.0,
        "optimiser.name": "sgd",
        "optimiser.lr": 0.01,
        "loss.deferred_from": 0.0,
        "optimiser.weight_decay": 5e-4,
        "optimiser.schedule": "poly",
        "source.mean": [0.5] * 3,
        "source.std": [0.25] * 3,
        "device": str(device),
        "precision": options.precision,
    }
    config = make_config(given)
    torch.manual_seed(0)
    batch = make_batch(train, options.batch, options.side, device)
    steps = {}
    for name in ("logit_adjustment", "gml"):
        one = replace_options(config, {"method": name})
        [stage] = get_dense_method(name).stages(one, name)
        method = get_dense_method(name).build(DenseContext(one, stage, train, (0.5,) * 3, (0.25,) * 3))
        method = method.to(device).to(memory_format=torch.channels_last).train()
        optimiser = build_optimiser(method.param_groups(), one.optimiser, device)
        steps[name] = TrainingStep(method, optimiser, None, device, bfloat16=options.precision == "bfloat16")
    check_contrast(device)
    taken = in_turn(
        {name: lambda step=step: step(batch, 0.5) for name, step in steps.items()}, options.repeats, device, warm_up=2
    )
    result = {
        "seconds": {name: spread(values) for name, values in taken.items()},
        "images_per_second": {name: options.batch / spread(values)["median"] for name, values in taken.items()},
        "gml_over_reference": ratios(taken["gml"], taken["logit_adjustment"]),
        "settings": {k: v for k, v in vars(options).items() if k != "out"},
        **environment(device),
    }
    if device.type != "cpu":
        result["peak_bytes"] = torch.accelerator.max_memory_allocated(device)
    for name, speed in result["images_per_second"].items():
        print(f"{name:<17} {speed:8.2f} images/s  {spread(taken[name])['median']:.3f} s a step")
    print(f"GML over the reference: {result['gml_over_reference']['median']:.2f} times")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2, default=str) + "\n")


def make_batch(train: MaskFiles, size: int, side: int, device: torch.device) -> DenseBatch:
    """Return images of noise with masks of blocks of the classes that each holds."""
    cells = torch.stack([torch.multinomial(row.double(), 64, replacement=True) for row in train.pixels[:size]])
    labels = torch.nn.functional.interpolate(cells.view(size, 1, 8, 8).double(), (side, side)).long()[:, 0]
    images = torch.randn(size, 3, side, side).contiguous(memory_format=torch.channels_last)
    ids = torch.arange(size)
    views = {"classifier": images.to(device), "key": images.flip(0).to(device)}
    return DenseBatch(views, labels.to(device), ids.to(device), ids.to(device))


def check_contrast(device: torch.device) -> None:
    """Raise unless the contrast on the device, in parts, is what float64 says at once."""
    unit = torch.nn.functional.normalize
    queries, keys = unit(torch.randn(2048, 64)), unit(torch.randn(4096, 64))
    labels, offsets = torch.randint(32, (2048,)), torch.arange(0, 4097, 128)
    loss = GMLLoss([10] * 32, max_similarities=2**20)
    exact = copy.deepcopy(loss).double()(queries.double(), labels, keys.double(), offsets)
    found = loss.to(device)(queries.to(device), labels.to(device), keys.to(device), offsets.to(device))
    torch.testing.assert_close(found.cpu().double(), exact, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    main()
