"""Charts as inline SVG: numbers in, escaped markup out; colours and type come from the page's style sheet.

Every chart carries a title and a sentence for people who do not see it. Text is about 12 px at a width of 350-520 px, so
charts are laid out side by side rather than stretched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, geometric_mean
from typing import Any

from markupsafe import Markup

GROUPS = ("many", "medium", "few")
FEW_IMAGES = 10
"""Below this number of test images an accuracy is not shown as one: its interval spans most of 0..1."""
MOST_MARKS = 600
"""Above this number of classes a chart draws one shape a group instead of one mark a class."""
MOST_WHISKERS = 40


@dataclass(frozen=True)
class ClassRow:
    """One class of ``per_class.csv``; ``accuracy`` and ``confidence`` are None without test images."""

    name: str
    group: str
    train_images: int
    test_images: int
    correct: int
    accuracy: float | None
    low: float
    high: float
    confidence: float | None
    confused_with: str
    confused_count: int


@dataclass(frozen=True)
class Scale:
    """Maps ``low``..``high`` to pixels ``start``..``end``, in logarithms if ``log``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of ``value``."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(max(value, low)), math.log10(low), math.log10(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, about: int = 4) -> list[float]:
        """Return round values inside the range."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            few = math.log10(self.high / self.low) < 2
            values = [10.0**d * m for d in decades for m in ((1, 2, 5) if few else (1,))]
            return [v for v in values if self.low <= v <= self.high]
        step = _round_step((self.high - self.low) / about)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]


def _round_step(raw: float) -> float:
    """Return the least of 1, 2, 5 times a power of ten that is not below ``raw``."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))


