"""Figures of a study: values over a quantity, a line a row, with intervals; SVG made here, as all of the reporting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from longtail.metrics import MeanInterval
from longtail.reporting.compare_page import HUES
from longtail.reporting.svg import Plot, Scale, linear_scale, number, percent

_MOST_DOTS = 20


@dataclass(frozen=True)
class Line:
    """One line: its name, and (x, mean with interval) from left to right."""

    name: str
    points: tuple[tuple[float, MeanInterval], ...]


@dataclass(frozen=True)
class Figure:
    """A chart with what stands around it."""

    title: str
    svg: Markup
    caption: str
    names: tuple[str, ...]


def line_figure(
    key: str,
    title: str,
    caption: str,
    lines: Sequence[Line],
    *,
    x_title: str,
    as_percent: bool,
    log: bool = False,
    ticks: Sequence[tuple[float, str]] = (),
) -> Figure | None:
    """Return a chart of ``lines``, None if they hold no point.

    Args:
        key: unique on the page.
        title, caption: what stands above and below.
        lines: in the order of their colours.
        x_title: what runs to the right.
        as_percent: whether values are fractions.
        log: whether x runs logarithmically.
        ticks: (x, label) below the axis, in place of round numbers.
    """
    drawn = [line for line in lines if line.points]
    if not drawn:
        return None
    across = [x for line in drawn for x, _ in line.points]
    bounds = [
        bound
        for line in drawn
        for _, y in line.points
        for bound in (y.mean, y.low, y.high)
        if bound is not None and (not as_percent or 0 <= bound <= 1)
    ]
    word: Callable[[float], str] = (lambda value: percent(value)) if as_percent else number
    said = "; ".join(
        f"{line.name}: " + ", ".join(f"{word(y.mean)} at {x_label(x, ticks)}" for x, y in _ends(line)) for line in drawn
    )
    plot = Plot(f"study-{key}", title, said + ".", width=520, height=300)
    low, high = min(across), max(across)
    high = high if high > low else low + 1
    x = Scale(low, high, plot.left + 8, plot.right - 12, log=log and low > 0)
    y = linear_scale(bounds, plot.bottom, plot.top)
    plot.axes(None if ticks else x, y, (lambda value: percent(value, 0)) if as_percent else number, x_title)
    for at, label in ticks:
        plot.add('<text class="mid" x="{:.1f}" y="{:.1f}">{}</text>', x(at), plot.bottom + 17, label)
    for place, line in enumerate(lines):
        if line.points:
            _draw(plot, line, place, x, y, word)
    return Figure(title, plot.svg(), caption, tuple(line.name for line in lines))


def _draw(plot: Plot, line: Line, place: int, x: Scale, y: Scale, word: Callable[[float], str]) -> None:
    style = f"hue{place % HUES}" + (" dashed" if place >= HUES else "")
    path = " ".join(f"{x(at):.1f},{y(value.mean):.1f}" for at, value in line.points)
    plot.add('<polyline class="{}" points="{}"/>', f"run {style}", path)
    if len(line.points) > _MOST_DOTS:
        return
    for at, value in line.points:
        if value.low is not None and value.high is not None:
            low, high = (min(max(bound, y.low), y.high) for bound in (value.low, value.high))
            ends = x(at) - 4, y(low), y(high)
            plot.add('<path class="{}" d="M{:.1f} {:.1f}h8m-4 0V{:.1f}m-4 0h8"/>', f"run {style}", *ends)
        plot.add(
            '<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}: {}</title></circle>',
            *(style, x(at), y(value.mean), line.name, word(value.mean)),
        )


def _ends(line: Line) -> list[tuple[float, MeanInterval]]:
    """Return all points of a short line, the first and last of a long one: what is said to who does not see it."""
    return list(line.points) if len(line.points) <= _MOST_DOTS else [line.points[0], line.points[-1]]


def x_label(value: float, ticks: Sequence[tuple[float, str]]) -> str:
    """Return how a place on the axis is called."""
    return next((label for at, label in ticks if at == value), number(value))
