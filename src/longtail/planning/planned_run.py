"""What is known of a run that was only planned."""

from __future__ import annotations

from dataclasses import dataclass

from longtail.config import TrainConfig
from longtail.data import DataSplits
from longtail.planning.estimate import StageEstimate
from longtail.planning.hardware import Device
from longtail.planning.network import Cluster


@dataclass(frozen=True)
class PlannedRun:
    """What a run would take.

    Attributes:
        config: its options, resolved.
        data: its data: sizes only.
        device: that it is planned for, by its data sheet.
        gpu: name of it.
        cluster: how many there are, and how they are connected.
        stages: what each stage would take.
        largest: most images a device that fit into its memory, over all stages.
        cores: processor cores a device.
        price: of a device and hour, None if it was not given.
        assumptions: what is taken for granted, a sentence each.
    """

    config: TrainConfig
    data: DataSplits
    device: Device
    gpu: str
    cluster: Cluster
    stages: tuple[StageEstimate, ...]
    largest: int
    cores: int
    price: float | None
    assumptions: tuple[str, ...]

    @property
    def hours(self) -> float:
        """Of the whole run."""
        return sum(stage.hours for stage in self.stages)

    @property
    def kilowatt_hours(self) -> float:
        """Energy of the devices alone at their largest power: an upper bound of theirs."""
        return self.hours * self.cluster.gpus * self.device.watts / 1000

    @property
    def cost(self) -> float | None:
        """Price times devices times hours."""
        return None if self.price is None else self.price * self.cluster.gpus * self.hours
