"""The course of a figure over a stage, in few enough points to show."""

from __future__ import annotations

from itertools import pairwise

_POINTS = 32
_BARS = "▁▂▃▄▅▆▇█"


class Trend:
    """Stretches of a stage with the mean of a figure in each; neighbours are put together as they become many.

    Attributes:
        points: ``(steps, mean)`` of each stretch, in order.
    """

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []
        self._steps, self._sum = 0, 0.0
        self._in_stretch, self._in_last = 1, 1  # readings: in a full stretch, in the last one

    def read(self, steps: int, mean: float) -> None:
        """Take in the ``mean`` over the first ``steps`` steps of an epoch; only what is new in it counts."""
        fresh = steps - self._steps
        if fresh <= 0:
            return
        reading = fresh, (mean * steps - self._sum) / fresh
        self._steps, self._sum = steps, mean * steps
        if self._in_last < self._in_stretch:
            self.points[-1] = _mean([self.points[-1], reading])
            self._in_last += 1
            return
        self.points.append(reading)
        self._in_last = 1
        if len(self.points) == 2 * _POINTS:
            self.points = [_mean(self.points[k : k + 2]) for k in range(0, 2 * _POINTS, 2)]
            self._in_stretch *= 2
            self._in_last = self._in_stretch

    def end_epoch(self) -> None:
        """Begin a new epoch: the next means start anew."""
        self._steps, self._sum = 0, 0.0

    def word(self) -> str:
        """Return ``falling``, ``rising`` or ``level``: the last quarter against the one before it.

        Level is what moved by less than a twentieth of the range seen so far; "" where the course is too short.
        """
        values = [mean for _, mean in self.points]
        quarter = len(values) // 4
        if quarter < 2:
            return ""
        change = sum(values[-quarter:]) / quarter - sum(values[-2 * quarter : -quarter]) / quarter
        if abs(change) <= 0.05 * (max(values) - min(values)):
            return "level"
        return "falling" if change < 0 else "rising"

    def bars(self, width: int) -> str:
        """Return the course as at most ``width`` bars of eight heights, lowest to highest value."""
        if len(self.points) < 2 or width < 2:
            return ""
        points = self.points
        if len(points) > width:
            edges = [len(points) * k // width for k in range(width + 1)]
            points = [_mean(points[a:b]) for a, b in pairwise(edges)]
        values = [mean for _, mean in points]
        low, high = min(values), max(values)
        scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
        return "".join(_BARS[round((value - low) * scale)] for value in values)


def _mean(points: list[tuple[int, float]]) -> tuple[int, float]:
    steps = sum(weight for weight, _ in points)
    return steps, sum(weight * mean for weight, mean in points) / steps
