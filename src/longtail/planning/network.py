"""How long processes take to exchange numbers: bytes over the slowest link, and a latency for each hop."""

from __future__ import annotations

import math
from dataclasses import dataclass

from longtail.errors import UserError

INSIDE_LATENCY = 3e-6
BETWEEN_LATENCY = 10e-6
"""Seconds a hop: over the links of one machine, and between machines. Assumptions."""
LINK_SHARE = 0.8
"""Share of a link's rate that an exchange of large tensors reaches. An assumption."""


@dataclass(frozen=True)
class Transfer:
    """What an exchange costs.

    Attributes:
        sent: bytes that each process sends.
        seconds: until all have what they need.
    """

    sent: float
    seconds: float


@dataclass(frozen=True)
class Cluster:
    """Processes, one a device, on machines of equal size.

    Every device has a network card of its own, as in machines made for this; an exchange goes over the links inside a
    machine first, so that what goes between machines is shared out among its cards.

    Args:
        gpus: devices in all.
        per_node: devices a machine.
        inside: rate of a device's links inside its machine, bytes/s in one direction.
        between: rate of a device's network card, bytes/s in one direction.

    Raises:
        UserError: the machines are not full.
    """

    gpus: int
    per_node: int
    inside: float
    between: float

    def __post_init__(self) -> None:
        if self.gpus < 1 or self.per_node < 1:
            raise UserError(f"--gpus and --gpus_per_node must be 1 or more, got {self.gpus} and {self.per_node}.")
        if self.gpus > self.per_node and self.gpus % self.per_node:
            raise UserError(
                f"--gpus {self.gpus} does not fill machines of {self.per_node}; give a multiple of {self.per_node}, or "
                "another --gpus_per_node."
            )

    @property
    def nodes(self) -> int:
        """Machines."""
        return max(1, self.gpus // self.per_node)

    @property
    def _local(self) -> int:
        return self.gpus // self.nodes

    @property
    def latency(self) -> float:
        """Seconds that the first byte takes to reach everyone: a tree inside the machines, and one between them."""
        return INSIDE_LATENCY * math.log2(self._local) + BETWEEN_LATENCY * math.log2(self.nodes)

    def all_reduce(self, size: float) -> Transfer:
        """Return the cost of summing ``size`` bytes over all processes: each sends 2 (N - 1) / N of them (ring)."""
        inside = 2 * size * (self._local - 1) / self._local
        between = 2 * size / self._local * (self.nodes - 1) / self.nodes
        return self._transfer(2 * size * (self.gpus - 1) / self.gpus, inside, between, hops=2)

    def all_gather(self, size: float) -> Transfer:
        """Return the cost of giving everyone all of ``size`` bytes, of which each holds an equal part."""
        sent = size * (self.gpus - 1) / self.gpus
        return self._transfer(sent, sent, size / self._local * (self.nodes - 1) / self.nodes, hops=1)

    def reduce_scatter(self, size: float) -> Transfer:
        """Return the cost of summing ``size`` bytes over all processes, each being sent an equal part of the sum."""
        return self.all_gather(size)  # its mirror image

    def broadcast(self, size: float) -> Transfer:
        """Return the cost of giving everyone ``size`` bytes that one process holds, each passing it on."""
        several = float(self.gpus > 1)
        return self._transfer(size * several, size * float(self._local > 1), size * float(self.nodes > 1), hops=1)

    def _transfer(self, sent: float, inside: float, between: float, hops: int) -> Transfer:
        if self.gpus == 1:
            return Transfer(0.0, 0.0)
        moving = inside / (LINK_SHARE * self.inside) + between / (LINK_SHARE * self.between)
        return Transfer(sent, hops * self.latency + moving)
