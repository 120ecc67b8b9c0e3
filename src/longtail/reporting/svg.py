"""Axes, number formats and escaped SVG: what every chart is made of.

Colours and type come from the page's style sheet. Text is about 12 px at a width of 350-520 px, so charts are laid out
side by side rather than stretched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup


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

    def ticks(self, about: int = 5) -> list[float]:
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


def linear_scale(values: Sequence[float], start: float, end: float) -> Scale:
    """Return a scale with round ends around ``values``."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = abs(low) / 2 or 1.0
        low, high = low - pad, high + pad
    step = _round_step((high - low) / 5)
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


def told_apart(values: Sequence[float], label: Callable[[float], str]) -> list[str]:
    """Return the labels of different ``values``, with as many figures as tell them apart where ``label`` does not."""
    words = [label(value) for value in values]
    digits = 5
    while len(set(words)) < len(words) and digits < 16:
        words, digits = [f"{value:.{digits}g}" for value in values], digits + 1
    return words


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

    def axes(self, x: Scale | None, y: Scale, label: Callable[[float], str] = number, x_title: str = "") -> None:
        """Draw grid lines and tick labels; ``label`` words the ticks of y."""
        for tick, words in zip(y.ticks(), told_apart(y.ticks(), label), strict=True):
            self.add('<path class="grid" d="M{:.1f} {:.1f}H{:.1f}"/>', self.left, y(tick), self.right)
            self.add('<text class="end" x="{:.1f}" y="{:.1f}">{}</text>', self.left - 6, y(tick) + 4, words)
        for tick, at in [] if x is None else [(tick, x(tick)) for tick in x.ticks()]:
            self.add('<text class="mid" x="{:.1f}" y="{:.1f}">{}</text>', at, self.bottom + 17, number(tick))
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
