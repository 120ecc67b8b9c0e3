"""A comparison of runs as one self-contained page: tables, a chart of the figures, the curves of the runs overlaid.

The page has no script, and its security policy forbids every request.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

import longtail
from longtail.reporting.compared_runs import FIGURES, SeedGroup
from longtail.reporting.comparison import Comparison
from longtail.reporting.run_record import read_log
from longtail.reporting.svg import Plot, Scale, linear_scale, number, percent
from longtail.reporting.templates import templates
from longtail.reporting.training_curves import LOSSES

HUES = 6
"""Colours that lines take in turn; from the seventh group on they are dashed."""
_SHARES = ("top1", "balanced_accuracy", "many", "medium", "few")
_CURVES = {
    "val_balanced_accuracy": "Validation balanced accuracy",
    "test_balanced_accuracy": "Test balanced accuracy (only watched)",
    **LOSSES,
    "bits": "Label information on training images, bits",
}
Curve = tuple[int, list[tuple[int, float]]]
"""Position of the run's group, and (epoch, value) of one run."""


def render_comparison(
    comparison: Comparison, tables: Sequence[tuple[str, list[str], list[list[str]], list[str]]]
) -> str:
    """Return the page; ``tables`` are (title, head, rows, notes below)."""
    return (
        templates()
        .get_template("compare.html")
        .render(
            names=[group.name for group in comparison.groups],
            groups=comparison.groups,
            tables=tables,
            figures=figures_chart(comparison),
            curves=[(title, overlay_chart(key, title, lines)) for key, title, lines in _curves(comparison.groups)],
            hues=HUES,
            version=longtail.__version__,
        )
    )


def figures_chart(comparison: Comparison) -> Markup:
    """Accuracies of every group of runs side by side, with their intervals."""
    said = [
        f"{row.name}: " + ", ".join(f"{FIGURES[k]} {percent(v.mean)}" for k in _SHARES if (v := row.figures[k]))
        for row in comparison.rows
    ]
    plot = Plot("chart-figures", "Figures of each group of runs", "; ".join(said) + ".", bottom=30)
    y = Scale(0.0, 1.0, plot.bottom, plot.top + 6)
    plot.axes(None, y, lambda v: percent(v, 0))
    room = (plot.right - plot.left) / len(_SHARES)
    for place, name in enumerate(_SHARES):
        middle = plot.left + (place + 0.5) * room
        plot.add('<text class="mid" x="{:.1f}" y="{:.1f}">{}</text>', middle, plot.bottom + 18, FIGURES[name])
        for position, row in enumerate(comparison.rows):
            value = row.figures[name]
            if value is None:
                continue
            at = middle + (position - (len(comparison.rows) - 1) / 2) * min(16.0, 0.8 * room / len(comparison.rows))
            style = _style(position)
            if value.low is not None and value.high is not None:
                low, high = y(max(0.0, value.low)), y(min(1.0, value.high))
                ends = at - 4, low, high  # with caps: a short interval hides behind its dot
                plot.add('<path class="{}" d="M{:.1f} {:.1f}h8m-4 0V{:.1f}m-4 0h8"/>', f"run {style}", *ends)
            plot.add(
                '<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}: {}</title></circle>',
                *(style, at, y(value.mean), row.name, percent(value.mean)),
            )
    return plot.svg()


def overlay_chart(key: str, title: str, lines: Sequence[Curve]) -> Markup:
    """One figure of the log over the epochs, a line a run."""
    values = [value for _, points in lines for _, value in points]
    epochs = [epoch for _, points in lines for epoch, _ in points]
    text = f"{len(lines)} runs over {max(epochs)} epochs; values from {number(min(values))} to {number(max(values))}."
    plot = Plot(f"curve-{key}", title, text, width=440, height=250)
    x = Scale(min(epochs), max(max(epochs), min(epochs) + 1), plot.left + 4, plot.right - 6)
    y = linear_scale(values, plot.bottom, plot.top)
    plot.axes(None, y, (lambda v: percent(v, 0)) if key.endswith("accuracy") else number, "epoch")
    for epoch in sorted({min(epochs), max(epochs)}):
        plot.add('<text class="mid" x="{:.1f}" y="{:.1f}">{}</text>', x(epoch), plot.bottom + 17, epoch)
    for position, points in lines:
        path = " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in points)
        plot.add('<polyline class="{}" points="{}"/>', f"run {_style(position)}", path)
    return plot.svg()


def _style(position: int) -> str:
    return f"hue{position % HUES}" + (" dashed" if position >= HUES else "")


def _curves(groups: Sequence[SeedGroup]) -> list[tuple[str, str, list[Curve]]]:
    """Return (key, title, lines) of each figure that a log holds, over the last stage of each run."""
    logs = []
    for position, group in enumerate(groups):
        for run in group.runs:
            log = [line for line in read_log(run.path / "metrics.jsonl") if "epoch" in line]
            logs.append((position, [line for line in log if line["stage"] == log[-1]["stage"]]))
    drawn = []
    for key, title in _CURVES.items():
        lines = [(position, _points(log, key)) for position, log in logs]
        lines = [(position, points) for position, points in lines if points]
        if lines:
            drawn.append((key, title, lines))
    return drawn


def _points(log: Sequence[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """Return (epoch, value) of the epochs whose log has the figure."""
    found = [(int(line["epoch"]), line[key]) for line in log if "skipped_step" not in line and key in line]
    return [(epoch, float(v)) for epoch, v in found if isinstance(v, int | float) and math.isfinite(v)]
