"""How long a run would take here: a few real steps of each stage are timed, and the rest is multiplication."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from longtail.config import TrainConfig, replace_options, resolved
from longtail.data import DataSplits, ImageFiles, ImageSet, LabelledImages
from longtail.data.keyed import keyed_permutation
from longtail.data.loading import ResidentLoader
from longtail.data.streaming import default_workers, frame_files, needed_side
from longtail.data.views import View, build_view
from longtail.methods import Method, MethodContext, get_method
from longtail.models import Classifier
from longtail.training.framing_defaults import chosen_framing
from longtail.training.optimisers import build_optimiser, parameter_groups
from longtail.training.stages import plan_stages
from longtail.training.step import TrainingStep

_SMALLEST_BATCH = 4
_MOST_STEPS = 20
_FEWEST_STEPS = 2
_DECODED = 24
_FORWARD_SHARE = 1 / 3
"""Of a training step's time, what a forward pass alone takes: the backward pass costs about twice as much."""


_STAT = Path("/proc/stat")


class OtherPrograms:
    """Notices, from when it is made, how much of the processors other programs take."""

    def __init__(self) -> None:
        self._before = _processor_seconds()

    def share(self) -> float | None:
        """Return the share of all processors, 0..1, that other programs took since; None where it cannot be told."""
        before, now = self._before, _processor_seconds()
        if before is None or now is None or now[0] <= before[0]:
            return None
        whole, busy, own = (new - old for new, old in zip(now, before, strict=True))
        return min(1.0, max(0.0, busy - own) / whole)


def _processor_seconds() -> tuple[float, float, float] | None:
    """Return the seconds, over all processors, that have passed, that were worked, and that this process worked."""
    try:
        line = _STAT.read_text().splitlines()[0].split()
        ticks = [float(word) for word in line[1:9]]  # user nice system idle iowait irq softirq steal
        whole, idle = sum(ticks), ticks[3] + ticks[4]
        second = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):  # not Linux
        return None
    times = os.times()
    return whole / second, (whole - idle) / second, sum(times[:4])


@dataclass(frozen=True)
class StageTime:
    """What one stage would take.

    Attributes:
        name: of the stage.
        epochs: as chosen.
        steps: optimiser steps in all.
        timed_steps: how many were timed.
        timed_batch: images in a timed step; fewer than the run's where those would take too long.
        seconds: expected for the whole stage.
    """

    name: str
    epochs: int
    steps: int
    timed_steps: int
    timed_batch: int
    seconds: float


