"""From counts to seconds, bytes and money."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from longtail.planning.communication import GRADIENTS, SHARDS, Exchanged, exchanges
from longtail.planning.counting import PARTS, StageCount
from longtail.planning.hardware import Rates
from longtail.planning.network import Cluster

OVERLAP = 0.7
"""Share of the time that it lies behind in which an exchange can go on: of the backward pass for sums of gradients, of
the encoders' time for shards. An assumption."""
PROGRAM_BYTES = 1.2e9
"""What the program, its libraries and their workspaces take on a device. An assumption."""
SLACK = 1.1
"""What an allocator takes over what it is asked for. An assumption."""
_DECODING = 0.69e-3, 5.48e-3
"""Seconds a core takes for a photograph, and for each view of it: 162 a second with one view, 58 with three, measured
on one core of an AMD EPYC (benchmarks/results/stream.json)."""
_BACKWARD = 2 / 3


@dataclass(frozen=True)
class StageEstimate:
    """What a stage would take.

    Attributes:
        count: what it is computed from.
        parts: seconds of computing a step, by part.
        exchanged: what processes send each other in a step.
        waiting: seconds a step that are spent on exchanges alone.
        step: seconds a step.
        decoding: seconds a step that the cores of a device take to read and augment its images; 0 if none are read.
        hours: of the whole stage.
        memory: bytes on a device, what program and allocator take included.
    """

    count: StageCount
    parts: Mapping[str, float]
    exchanged: tuple[Exchanged, ...]
    waiting: float
    step: float
    decoding: float
    hours: float
    memory: Mapping[str, float]

    @property
    def computing(self) -> float:
        """Seconds of computing a step."""
        return sum(self.parts.values())

    @property
    def total_memory(self) -> float:
        """Bytes on a device."""
        return sum(self.memory.values())

    @property
    def images_a_second(self) -> float:
        """Training images a second, over all devices."""
        return self.count.sizes.batch / self.step


def core_rate(views: int) -> float:
    """Return how many photographs a core reads and augments in a second, ``views`` views of each."""
    each, view = _DECODING
    return 1 / (each + views * view)


def seconds_of(count: StageCount, rates: Rates) -> dict[str, float]:
    """Return the seconds that the parts of a step take: of each operation, the slower of computing and moving."""
    parts = dict.fromkeys(PARTS, 0.0)
    for operation in count.operations:
        flops = rates.half_flops if operation.half else rates.flops
        computing = operation.flops / flops[operation.kind] if operation.flops else 0.0
        moving = operation.read_and_written / rates.bandwidth
        parts[operation.part] += max(computing, moving) + rates.operation_seconds
    return {part: seconds for part, seconds in parts.items() if seconds}


def estimate_stage(
    count: StageCount,
    rates: Rates,
    cluster: Cluster,
    *,
    decoded_a_second: float,
    program_bytes: float = PROGRAM_BYTES,
    shares_cores: bool = False,
) -> StageEstimate:
    """Return what a stage would take.

    Args:
        count: of a step on one of the cluster's devices.
        rates: of a device.
        cluster: how many, and how they are connected.
        decoded_a_second: images that the cores of one device read and augment in a second; infinite if they need not.
        program_bytes: what the program itself takes on a device.
        shares_cores: whether computing and decoding take the same cores, so that one waits for the other.
    """
    parts = seconds_of(count, rates)
    computing = sum(parts.values())
    exchanged = tuple(exchanges(count.sizes, cluster)) if cluster.gpus > 1 else ()
    # Gradients are summed while the backward pass goes on, shards put together while the encoders compute; all else is
    # waited for.
    summing = sum(x.seconds for x in exchanged if x.what in GRADIENTS)
    gathering = sum(x.seconds for x in exchanged if x.what == SHARDS)
    encoding = parts.get("student", 0.0) + parts.get("teacher", 0.0)
    behind = OVERLAP * _BACKWARD * parts.get("student", 0.0), OVERLAP * encoding
    left = max(0.0, summing - behind[0]) + max(0.0, gathering - behind[1])
    waiting = sum(x.seconds for x in exchanged) - summing - gathering + left
    decoding = count.sizes.batch / cluster.gpus / decoded_a_second
    busy = computing + waiting
    step = busy + decoding if shares_cores else max(busy, decoding)
    prepared = count.prepared / count.sizes.batch * max(parts.get("teacher", parts.get("student", 0.0)), decoding)
    memory: dict[str, float] = {name: float(size) for name, size in count.memory.items() if size}
    memory["allocator's slack"] = (SLACK - 1) * sum(memory.values())
    memory["program and libraries"] = program_bytes
    hours = (count.steps * step + prepared) / 3600
    return StageEstimate(count, parts, exchanged, waiting, step, decoding, hours, memory)


def largest_batch(small: StageEstimate, large: StageEstimate, gpus: int, memory: float) -> int:
    """Return the most images a device that fit into ``memory`` bytes, from what two batches take; 0 if not one fits.

    Memory grows in proportion to the images, beside what it takes without any.
    """
    few, many = small.count.sizes.batch // gpus, large.count.sizes.batch // gpus
    each = (large.total_memory - small.total_memory) / (many - few)
    return max(0, int((memory - small.total_memory) / each + few))
