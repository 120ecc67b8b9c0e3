"""Just enough SVG for the pictures of the circle: panels side by side, colours that follow light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

# Okabe and Ito's colours, which people who confuse red and green can tell apart; dashes say the same without colour.
STYLE = """
svg { font: 13px system-ui, sans-serif }
text { fill: #333 }
.mid { text-anchor: middle } .end { text-anchor: end } .title { font-weight: 600 }
.grid { stroke: #8884; fill: none } .axis { stroke: #888; fill: none }
.fox { --c: #b34a00 } .badger { --c: #005f96 } .lynx { --c: #007a58 }
.line { stroke: var(--c); fill: none; stroke-width: 2; stroke-linejoin: round }
.badger.line { stroke-dasharray: 7 3 } .lynx.line { stroke-dasharray: 2 2.5 }
.dot { fill: var(--c); stroke: #fff } .ray { stroke: var(--c); stroke-width: 1.5 } .mark { fill: #005f96 }
@media (prefers-color-scheme: dark) {
  text { fill: #ccc } .dot { stroke: #000 }
  .fox { --c: #f0a04a } .badger { --c: #6cc0f2 } .lynx { --c: #3fd3a5 } .mark { fill: #6cc0f2 }
}
"""


class Panel:
    """One drawing area of ``width x height`` pixels, with an axis below and at the left or a circle in it."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.parts: list[str] = []
        self.left, self.right, self.top, self.bottom = 34.0, width - 8.0, 10.0, height - 40.0
        self.radius = height / 2 - 30
        self._x = self._y = (0.0, 1.0)
        self._log = False

    def axes(self, x0: float, x1: float, y0: float, y1: float, x_title: str, log: bool = False) -> None:
        """Draw both axes; ``log`` makes the lower one logarithmic."""
        self._x, self._y, self._log = (x0, x1), (y0, y1), log
        xs = [5, 20, 100, 500] if log else [0, 90, 180, 270]
        step = 10.0 ** math.floor(math.log10(y1))
        step = next(step * part for part in (0.1, 0.2, 0.5, 1, 2) if y1 / (step * part) <= 5)
        for value in (k * step for k in range(math.floor(y1 / step + 1e-9) + 1)):
            up = self._at(x0, value)[1]
            self._add(f'<path class="grid" d="M{self.left:.1f} {up:.1f}H{self.right:.1f}"/>')
            self._add(f'<text class="end" x="{self.left - 5:.1f}" y="{up + 4:.1f}">{value:g}</text>')
        for value in xs:
            across = self._at(value, y0)[0]
            word = f"{value}" if log else f"{value}°"
            self._add(f'<text class="mid" x="{across:.1f}" y="{self.bottom + 17:.1f}">{word}</text>')
        self._add(f'<path class="axis" d="M{self.left:.1f} {self.bottom:.1f}H{self.right:.1f}"/>')
        middle = (self.left + self.right) / 2
        self._add(f'<text class="mid" x="{middle:.1f}" y="{self.height - 5}">{escape(x_title)}</text>')

    def curve(self, xs: Sequence[float], ys: Sequence[float], kind: str) -> None:
        """Draw a line through the points."""
        points = " ".join("{:.1f},{:.1f}".format(*self._at(x, y)) for x, y in zip(xs, ys, strict=True))
        self._add(f'<polyline class="{kind} line" points="{points}"/>')

    def mark(self, x: float, y: float) -> None:
        """Draw a point in the axes."""
        across, up = self._at(x, y)
        self._add(f'<circle class="mark" cx="{across:.1f}" cy="{up:.1f}" r="3"/>')

    def circle(self, x: float, y: float, radius: float, kind: str) -> None:
        """Draw a circle, in units of the unit circle."""
        across, up = self._on_circle(x, y)
        self._add(f'<circle class="{kind}" cx="{across:.1f}" cy="{up:.1f}" r="{radius * self.radius:.1f}"/>')

    def dot(self, x: float, y: float, kind: str) -> None:
        """Draw a key."""
        across, up = self._on_circle(x, y)
        self._add(f'<circle class="{kind} dot" cx="{across:.1f}" cy="{up:.1f}" r="5"/>')

    def ray(self, degrees: float, inner: float, outer: float, kind: str) -> None:
        """Draw a stroke at that angle, from one distance to another."""
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        (x0, y0), (x1, y1) = self._on_circle(inner * cos, inner * sin), self._on_circle(outer * cos, outer * sin)
        self._add(f'<path class="{kind} ray" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>')

    def legend(self, line: int, kind: str, text: str) -> None:
        """Write a line in the middle of the circle."""
        across, up = self._on_circle(0, 0)
        up += 20 * (line - 1)
        self._add(f'<circle class="{kind} dot" cx="{across - 78:.1f}" cy="{up - 4:.1f}" r="5"/>')
        self._add(f'<text x="{across - 66:.1f}" y="{up:.1f}">{escape(text)}</text>')

    def _at(self, x: float, y: float) -> tuple[float, float]:
        low, high = self._x
        if self._log:
            x, low, high = math.log(x), math.log(low), math.log(high)
        across = self.left + (x - low) / (high - low) * (self.right - self.left)
        return across, self.bottom - (y - self._y[0]) / (self._y[1] - self._y[0]) * (self.bottom - self.top)

    def _on_circle(self, x: float, y: float) -> tuple[float, float]:
        return self.width / 2 + x * self.radius, self.height / 2 - y * self.radius

    def _add(self, part: str) -> None:
        self.parts.append(part)


def picture(title: str, said: str, panels: Sequence[tuple[str, Panel]]) -> str:
    """Return panels side by side, each under its heading, as SVG; ``said`` is read to those who do not see it."""
    head = 24 if any(heading for heading, _ in panels) else 0
    width, height = sum(panel.width for _, panel in panels), max(panel.height for _, panel in panels) + head
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width} {height}" width="{width}">',
        f"<title>{escape(title)}</title><desc>{escape(said)}</desc><style>{STYLE}</style>",
    ]
    across = 0
    for heading, panel in panels:
        parts.append(f'<g transform="translate({across} {head})">')
        if heading:
            parts.append(f'<text class="mid title" x="{panel.width / 2}" y="-8">{escape(heading)}</text>')
        parts += [*panel.parts, "</g>"]
        across += panel.width
    return "\n".join([*parts, "</svg>\n"])
