"""``longtail plan``: what a run would take on other hardware, counted without it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longtail.config import TrainConfig, replace_options, resolved
from longtail.data import DataSplits, ImageFiles
from longtail.errors import UserError
from longtail.files import check_output, write_json
from longtail.methods import get_method
from longtail.options import make_config, parse_values, read_recipe
from longtail.planning.calibrate import calibrate, calibrated, write_calibration
from longtail.planning.counting import count_stages
from longtail.planning.estimate import core_rate, estimate_stage, largest_batch
from longtail.planning.facts import planned_splits
from longtail.planning.hardware import (
    CALIBRATED,
    DEVICES,
    EFFICIENCY,
    Device,
    Rates,
    assumed_rates,
    assumptions,
    get_device,
)
from longtail.planning.network import Cluster
from longtail.planning.planned_run import PlannedRun
from longtail.planning.words import lines_of
from longtail.training.defaults import resolve
from longtail.training.devices import pick_device
from longtail.training.framing_defaults import chosen_framing
from longtail.training.progress import ProgressReporter

_GIGABIT = 1e9 / 8


def plan(
    name: str = "",
    *,
    data: str | None = None,
    recipe: str | None = None,
    images: int | None = None,
    classes: int | None = None,
    gpus: int = 1,
    gpu: str | None = None,
    gpus_per_node: int = 8,
    network: float = 400.0,
    efficiency: float | None = None,
    cores: int = 12,
    price: float | None = None,
    calibrate: bool = False,
    json: str | None = None,
    quiet: bool = False,
    **options: Any,
) -> PlannedRun | None:
    """Say what a run would take: memory, time, network, cores, hours and cost; nothing is trained or downloaded.

    A step of every stage is counted on shapes alone, with the method, encoders, queue and batch of the run. Times are
    the counts over rates that are assumed from data sheets, or that --calibrate measured here; each assumption is
    printed.

    Args:
        name: a data set (imagenet-lt, inaturalist2018, places-lt, cifar100-lt: their sizes are known), or a path, which
            is read.
        data: the same, by name.
        recipe: name of a recipe, or path of a YAML file; other options go before it.
        images: training images, in place of a data set; with --classes.
        classes: their classes.
        gpus: devices that train together.
        gpu: which: h200, h100, a100, l4, rtx4090, cpu, or here (what --calibrate measured); default: a100 for more than
            one, otherwise here, or cpu where nothing was measured.
        gpus_per_node: devices a machine.
        network: rate of a device's network card between machines, in Gbit/s.
        efficiency: share of the device's peak that products and convolutions reach (0.35 unless measured).
        cores: processor cores a device that read and augment images.
        price: of a device and hour, in any currency.
        calibrate: measure this machine first, for some seconds, and keep the figures.
        json: file for all figures.
        quiet: print nothing.
        options: of training.

    Raises:
        UserError: one sentence that says what to mend.
    """
    say = ProgressReporter(quiet)
    given = read_recipe(recipe) if recipe else {}
    given |= parse_values(options, "plan")
    given |= {"data": data or name} if data or name else {}
    if json is not None:
        check_output(Path(json), overwrite=True, option="--json")
    if calibrate:
        measure_here(str(given.get("device", "auto")), say)
        if not given.get("data") and images is None:
            return None
    known = _known_device(gpu, efficiency, gpus)
    _check_numbers(gpus, cores, network, price)
    cluster = Cluster(gpus, gpus_per_node, known.device.link, network * _GIGABIT)
    config, splits, source = planned_data(make_config(given), images, classes, say)
    # A run has this as an option of the queue; a plan may also ask what it would bring.
    sharded = config.queue.sharded and gpus > 1
    batch = resolved(config.batch_size)
    counts = count_stages(config, splits, gpus, sharded)
    twice = count_stages(replace_options(config, {"batch_size": 2 * batch}), splits, gpus, sharded)
    streamed = isinstance(splits.train, ImageFiles) and not config.loading.resident
    stages, larger = (
        [
            estimate_stage(
                count,
                known.rates,
                cluster,
                decoded_a_second=cores * core_rate(count.views) if streamed else math.inf,
                shares_cores=known.on_cores,
            )
            for count in some
        ]
        for some in (counts, twice)
    )
    fits = [largest_batch(*pair, gpus, known.device.memory) for pair in zip(stages, larger, strict=True)]
    made = PlannedRun(
        config,
        splits,
        known.device,
        known.name,
        cluster,
        tuple(stages),
        min(fits, default=0),
        cores,
        price,
        (*known.assumptions, source),
    )
    lines, figures = lines_of(made, streamed)
    for line in lines:
        say.say(line)
    if json is not None:
        write_json(Path(json), figures)
    return made


def measure_here(device: str, say: ProgressReporter) -> None:
    """Measure this machine's ``device``, keep the figures and say them."""
    figures = calibrate(pick_device(device))
    path = write_calibration(figures)
    rates = ", ".join(f"{kind} {rate / 1e9:.4g}" for kind, rate in figures["flops"].items())
    say.say(
        f"measured here ({figures['device']}, {figures['threads']} threads), GFLOP/s in float32: {rates}; "
        f"{figures['bandwidth'] / 1e9:.3g} GB/s; kept in {path}"
    )


