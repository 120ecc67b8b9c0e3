"""How fast a stage goes, and how long it and the run will still take."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

_WINDOW = 10.0
"""Seconds over which the present speed is taken."""


def clock(seconds: float) -> str:
    """Return a duration as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a run, as far as its length goes.

    Attributes:
        name: of the stage.
        epochs: passes over the training images.
        passes: what a step costs (see ``longtail.methods.Method.passes``).
    """

    name: str
    epochs: int
    passes: float = 1.0

    @property
    def work(self) -> float:
        """Its whole cost, in passes over the training images."""
        return self.epochs * self.passes


class Pace:
    """Speed and time left of a stage.

    Args:
        total: steps of the stage.
        done: how many of them were taken before, by a run that is now resumed.
        now: seconds on any clock.
    """

    def __init__(self, total: int, done: int, now: float) -> None:
        self.total, self.done, self.first = total, done, done
        self.began = self.last = now
        self._rested = 0.0
        self._marks = deque([(now, done)])

    def step(self, done: int, now: float) -> None:
        """Take in that ``done`` steps are taken."""
        self.done, self.last = done, now

    def rest(self, now: float) -> None:
        """Take in that what passed since the last step was no training, but an evaluation."""
        self._rested += now - self.last
        self.last = now

    def steps_per_second(self) -> float | None:
        """Return the present speed of the training itself; None before the first step."""
        now = self.last - self._rested
        while len(self._marks) > 1 and self._marks[1][0] <= now - _WINDOW:
            self._marks.popleft()
        seconds, steps = now - self._marks[0][0], self.done - self._marks[0][1]
        if self.done > self._marks[-1][1]:
            self._marks.append((now, self.done))
        return steps / seconds if steps and seconds > 0 else None

    def seconds_per_step(self) -> float | None:
        """Return what a step took so far, evaluations included; None before the first."""
        taken = self.done - self.first
        return (self.last - self.began) / taken if taken else None

    def left(self) -> float | None:
        """Return the seconds that the rest of the stage will take; None before the first step."""
        each = self.seconds_per_step()
        return None if each is None else each * (self.total - self.done)

    def run_left(self, plan: Sequence[PlannedStage], number: int, more_runs: int = 0) -> float | None:
        """Return the seconds that the rest of the run will take, about; None before the first step.

        Args:
            plan: the run's stages, all on the same images.
            number: position of this stage.
            more_runs: how many runs of the same plan follow (folds).
        """
        each, left = self.seconds_per_step(), self.left()
        if each is None or left is None:
            return None
        of_stage = each * self.total / plan[number].work
        work = sum(stage.work for stage in plan[number + 1 :]) + more_runs * sum(stage.work for stage in plan)
        return left + of_stage * work
