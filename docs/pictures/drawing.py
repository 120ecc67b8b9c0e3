"""Just enough SVG for the pictures of the circle; their colours follow light and dark pages."""

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
    """One picture of ``width x height`` pixels, with an axis below and at the left or a circle in it."""

    def __init__(self, width: int, height: int, heading: str = "") -> None:
        self.width, self.height = width, height
        self.parts: list[str] = []
        self.left, self.right, self.top, self.bottom = 34.0, width - 12.0, 32.0, height - 40.0
        self.radius = height / 2 - 30
        self._x, self._most, self._log = (0.0, 1.0), 1.0, False
        if heading:
            self._add(f'<text class="mid title" x="{width / 2}" y="16">{escape(heading)}</text>')

    def axes(self, left: float, right: float, most: float, title: str, log: bool = False) -> None:
        """Draw both axes, the lower one logarithmic if ``log``, the other from 0 to ``most``."""
        self._x, self._most, self._log = (left, right), most, log
        xs = [5, 20, 100, 500] if log else [0, 90, 180, 270]
        step = 10.0 ** math.floor(math.log10(most))
        step = next(step * part for part in (0.1, 0.2, 0.5, 1, 2) if most / (step * part) <= 5)
        for value in (k * step for k in range(math.floor(most / step + 1e-9) + 1)):
            up = self._at(left, value)[1]
            self._add(f'<path class="grid" d="M{self.left:.1f} {up:.1f}H{self.right:.1f}"/>')
            self._add(f'<text class="end" x="{self.left - 5:.1f}" y="{up + 4:.1f}">{value:g}</text>')
        for value in xs:
            across = self._at(value, 0)[0]
            word = f"{value}" if log else f"{value}°"
            self._add(f'<text class="mid" x="{across:.1f}" y="{self.bottom + 17:.1f}">{word}</text>')
        self._add(f'<path class="axis" d="M{self.left:.1f} {self.bottom:.1f}H{self.right:.1f}"/>')
        middle = (self.left + self.right) / 2
        self._add(f'<text class="mid" x="{middle:.1f}" y="{self.height - 5}">{escape(title)}</text>')

    def curve(self, xs: Sequence[float], ys: Sequence[float], kind: str) -> None:
        """Draw a line through the points."""
        points = " ".join("{:.1f},{:.1f}".format(*self._at(x, y)) for x, y in zip(xs, ys, strict=True))
        self._add(f'<polyline class="{kind} line" points="{points}"/>')

    def mark(self, x: float, y: float) -> None:
        """Draw a point in the axes."""
        across, up = self._at(x, y)
        self._add(f'<circle class="mark" cx="{across:.1f}" cy="{up:.1f}" r="3"/>')

    def circle(self) -> None:
        """Draw the unit circle."""
        across, up = self._on_circle(0, 0)
        self._add(f'<circle class="axis" cx="{across:.1f}" cy="{up:.1f}" r="{self.radius:.1f}"/>')

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
        return across, self.bottom - y / self._most * (self.bottom - self.top)

    def _on_circle(self, x: float, y: float) -> tuple[float, float]:
        return self.width / 2 + x * self.radius, self.height / 2 - y * self.radius

    def _add(self, part: str) -> None:
        self.parts.append(part)

    def svg(self, title: str, said: str) -> str:
        """Return the file; ``title`` and ``said`` are for those who do not see it."""
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        head = f"<title>{escape(title)}</title><desc>{escape(said)}</desc><style>{STYLE}</style>"
        return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>', head, *self.parts, "</svg>\n"])
