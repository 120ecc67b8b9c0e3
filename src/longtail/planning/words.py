"""A plan in lines for a person, and as figures for a file."""

from __future__ import annotations

from typing import Any

from longtail.config import resolved
from longtail.planning.estimate import OVERLAP, PROGRAM_BYTES, SLACK, StageEstimate, core_rate
from longtail.planning.network import BETWEEN_LATENCY, INSIDE_LATENCY, LINK_SHARE
from longtail.planning.planned_run import PlannedRun

_GIB = 2**30


def lines_of(plan: PlannedRun, streamed: bool) -> tuple[list[str], dict[str, Any]]:
    """Return what is printed of a plan, and its figures (JSON-ready; bytes and seconds)."""
    config, gpus = plan.config, plan.cluster.gpus
    batch = resolved(config.batch_size)
    height, width = plan.data.train.image_size
    lines = [
        f"plan: {plan.data.name}, {len(plan.data.train)} training images of {plan.data.train.num_classes} classes; "
        f"{config.method}, {config.backbone} at {height} x {width}, {config.precision}; "
        f"batch {batch} on {gpus} x {plan.device.title}" + (f" ({batch // gpus} each)" if gpus > 1 else "")
    ]
    for stage in plan.stages:
        lines += _stage_lines(stage, plan, streamed)
    lines += [f"largest batch that fits: {plan.largest} images a device, {plan.largest * gpus} in all"]
    cost = "" if plan.cost is None else f", cost {plan.cost:.4g}"
    lines += [
        f"the whole run: {plan.hours:.3g} hours, {plan.hours * gpus:.3g} device hours, at most "
        f"{plan.kilowatt_hours:.3g} kWh by the devices{cost}"
    ]
    lines += [f"assumed: {sentence}" for sentence in (*plan.assumptions, *_assumptions(plan, streamed))]
    return lines, _figures(plan)


def _stage_lines(stage: StageEstimate, plan: PlannedRun, streamed: bool) -> list[str]:
    count, gpus = stage.count, plan.cluster.gpus
    name, own = count.stage, plan.device.memory
    memory = ", ".join(f"{what} {size / _GIB:.2g}" for what, size in stage.memory.items())
    over = "" if stage.total_memory <= own else "  DOES NOT FIT"
    parts = ", ".join(f"{part} {1000 * seconds:.1f}" for part, seconds in stage.parts.items())
    per_epoch = count.steps // name.epochs
    lines = [
        f"{name.name} ({name.backbone}, {name.epochs} epochs of {per_epoch} steps)",
        f"  memory a device, GiB: {memory}: {stage.total_memory / _GIB:.2f} of {own / _GIB:.0f}{over}",
        f"  a step computes {count.flops / 1e12:.3g} TFLOP a device in {1000 * stage.computing:.1f} ms: {parts}",
    ]
    if stage.exchanged:
        sent = sum(x.sent for x in stage.exchanged)
        each = ", ".join(f"{x.what} {x.sent / 2**20:.3g}" for x in stage.exchanged)
        lines.append(
            f"  a step sends {sent / 2**20:.4g} MiB a device ({each}); "
            f"{1000 * stage.waiting:.1f} ms of it are waited for"
        )
    if streamed:
        wanted = count.sizes.batch / gpus / max(stage.computing + stage.waiting, 1e-12)
        cores = wanted / core_rate(count.views)
        held = f"; {plan.cores} are the limit" if stage.decoding > stage.computing + stage.waiting else ""
        lines.append(
            f"  input: {wanted:.0f} images/s a device in {count.views} views, which takes {cores:.1f} cores{held}"
        )
    lines.append(
        f"  a step takes {1000 * stage.step:.1f} ms: {stage.images_a_second:.0f} images/s, "
        f"{3600 / (per_epoch * stage.step):.3g} epochs an hour, {stage.hours:.3g} hours"
    )
    return lines


def _assumptions(plan: PlannedRun, streamed: bool) -> list[str]:
    said = [
        f"the program and its libraries take {PROGRAM_BYTES / 1e9:.1f} GB of a device, its allocator "
        f"{SLACK - 1:.0%} more than is asked for.",
        "operations are not fused, as torch runs them without a compiler; evaluation and checkpoints are left out.",
    ]
    if plan.cluster.gpus > 1:
        cluster = plan.cluster
        machines = f"{cluster.nodes} machine" + ("s" if cluster.nodes > 1 else "")
        said.append(
            f"{machines}; {cluster.inside / 1e9:.4g} GB/s between devices of a machine, {cluster.between / 1e9:.4g} "
            f"between machines, {LINK_SHARE:.0%} of it reached; {INSIDE_LATENCY * 1e6:.0f} and "
            f"{BETWEEN_LATENCY * 1e6:.0f} microseconds a hop; gradients are summed in a ring during {OVERLAP:.0%} of "
            "the backward pass, shards of weights put together during as much of the encoders' time, all other "
            "exchanges are waited for."
        )
    if streamed:
        said.append(
            f"a core reads and augments {core_rate(1):.0f} photographs a second in one view, {core_rate(3):.0f} in "
            "three (benchmarks/results/stream.json)."
        )
    return said


def _figures(plan: PlannedRun) -> dict[str, Any]:
    return {
        "gpu": plan.gpu,
        "gpus": plan.cluster.gpus,
        "batch_size": plan.config.batch_size,
        "hours": plan.hours,
        "kilowatt_hours": plan.kilowatt_hours,
        "cost": plan.cost,
        "largest_batch_a_device": plan.largest,
        "assumptions": list(plan.assumptions),
        "stages": [
            {
                "name": stage.count.stage.name,
                "backbone": stage.count.stage.backbone,
                "epochs": stage.count.stage.epochs,
                "steps": stage.count.steps,
                "memory": dict(stage.memory),
                "held_between_passes": stage.count.held_between,
                "flops": stage.count.flops,
                "seconds": dict(stage.parts),
                "sent": {x.what: x.sent for x in stage.exchanged},
                "waiting_seconds": stage.waiting,
                "step_seconds": stage.step,
                "images_a_second": stage.images_a_second,
                "hours": stage.hours,
            }
            for stage in plan.stages
        ],
    }