def _linear(values: Sequence[float], start: float, end: float) -> Scale:
    """Return a scale with round ends around ``values``."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = abs(low) / 2 or 1.0
        low, high = low - pad, high + pad
    step = _round_step((high - low) / 4)
    return Scale(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, start, end)


def percent(value: float, digits: int = 1) -> str:
    """Return a fraction as ``83.3 %`` (with a space that does not break)."""
    return f"{100 * value:.{digits}f}\u00a0%"


def number(value: float) -> str:
    """Return a number with four figures; large whole numbers in full, in groups of three."""
    if value == int(value) and 1000 <= abs(value) < 1e15:
        text = f"{int(value):,}"
        return text.replace(",", "\u202f") if abs(value) >= 10_000 else text.replace(",", "")
    return f"{value:.4g}"


class Plot:
    """An SVG in the making, with axes at the left and below.

    Args:
        name: unique on the page; the ids of title and description come from it.
        title, description: what a screen reader says.
        width, height: in pixels at scale 1.
        bottom: room below the plot.
    """

    def __init__(
        self, name: str, title: str, description: str, width: int = 440, height: int = 270, bottom: int = 40
    ) -> None:
        self.name, self.title, self.description = name, title, description
        self.width, self.height = width, height
        self.left, self.right, self.top, self.bottom = 52.0, width - 10.0, 12.0, float(height - bottom)
        self._parts: list[Markup] = []

    def add(self, markup: str, *values: object) -> None:
        """Add ``markup`` (a literal), with ``values`` escaped into its fields."""
        self._parts.append(Markup(markup).format(*values))

    def axes(
        self, x: Scale | None, y: Scale, label: Callable[[float], str] = number, x_title: str = ""
    ) -> None:
        """Draw grid lines and tick labels; ``label`` words the ticks of y."""
        for tick in y.ticks():
            self.add('<path class="grid" d="M{:.1f} {:.1f}H{:.1f}"/>', self.left, y(tick), self.right)
            self.add('<text class="end" x="{:.1f}" y="{:.1f}">{}</text>', self.left - 6, y(tick) + 4, label(tick))
        for tick in x.ticks() if x else ():
            self.add('<text class="mid" x="{:.1f}" y="{:.1f}">{}</text>', x(tick), self.bottom + 17, number(tick))
        self.add('<path class="axis" d="M{:.1f} {:.1f}H{:.1f}"/>', self.left, self.bottom, self.right)
        if x_title:
            middle = (self.left + self.right) / 2
            self.add('<text class="mid" x="{:.1f}" y="{:.1f}">{}</text>', middle, self.height - 5, x_title)

    def svg(self) -> Markup:
        """Return the whole chart."""
        head = Markup(
            '<svg role="img" viewBox="0 0 {1} {2}" aria-labelledby="{0}-title {0}-text">'
            '<title id="{0}-title">{3}</title><desc id="{0}-text">{4}</desc>'
        ).format(self.name, self.width, self.height, self.title, self.description)
        return head + Markup("\n").join(self._parts) + Markup("</svg>")


def class_count_chart(rows: Sequence[ClassRow]) -> Markup:
    """Training images of each class, largest first; logarithmic above a ratio of 100."""
    ordered = sorted(rows, key=lambda row: -row.train_images)
    most, least = ordered[0].train_images, max(1, ordered[-1].train_images)
    log = most / least > 100
    text = f"{len(rows)} classes, largest first: from {most} down to {ordered[-1].train_images} training images."
    plot = Plot("chart-counts", "Training images of each class", text)
    if log:
        y = Scale(0.5 if least < 2 else least / 2, most, plot.bottom, plot.top, log=True)
    else:
        top = _linear([0.0, max(most, 1)], 0, 0).high
        y = Scale(0.0, top, plot.bottom, plot.top)
    plot.axes(None, y, x_title="classes, largest first" + (" (logarithmic height)" if log else ""))
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
    """Return (typical class size, mean accuracy) over eight shares of the classes, smallest classes first."""
    ordered = sorted(tested, key=lambda row: row.train_images)
    edges = [round(k * len(ordered) / 8) for k in range(9)]
    shares = [ordered[start:stop] for start, stop in zip(edges, edges[1:], strict=False)]
    return [
        (geometric_mean([max(0.5, r.train_images) for r in share]), fmean([r.accuracy or 0.0 for r in share]))
        for share in shares
    ]


def accuracy_by_size_chart(rows: Sequence[ClassRow]) -> Markup:
    """Accuracy of each tested class against its training images, hollow where few test images stand behind it."""
    tested = [row for row in rows if row.accuracy is not None]
    sizes = [max(0.5, row.train_images) for row in tested] or [1.0]
    text = f"{len(tested)} of {len(rows)} classes have test images."
    line = _trend(tested) if len(tested) >= 24 else []
    if line:
        text += f" Mean accuracy of the smallest eighth of them {percent(line[0][1])}, of the largest {percent(line[-1][1])}."
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
                plot.add(
                    '<path class="whisker {}" d="M{:.1f} {:.1f}V{:.1f}"/>', group, across, y(row.low), y(row.high)
                )
            plot.add(
                '<circle class="mark {}{}" cx="{:.1f}" cy="{:.1f}" r="{}">'
                "<title>{}: {} of {} right, {} training images</title></circle>",
                *(group, " unsure" if row.test_images < FEW_IMAGES else "", across, up),
                *(5 if len(rows) <= MOST_WHISKERS else 3.5, row.name, row.correct, row.test_images, row.train_images),
            )
    if line:
        plot.add('<polyline class="line" points="{}"/>', " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line))
    return plot.svg()


def group_chart(evaluations: Sequence[tuple[str, dict[str, Any]]]) -> Markup:
    """Accuracy of each group with its interval; one bar for each of ``evaluations`` (name, evaluation)."""
    said = []
    plot_rows = []
    for group in GROUPS:
        for place, (name, evaluation) in enumerate(evaluations):
            value, bounds = evaluation["groups"][group]["accuracy"], evaluation["intervals"].get(group)
            plot_rows.append((group, place, value, bounds))
            said.append(f"{group}, {name}: {'none' if value is None else percent(value)}")
    plot = Plot("chart-groups", "Accuracy by group", "; ".join(said) + ".", bottom=28)
    y = Scale(0.0, 1.0, plot.bottom, plot.top + 12)
    plot.axes(None, y, lambda v: percent(v, 0))
    room = (plot.right - plot.left) / len(GROUPS)
    wide = min(56.0, room * 0.7 / len(evaluations))
    for position, group in enumerate(GROUPS):
        middle = plot.left + (position + 0.5) * room
        plot.add('<text class="mid" x="{:.1f}" y="{:.1f}">{}</text>', middle, plot.bottom + 18, group)
        for _, place, value, bounds in (row for row in plot_rows if row[0] == group):
            at = middle + (place - len(evaluations) / 2) * wide + 2
            centre = at + (wide - 4) / 2
            if value is None:
                plot.add('<text class="mid" x="{:.1f}" y="{:.1f}">none</text>', centre, plot.bottom - 6)
                continue
            style = f"fill {group}" + (" second" if place else "")
            box = (at, y(value), wide - 4, plot.bottom - y(value))
            plot.add('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>', style, *box)
            head = y(value)
            if bounds is not None:
                head = y(bounds[1])
                ends = (centre - 5, y(bounds[0]), centre, y(bounds[1]), centre - 5)
                plot.add(
                    '<path class="interval" d="M{:.1f} {:.1f}h10M{:.1f} {:.1f}V{:.1f}M{:.1f} {:.1f}h10"/>',
                    *(ends[0], ends[1], centre, ends[1], ends[3], ends[4], ends[3]),
                )
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
    y = _linear(values, plot.bottom, plot.top)
    x = Scale(epochs[0], max(epochs[-1], epochs[0] + 1), plot.left + 4, plot.right - 6)
    plot.axes(None, y, word, "epoch")
    for epoch in sorted({epochs[0], epochs[-1]}):
        plot.add('<text class="mid" x="{:.1f}" y="{:.1f}">{}</text>', x(epoch), plot.bottom + 16, epoch)
    path = " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in points)
    plot.add('<polyline class="curve" points="{}"/>', path)
    plot.add('<circle class="tip" cx="{:.1f}" cy="{:.1f}" r="3.5"/>', x(epochs[-1]), y(values[-1]))
    return plot.svg()


def reliability_chart(bins: Sequence[dict[str, Any]]) -> Markup:
    """Accuracy against confidence, with the number of test images of each bin below."""
    held = [entry for entry in bins if entry["count"]]
    text = f"{len(held)} of {len(bins)} bins hold images. " + "; ".join(
        f"confidence {percent(b['confidence'])}: accuracy {percent(b['accuracy'])} of {b['count']} images" for b in held
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
            '<rect class="count" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
            "<title>{} test images</title></rect>",
            *(left, plot.height - 24 - tall, wide, tall, entry["count"]),
        )
    plot.add('<path class="ideal" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>', x(0), y(0), x(1), y(1))
    plot.add('<text class="end" x="{:.1f}" y="{:.1f}">images</text>', plot.left - 6, plot.height - 28.0)
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        anchor = "end" if tick == 1 else "mid"
        at = x(tick)
        plot.add('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>', anchor, at, plot.bottom + 17, percent(tick, 0))
    plot.add('<text class="mid" x="{:.1f}" y="{:.1f}">confidence</text>', x(0.5), plot.height - 6.0)
    return plot.svg()