_USUAL = "a100"
_NOT_SAID = "no --gpu was given with more than one: A100s are taken."


@dataclass(frozen=True)
class _Known:
    name: str
    device: Device
    rates: Rates
    assumptions: tuple[str, ...]
    on_cores: bool  # whether computing takes the cores that decode


def _known_device(gpu: str | None, efficiency: float | None, gpus: int) -> _Known:
    """Return the device that is planned for, and what a step reaches there."""
    if gpu is None and gpus > 1:
        return replace(found := _known_device(_USUAL, efficiency, gpus), assumptions=(_NOT_SAID, *found.assumptions))
    measured = calibrated() if gpu in (None, CALIBRATED) else None
    if gpu == CALIBRATED and measured is None:
        raise UserError("--gpu here was never measured; run longtail plan --calibrate first.")
    if measured is not None and efficiency is None:
        usual, own = DEVICES["cpu"], measured.rates
        device = replace(usual, title="this machine", memory=measured.memory or usual.memory)
        rates = ", ".join(f"{kind} {rate / 1e9:.4g}" for kind, rate in own.flops.items())
        told = (
            f"this machine as measured: {rates} GFLOP/s in float32, {own.bandwidth / 1e9:.3g} GB/s, "
            f"{own.operation_seconds * 1e6:.3g} microseconds an operation at least (longtail plan --calibrate).",
        )
        return _Known(CALIBRATED, device, own, told, measured.kind == "cpu")
    name = (gpu or "cpu").lower()
    device = get_device(name)
    share = EFFICIENCY if efficiency is None else efficiency
    return _Known(name, device, assumed_rates(device, share), tuple(assumptions(device, share)), name == "cpu")


def _check_numbers(gpus: int, cores: int, network: float, price: float | None) -> None:
    for option, value in (("gpus", gpus), ("cores", cores), ("network", network)):
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"--{option} must be above 0, got {value:g}.")
    if price is not None and not (math.isfinite(price) and price >= 0):
        raise UserError(f"--price must be 0 or above, got {price:g}.")


def planned_data(
    config: TrainConfig, images: int | None, classes: int | None, say: ProgressReporter
) -> tuple[TrainConfig, DataSplits, str]:
    """Return the resolved options, the data with the size its encoder sees, and where its numbers are from."""
    if config.task == "segmentation":
        raise UserError("longtail plan counts runs of classification; it has no plan for --task segmentation.")
    get_method(config.method)
    splits, source = planned_splits(config, images, classes, say)
    config, notes = resolve(replace_options(config, {"device": "cpu", "precision": _precision(config)}), splits)
    for note in notes:
        if "without an accelerator" not in note:  # of this machine, which is not the one that is planned for
            say.say(note)
    train = splits.train
    framed = replace(train, framed=chosen_framing(config)) if isinstance(train, ImageFiles) else train
    get_method(config.method).check(config, framed)
    return config, replace(splits, train=framed), source


def _precision(config: TrainConfig) -> str:
    return "bfloat16" if config.precision == "bfloat16" else "float32"
