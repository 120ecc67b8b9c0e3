"""Training from stored images to updated weights: ours against the textbook way, and how long a published row takes.

    python benchmarks/end_to_end.py [--device cuda] [--seconds 30] [--precision bfloat16] [--file FILE.npz] [--quick]

CIFAR-100-LT, imbalance 100, the full recipe: three views with AutoAugment and Cutout, ResNet-56 teacher stage (logit
adjustment), ResNet-32 student stage (GML with distillation), batch 128. Ours is what `longtail train` runs: resident
images, batched views, and where the device can record steps, recorded ones. The textbook way makes views with Pillow,
image by image, in DataLoader workers (one a core), and trains eagerly in float32. Each is timed in turn for some
seconds after a warm-up (while the other's turn lasts, the workers fill their queue: a few batches in its favour); the
time of 200 + 200 epochs is the time a step times their steps, without evaluation and checkpoints. Without --file the
images are made.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from augment import MEAN, STD, pictures, published_pipeline
from longtail.data import ImageSet
from longtail.data.keyed import derive_seed
from longtail.data.loading import ResidentLoader
from longtail.data.views import build_view
from longtail.training.capture import WARM_UP, CapturedStep, CudaRecorder, can_capture
from measuring import RESULTS, ratios, show, spread, synchronise, write
from reference import PlainGML, PlainLogitAdjustment, plain_optimiser
from step import Problem

EPOCHS = 200


class PillowViews(Dataset):
    """Each image with its views made one after the other, as published code does."""

    def __init__(self, images: Tensor, labels: Tensor, views: int) -> None:
        self.arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels, self.views, self.make = labels, views, published_pipeline()

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> tuple[list[Tensor], int, int]:
        made = [self.make(Image.fromarray(self.arrays[index])) for _ in range(self.views)]
        return made, int(self.labels[index]), index


def textbook(problem: Problem, images: Tensor, labels: Tensor, stage: str, batch: int) -> Iterator[None]:
    """Train on and on, a step a turn."""
    backbones = {"student": str(problem.config.backbone), "teacher": str(problem.config.teacher.backbone)}
    torch.manual_seed(0)
    if stage == "student":
        queue = problem.config.queue
        module = PlainGML(problem.counts, int(queue.capacity or 0), width=int(queue.projection_dim or 0), **backbones)
    else:
        module = PlainLogitAdjustment(problem.counts, backbones["teacher"])
    module = module.to(problem.device).train()
    if stage == "student":
        module.teacher.eval()
    optimiser = plain_optimiser(module)
    data = PillowViews(images, labels, 3 if stage == "student" else 1)
    pin = problem.device.type != "cpu"
    workers = os.cpu_count() or 1
    loader = DataLoader(data, batch, shuffle=True, drop_last=True, num_workers=workers, pin_memory=pin)
    while True:
        for views, targets, ids in loader:
            there = [part.to(problem.device, non_blocking=True) for part in (*views, targets, ids)]
            loss = module(*there) if stage == "student" else module(*there[:2])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()  # to be printed, as such loops do
            yield


def ours(problem: Problem, images: Tensor, labels: Tensor, batch: int, precision: str) -> Iterator[None]:
    """Train on and on as ``longtail train`` does, a step a turn."""
    names = tuple(f"class {c}" for c in range(len(problem.counts)))
    method = problem.method()
    views = {name: build_view(recipe, MEAN, STD) for name, recipe in method.views.items()}
    loader = ResidentLoader(ImageSet(images, labels, names), views, batch, 0, problem.device)
    step = problem.step(precision == "bfloat16", method)
    take = CapturedStep(step, CudaRecorder(problem.device), print) if can_capture(problem.device) else step
    number = 0
    while True:
        torch.manual_seed(derive_seed(0, "step", number))
        take(loader.load(*divmod(number, loader.steps_per_epoch)), 0.0)
        if problem.device.type == "cpu":
            step.guard.look()
        number += 1
        yield


def milliseconds(steps: Iterator[None], seconds: float, device: torch.device) -> float:
    """Return the time of a step over about ``seconds``, the device's own queue included."""
    synchronise(device)
    began, taken = time.perf_counter(), 0
    while time.perf_counter() - began < seconds or not taken:
        next(steps)
        taken += 1
        if taken % 50 == 0:
            synchronise(device)
    synchronise(device)
    return 1000 * (time.perf_counter() - began) / taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each contestant, stage and repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of ours")
    parser.add_argument("--file", type=Path, help="CIFAR-100-LT as an array file")
    parser.add_argument("--quick", action="store_true", help="a small problem, to see that it runs; nothing is written")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device, quick = torch.device(options.device), options.quick
    small = {"backbone": "small_net", "teacher.backbone": "small_net"} if quick else {}
    batch, repeats, seconds = (16, 2, 0.1) if quick else (128, options.repeats, options.seconds)
    rows, total = {}, {"ours": 0.0, "textbook": 0.0}
    for stage, method in (("teacher", "logit_adjustment"), ("student", "gml")):
        change = {"backbone": "cifar_resnet56"} if stage == "teacher" and not quick else {}
        problem = Problem(batch, device, quick, method, **{**small, **change})
        labels = torch.arange(len(problem.counts)).repeat_interleave(problem.counts)
        if options.file:
            with np.load(options.file) as arrays:
                images = torch.from_numpy(arrays["train_images"]).permute(0, 3, 1, 2).contiguous()
                labels = torch.from_numpy(arrays["train_labels"]).long().flatten()
        else:
            images = pictures(len(labels))
        contestants: dict[str, Callable[[], Iterator[None]]] = {
            "ours": lambda: ours(problem, images, labels, batch, options.precision),  # noqa: B023
            "textbook": lambda: textbook(problem, images, labels, stage, batch),  # noqa: B023
        }
        running = {name: make() for name, make in contestants.items()}
        taken: dict[str, list[float]] = {name: [] for name in running}
        for steps in running.values():
            for _ in range(1 if quick else WARM_UP + 2):
                next(steps)
        for _ in range(repeats):
            for name, steps in running.items():
                taken[name].append(milliseconds(steps, seconds, device))
        steps_in_all = EPOCHS * (len(labels) // batch)
        row = {name: spread(values) for name, values in taken.items()}
        rows[stage] = {**row, "times_faster": ratios(taken["textbook"], taken["ours"])}
        print(f"{stage} stage, milliseconds a step")
        for name, values in row.items():
            hours = values["median"] * steps_in_all / 3.6e6
            total[name] += hours
            print(f"  {name:9} {show(values)}   {EPOCHS} epochs: {60 * hours:.1f} minutes")
        print(f"  ratio     {show(rows[stage]['times_faster'], 2)}", flush=True)
    print("both stages: " + ", ".join(f"{name} {60 * hours:.1f} minutes" for name, hours in total.items()))
    if not quick:
        rows["projected_minutes"] = {name: 60 * hours for name, hours in total.items()}
        what = "CIFAR-100-LT, imbalance 100, the full recipe; milliseconds a step from stored images to weights"
        out = options.out or RESULTS / f"end_to_end-{device.type}.json"
        write(out, what, device, rows, repeats=repeats, seconds=seconds, precision=options.precision, seed=0)


if __name__ == "__main__":
    main()