def estimate_time(config: TrainConfig, data: DataSplits, budget: float = 20.0) -> list[StageTime]:
    """Time a few steps of each stage, and return what the stages would take. Nothing is written or downloaded.

    The steps are real but for the pixels, which are noise; files that are streamed are decoded for a moment, too. A
    step is taken to grow in proportion to its images, and what fills a memory before the first to cost a forward
    pass an image. Checkpoints, evaluation, and the first decoding of files that stay in
    memory are left out: a few per cent.

    Args:
        config: resolved options.
        data: as read, not framed.
        budget: seconds that the timing may take in all, about.
    """
    device = torch.device(str(config.device))
    config = replace_options(config, {"pretrained": "none", "teacher.pretrained": "none"})
    stages = plan_stages(config)
    mean, std = _statistics(config, data)
    noise = _noise(config, data.train, device)
    finished: dict[str, Classifier] = {}
    times = []
    # Building encoders draws from torch's generator; the caller's is left as it was.
    with torch.random.fork_rng(devices=[]):
        for stage in stages:
            previous = finished.get(stage.takes or "")
            if previous is None and stage.ready is not None:
                previous = Classifier.load(stage.ready)
            method = get_method(stage.method).build(MethodContext(config, stage, noise, mean, std, previous))
            method = method.to(device).to(memory_format=torch.channels_last)
            method.train()
            views = {name: build_view(recipe, mean, std) for name, recipe in method.views.items()}
            images, batch = len(data.train), resolved(config.batch_size)
            steps = stage.epochs * (images // batch)
            decoding = _decoding_seconds(config, data.train, views)
            if stage.epochs == 0:
                whole, timed_batch = 0.0, 0
                if method.images_prepared():
                    each, timed_batch = _forward_seconds(method.encoder, config, noise, device, budget / len(stages))
                    whole = method.images_prepared() * _beside(each, decoding, device)
                times.append(StageTime(stage.name, 0, 0, 0, timed_batch, whole))
                finished[stage.name] = method.classifier()
                continue
            seconds, timed_batch = _timed_steps(method, config, noise, views, device, budget / len(stages))
            step = min(seconds) * batch / timed_batch  # other programs hold up some of them
            whole = steps * _beside(step, decoding * batch, device)
            whole += method.images_prepared() * _beside(_FORWARD_SHARE * step / batch, decoding, device)
            times.append(StageTime(stage.name, stage.epochs, steps, len(seconds), timed_batch, whole))
            finished[stage.name] = method.classifier()
    return times


def _beside(computing: float, decoding: float, device: torch.device) -> float:
    """Return the seconds of computing and decoding together: on one processor they share the cores."""
    if device.type == "cpu":
        return computing + decoding / default_workers(None)
    return max(computing, decoding / default_workers(device))


def _timed_steps(
    method: Method,
    config: TrainConfig,
    noise: ImageSet,
    views: dict[str, View],
    device: torch.device,
    budget: float,
) -> tuple[list[float], int]:
    """Return the seconds of some steps, and how many images each had."""
    small = min(_SMALLEST_BATCH, resolved(config.batch_size))
    steps = _steps(method, config, ResidentLoader(noise, views, small, config.seed, device, steps_at_once=1), device)
    next(steps)  # the first step also allocates and plans
    whole = min(next(steps), next(steps)) * resolved(config.batch_size) / small
    share = min(1.0, budget / (whole * (_FEWEST_STEPS + 1)))
    batch = max(small, int(share * resolved(config.batch_size)))
    steps = _steps(method, config, ResidentLoader(noise, views, batch, config.seed, device, steps_at_once=1), device)
    next(steps)
    began, seconds = time.monotonic(), [next(steps)]
    while len(seconds) < _MOST_STEPS and time.monotonic() - began + seconds[-1] < 0.6 * budget:
        seconds.append(next(steps))
    return seconds, batch


def _forward_seconds(
    encoder: nn.Module, config: TrainConfig, noise: ImageSet, device: torch.device, budget: float
) -> tuple[float, int]:
    """Return the seconds that the feature of an image takes, and how many images were timed at a time."""
    size = noise.framing.size

    def timed(count: int) -> float:
        images = torch.zeros(count, noise.channels, *size, device=device)
        began = time.monotonic()
        with torch.no_grad():
            encoder(images.to(memory_format=torch.channels_last)).cpu()  # waits for the device
        return time.monotonic() - began

    small = min(_SMALLEST_BATCH, resolved(config.batch_size))
    timed(small)  # the first pass also allocates and plans
    few = timed(small)
    batch = max(small, min(resolved(config.batch_size), int(budget / 3 / few * small)))
    timed(batch)
    return timed(batch) / batch, batch


def _steps(method: Method, config: TrainConfig, loader: ResidentLoader, device: torch.device) -> Iterator[float]:
    """Train, and yield how long each step took in seconds."""
    groups = parameter_groups(method, config.tune)
    optimiser = build_optimiser(groups, config.optimiser, device)  # at rate 0
    step = TrainingStep(method, optimiser, None, device, bfloat16=config.precision == "bfloat16")
    for number in range(_MOST_STEPS + 2):
        began = time.monotonic()
        step(loader.load(*divmod(number, loader.steps_per_epoch)), 0.0)
        step.guard.look()  # waits for the device
        yield time.monotonic() - began


def _noise(config: TrainConfig, train: LabelledImages, device: torch.device) -> ImageSet:
    """Return one image of noise in place of every training image: with its label, in the memory of one."""
    files = isinstance(train, ImageFiles)
    framing = chosen_framing(config) if files else train.framing
    shape = (1, train.channels, *framing.size)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    # Brought to the device first: what is expanded there is not copied by a loader.
    images = pixels.to(device).expand(len(train), *shape[1:])
    return ImageSet(images, train.labels, train.class_names, framed=framing if files else None)


def _statistics(config: TrainConfig, data: DataSplits) -> tuple[tuple[float, ...], tuple[float, ...]]:
    channels = data.train.channels
    mean = tuple(config.source.mean or data.mean or (0.5,) * channels)
    return mean, tuple(config.source.std or data.std or (0.25,) * channels)


def _decoding_seconds(config: TrainConfig, train: LabelledImages, views: dict[str, View]) -> float:
    """Return how long one core takes to make the views of one file; 0 where pixels stay in memory."""
    if not isinstance(train, ImageFiles) or config.loading.resident:
        return 0.0
    files = replace(train, framed=chosen_framing(config))
    some = keyed_permutation(0, "time", size=len(files))[:_DECODED]
    began = time.monotonic()
    frames = frame_files(files, some, views, needed_side(files.framing, views))
    for name, made in frames.items():
        views[name].augment(made, some, 0, 0, name)
    return (time.monotonic() - began) / len(some)
