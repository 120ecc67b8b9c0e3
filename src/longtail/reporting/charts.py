"""The charts of a report as inline SVG, each with a title and a sentence for people who do not see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, geometric_mean
from typing import Any, Protocol

from markupsafe import Markup

from longtail.metrics import GROUPS
from longtail.reporting.run_record import ClassRow
from longtail.reporting.svg import Plot, Scale, linear_scale, number, percent

FEW_IMAGES = 10
"""Below this number of test images an accuracy is not shown as one: its interval spans most of 0..1."""
MOST_MARKS = 600
"""Above this number of classes a chart draws one shape a group instead of one mark a class."""
MOST_WHISKERS = 40
FEWEST_FOR_TREND = 24


class CountedClass(Protocol):
    """What a chart of class sizes needs of a class."""

    @property
    def name(self) -> str:
        """As written by the user."""
        ...

    @property
    def group(self) -> str:
        """``many``, ``medium`` or ``few``."""
        ...

    @property
    def train_images(self) -> int:
        """Number of training images."""
        ...


def class_count_chart(rows: Sequence[CountedClass]) -> Markup:
    """Training images of each class, largest first; logarithmic above a ratio of 100."""
    ordered = sorted(rows, key=lambda row: -row.train_images)
    most, least = ordered[0].train_images, max(1, ordered[-1].train_images)
    log = most / least > 100
    text = f"{len(rows)} classes, largest first: from {most} down to {ordered[-1].train_images} training images."
    plot = Plot("chart-counts", "Training images of each class", text)
    if log:
        y = Scale(0.5 if least < 2 else least / 2, most, plot.bottom, plot.top, log=True)
    else:
        top = linear_scale([0.0, max(most, 1)], 0, 0).high
        y = Scale(0.0, top, plot.bottom, plot.top)
    plot.axes(None, y, x_title=f"{len(rows)} classes, largest first" + (" (logarithmic height)" if log else ""))
    step = (plot.right - plot.left) / len(rows)
    for group in GROUPS:
        places = [(k, row) for k, row in enumerate(ordered) if row.group == group]
        if not places:
            continue
        if len(rows) <= MOST_MARKS:
            for k, row in places:
                head = min(y(row.train_images), plot.bottom)
                plot.add(
                    '<rect class="fill {}" x="{:.2f}" y="{:.1f}" width="{:.2f}" height="{:.1f}">'
                    "<title>{}: {} training images ({})</title></rect>",
                    *(group, plot.left + k * step, head, max(0.4, step * 0.85), plot.bottom - head),
                    *(row.name, row.train_images, group),
                )
            continue
        corners = [f"{plot.left + places[0][0] * step:.1f},{plot.bottom:.1f}"]
        for k, row in places:
            corner = f"{plot.left + (k + 0.5) * step:.1f},{y(row.train_images):.1f}"
            if corner != corners[-1]:
                corners.append(corner)
        corners.append(f"{plot.left + (places[-1][0] + 1) * step:.1f},{plot.bottom:.1f}")
        plot.add('<polyline class="area {}" points="{}"/>', group, " ".join(corners))
    return plot.svg()


def _trend(tested: Sequence[ClassRow]) -> list[tuple[float, float]]:
    """Return (typical class size, mean accuracy) of classes of like size, smallest first: two shares a doubling."""
    alike: dict[int, list[ClassRow]] = {}
    for row in tested:
        alike.setdefault(round(2 * math.log2(max(0.5, row.train_images))), []).append(row)
    return [
        (geometric_mean([max(0.5, r.train_images) for r in rows]), fmean([r.accuracy or 0.0 for r in rows]))
        for _, rows in sorted(alike.items())
    ]


def accuracy_by_size_chart(rows: Sequence[ClassRow]) -> Markup:
    """Accuracy of each tested class against its training images, hollow where few test images stand behind it."""
    tested = [row for row in rows if row.accuracy is not None]
    sizes = [max(0.5, row.train_images) for row in tested] or [1.0]
    text = f"{len(tested)} of {len(rows)} classes have test images."
    line = _trend(tested) if len(tested) >= FEWEST_FOR_TREND else []
    if line:
        text += f" Mean accuracy {percent(line[0][1])} of the smallest, {percent(line[-1][1])} of the largest."
    plot = Plot("chart-size", "Accuracy against class size", text)
    x = Scale(min(sizes) / 1.25, max(sizes) * 1.25, plot.left, plot.right, log=True)
    y = Scale(0.0, 1.0, plot.bottom, plot.top + 4)
    plot.axes(x, y, lambda v: percent(v, 0), "training images of the class (logarithmic)")
    for group in GROUPS:
        members = [row for row in tested if row.group == group]
        if len(rows) > MOST_MARKS:
            dots = "".join(f"M{x(row.train_images):.1f} {y(row.accuracy or 0.0):.1f}h0" for row in members)
            plot.add('<path class="dots {}" d="{}"/>', group, dots)
            continue
        for row in members:
            across, up = x(row.train_images), y(row.accuracy or 0.0)
            if len(rows) <= MOST_WHISKERS:
                plot.add('<path class="whisker {}" d="M{:.1f} {:.1f}V{:.1f}"/>', group, across, y(row.low), y(row.high))
            plot.add(
                '<circle class="mark {}{}" cx="{:.1f}" cy="{:.1f}" r="{}">'
                "<title>{}: {} of {} right, {} training images</title></circle>",
                *(group, " unsure" if row.test_images < FEW_IMAGES else "", across, up),
                *(5 if len(rows) <= MOST_WHISKERS else 3.5, row.name, row.correct, row.test_images, row.train_images),
            )
    if line:
        plot.add('<polyline class="line" points="{}"/>', " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line))
    return plot.svg()


def group_chart(evaluations: Sequence[tuple[str, dict[str, Any]]], title: str = "Accuracy by group") -> Markup:
    """Accuracy of each group with its interval; one bar for each of ``evaluations`` (name, evaluation)."""
    figures = {
        group: [(name, e["groups"][group]["accuracy"], e["intervals"].get(group)) for name, e in evaluations]
        for group in GROUPS
    }
    said = [
        f"{group}, {name}: {'none' if value is None else percent(value)}"
        for group, entries in figures.items()
        for name, value, _ in entries
    ]
    plot = Plot("chart-groups", title, "; ".join(said) + ".", bottom=28)
    y = Scale(0.0, 1.0, plot.bottom, plot.top + 12)
    plot.axes(None, y, lambda v: percent(v, 0))
    room = (plot.right - plot.left) / len(GROUPS)
    wide = min(56.0, room * 0.7 / len(evaluations))
    for position, group in enumerate(GROUPS):
        middle = plot.left + (position + 0.5) * room
        plot.add('<text class="mid" x="{:.1f}" y="{:.1f}">{}</text>', middle, plot.bottom + 18, group)
        for place, (_, value, bounds) in enumerate(figures[group]):
            at = middle + (place - len(evaluations) / 2) * wide + 2
            centre = at + (wide - 4) / 2
            if value is None:
                plot.add('<text class="mid" x="{:.1f}" y="{:.1f}">none</text>', centre, plot.bottom - 6)
                continue
            style = f"fill {group}" + (" second" if place else "")
            box = (at, y(value), wide - 4, plot.bottom - y(value))
            plot.add('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>', style, *box)
            head = y(value)
            if bounds is not None and bounds[0] < bounds[1]:
                foot, head = y(bounds[0]), y(bounds[1])
                plot.add('<path class="interval" d="M{:.1f} {:.1f}h10m-5 0V{:.1f}m-5 0h10"/>', centre - 5, foot, head)
            shown = f"{100 * value:.1f}"
            plot.add('<text class="mid strong" x="{:.1f}" y="{:.1f}">{}</text>', centre, head - 5, shown)
    return plot.svg()


def curve_chart(name: str, title: str, points: Sequence[tuple[int, float]], as_percent: bool) -> Markup:
    """One figure over the epochs; ``points`` are (epoch, value)."""
    word: Callable[[float], str] = (lambda v: f"{100 * v:.3g}\u00a0%") if as_percent else number
    epochs, values = [p[0] for p in points], [p[1] for p in points]
    low = min(points, key=lambda p: p[1])
    high = max(points, key=lambda p: p[1])
    text = (
        f"{word(values[0])} at epoch {epochs[0]}, {word(values[-1])} at epoch {epochs[-1]}; "
        f"lowest {word(low[1])} at epoch {low[0]}, highest {word(high[1])} at epoch {high[0]}."
    )
    plot = Plot(name, title, text, width=340, height=190, bottom=38)
    y = linear_scale(values, plot.bottom, plot.top)
    x = Scale(epochs[0], max(epochs[-1], epochs[0] + 1), plot.left + 4, plot.right - 6)
    plot.axes(None, y, word, "epoch")
    for epoch in sorted({epochs[0], epochs[-1]}):
        plot.add('<text class="mid" x="{:.1f}" y="{:.1f}">{}</text>', x(epoch), plot.bottom + 16, epoch)
    path = " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in points)
    plot.add('<polyline class="curve" points="{}"/>', path)
    plot.add('<circle class="tip" cx="{:.1f}" cy="{:.1f}" r="3.5"/>', x(epochs[-1]), y(values[-1]))
    return plot.svg()


def reliability_chart(bins: Sequence[dict[str, Any]], of: str = "images") -> Markup:
    """Accuracy against confidence, with the number of test images (or what else they are ``of``) of each bin below."""
    held = [entry for entry in bins if entry["count"]]
    text = f"{len(held)} of {len(bins)} bins hold {of}. " + "; ".join(
        f"confidence {percent(b['confidence'])}: accuracy {percent(b['accuracy'])} of {b['count']} {of}" for b in held
    )
    plot = Plot("chart-reliability", "Accuracy against confidence", text + ".", height=330, bottom=104)
    x, y = Scale(0.0, 1.0, plot.left, plot.right), Scale(0.0, 1.0, plot.bottom, plot.top + 4)
    plot.axes(None, y, lambda v: percent(v, 0))
    most = max([entry["count"] for entry in bins] or [1]) or 1
    for entry in held:
        left, wide = x(entry["low"]) + 1, x(entry["high"]) - x(entry["low"]) - 2
        style = "unsure" if entry["count"] < FEW_IMAGES else ""
        up, tall = y(entry["accuracy"]), max(1.0, 48 * entry["count"] / most)
        plot.add(
            '<rect class="fill many {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>',
            *(style, left, up, wide, plot.bottom - up),
        )
        plot.add(
            '<path class="gap" d="M{:.1f} {:.1f}V{:.1f}"/><circle class="tip" cx="{:.1f}" cy="{:.1f}" r="3"/>',
            *(x(entry["confidence"]), up, y(entry["confidence"]), x(entry["confidence"]), up),
        )
        plot.add(
            '<rect class="count" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{} test {}</title></rect>',
            *(left, plot.height - 24 - tall, wide, tall, entry["count"], of),
        )
    plot.add('<path class="ideal" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>', x(0), y(0), x(1), y(1))
    plot.add('<text class="end" x="{:.1f}" y="{:.1f}">{}</text>', plot.left - 6, plot.height - 28.0, of)
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        anchor = "end" if tick == 1 else "mid"
        at = x(tick)
        plot.add('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>', anchor, at, plot.bottom + 17, percent(tick, 0))
    plot.add('<text class="mid" x="{:.1f}" y="{:.1f}">confidence</text>', x(0.5), plot.height - 6.0)
    return plot.svg()
