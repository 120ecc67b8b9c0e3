"""Does `longtail plan` tell what a step takes? Predicted against measured, time and memory, on the machine at hand.

    OMP_NUM_THREADS=2 python benchmarks/plan.py [--quick] [--steps 7] [--device cpu] [--out FILE]
    python benchmarks/plan.py --published

The machine is calibrated first (as `longtail plan --calibrate` does it). Then each encoder's GML step (student and a
frozen teacher of the same kind, a queue of 4096) is predicted from its counts, and taken in a fresh process on noise:
median of the steps' times, and the peak of memory above what the process had before it built anything.
Augmentation is in neither. With --published nothing is measured: four published training rates of an A100 are compared,
those that the default efficiencies are fitted to.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import measuring
from longtail.config import TrainConfig, resolved
from longtail.data import DataSplits
from longtail.data.loading import Batch
from longtail.methods import MethodContext, get_method
from longtail.models import Classifier
from longtail.options import make_config
from longtail.planning.calibrate import calibrate
from longtail.planning.counting import count_stages
from longtail.planning.estimate import seconds_of
from longtail.planning.hardware import DEVICES, Rates, assumed_rates
from longtail.planning.plan import planned_data
from longtail.training.optimisers import build_optimiser, parameter_groups, set_rate
from longtail.training.progress import ProgressReporter
from longtail.training.stages import plan_stages
from longtail.training.step import TrainingStep

# Encoder, teacher's encoder, side of the images, images a step.
CASES = {
    "resnet18": ("resnet18", "resnet18", 224, 16),
    "cifar_resnet32": ("cifar_resnet32", "cifar_resnet32", 32, 128),
    "mobilenetv3": ("mobilenetv3_small_100", "mobilenetv3_small_100", 224, 32),
}
QUICK_CASES = {
    "resnet18": ("resnet18", "resnet18", 32, 4),
    "cifar_resnet32": ("cifar_resnet32", "cifar_resnet32", 32, 8),
}
# Beside the others where there is an accelerator.
LARGE_CASES = {"imagenet-lt": ("resnext50_32x4d", "resnext101_32x8d", 224, 128)}
# NVIDIA DeepLearningExamples, PyTorch/Classification/ConvNets, READMEs of resnet50v1.5 (21.03, A100 80 GB) and
# resnext101-32x4d (20.06, A100 40 GB): images a second on one device. TF32, then mixed precision.
PUBLISHED = (
    ("resnet50", 256, 2.039e12, 938.0, 2470.0),
    ("resnext101_32x4d", 128, 1.555e12, 300.42, 908.40),
)


def case_data(name: str, quick: bool) -> tuple[TrainConfig, DataSplits]:
    """Return resolved options and the sizes of the data of a case."""
    encoder, teacher, side, batch = (QUICK_CASES if quick else CASES | LARGE_CASES)[name]
    return sized_data(encoder, side, batch, method="gml", **{"queue.capacity": 4096, "teacher.backbone": teacher})


def sized_data(encoder: str, side: int, batch: int, **options: Any) -> tuple[TrainConfig, DataSplits]:
    """Return resolved options of a run on 12,000 photographs of 100 classes, and the sizes of that data."""
    given = {"backbone": encoder, "pretrained": "none", "batch_size": batch, "epochs": 1, "image_size": side, **options}
    config, data, _ = planned_data(make_config(given), 12_000, 100, ProgressReporter(True))
    return config, data


def measure_one(name: str, quick: bool, steps: int, device: torch.device) -> dict[str, Any]:
    """Take a case's steps in this process, and return their seconds and the memory that they took."""
    config, data = case_data(name, quick)
    side, batch = resolved(config.image_size), resolved(config.batch_size)
    torch.randn(64, 64, device=device) @ torch.randn(64, 64, device=device)  # loads what products need
    # A teacher must agree with its student on how images are normalised; on noise any values do.
    statistics = [tuple(values or (0.5,) * 3) for values in (config.source.mean, config.source.std)]
    before, previous = peak_memory(device), None
    for stage in plan_stages(config):
        context = MethodContext(config, stage, data.train, *statistics, previous)
        method = get_method(stage.method).build(context).to(device).to(memory_format=torch.channels_last)
        made = method.classifier()
        assert isinstance(made, Classifier)
        previous = made
    method.train()
    optimiser = build_optimiser(parameter_groups(method, config.tune), config.optimiser, device)
    set_rate(optimiser, 0.01)
    step = TrainingStep(method, optimiser, None, device)
    torch.manual_seed(0)
    taken = []
    for number in range(steps + 2):
        views = {
            view: torch.randn(batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
            for view in method.views
        }
        ids = torch.arange(number * batch, (number + 1) * batch) % len(data.train)
        taking = Batch(views, data.train.labels[ids].to(device), ids.to(device))
        taken.append(measuring.seconds(partial(step, taking, number / (steps + 2)), device))
    return {"seconds": taken[2:], "memory": peak_memory(device) - before}


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has taken, on the device that it computes on."""
    if device.type != "cpu":
        return int(torch.accelerator.max_memory_allocated(device))
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # counted in KiB on Linux


def predict_one(name: str, quick: bool, rates: Rates) -> dict[str, Any]:
    """Return what a case's step should take."""
    config, data = case_data(name, quick)
    count = count_stages(config, data)[-1]
    parts = seconds_of(count, rates)
    return {
        "batch": resolved(config.batch_size),
        "gigaflop": count.flops / 1e9,
        "parts": parts,
        "seconds": sum(parts.values()),
        "memory": sum(count.memory.values()),
    }


def against_published() -> list[dict[str, Any]]:
    """Return published rates of an A100 beside those predicted."""
    found = []
    for encoder, batch, bandwidth, *rates in PUBLISHED:
        for precision, rate in zip(("float32", "bfloat16"), rates, strict=True):
            config, data = sized_data(encoder, 224, batch, method="cross_entropy", precision=precision)
            device = replace(DEVICES["a100"], bandwidth=bandwidth)
            count = count_stages(config, data)[0]
            predicted = batch / sum(seconds_of(count, assumed_rates(device)).values())
            found.append({"encoder": encoder, "precision": precision, "published": rate, "predicted": predicted})
            print(
                f"{encoder:18} {precision:9} published {rate:7.0f}, predicted {predicted:7.0f}: {predicted / rate:.2f}"
            )
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each (default 7)")
    parser.add_argument("--published", action="store_true", help="compare with published rates of an A100 instead")
    parser.add_argument("--device", type=torch.device, default="cpu", help="torch device (default cpu)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure_one(options.one, options.quick, options.steps, options.device)))
        return 0
    if options.published:
        out = options.out or measuring.RESULTS / "plan-published.json"
        measuring.write(out, "published training rates of an A100, and what longtail plan says", torch.device("cpu"),
                        against_published())  # fmt: skip
        return 0
    device = options.device
    figures = calibrate(device)
    rates = Rates(figures["flops"], figures["half_flops"], figures["bandwidth"], figures["operation_seconds"])
    results = []
    large = LARGE_CASES if device.type != "cpu" else {}
    for name in QUICK_CASES if options.quick else CASES | large:
        predicted = predict_one(name, options.quick, rates)
        words = [sys.executable, __file__, "--one", name, "--steps", str(options.steps), "--device", str(device)]
        done = subprocess.run(
            [*words, *(["--quick"] if options.quick else [])], capture_output=True, text=True, check=True
        )
        measured = json.loads(done.stdout.splitlines()[-1])
        seconds = statistics.median(measured["seconds"])
        results.append(
            {
                "case": name,
                "predicted": predicted,
                "measured_seconds": measuring.spread(measured["seconds"]),
                "measured_memory": measured["memory"],
                "seconds_ratio": predicted["seconds"] / seconds,
                "memory_ratio": predicted["memory"] / measured["memory"],
            }
        )
        print(
            f"{name:15} step predicted {predicted['seconds']:6.3f} s, measured {seconds:6.3f} s: "
            f"{results[-1]['seconds_ratio']:.2f}; memory predicted {predicted['memory'] / 2**20:6.0f} MiB, measured "
            f"{measured['memory'] / 2**20:6.0f} MiB: {results[-1]['memory_ratio']:.2f}"
        )
    measuring.write(
        options.out or measuring.RESULTS / "plan.json",
        "a GML step: seconds and bytes as longtail plan predicts them over those measured",
        device,
        results,
        steps=options.steps,
        calibration=figures,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
