"""The charts that only a run on masks has: IoU of every class, in the order of its training pixels."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from longtail.metrics import GROUPS
from longtail.reporting.svg import Plot, Scale, percent
from longtail.segmentation.report.dense_class import DenseClass

MOST_NAMED = 40
"""Above this number of classes bars stand upright, without names."""

_ROW = 21
_LONGEST = 17
"""Signs of a class's name beside its bar."""


def iou_chart(rows: Sequence[DenseClass]) -> Markup:
    """IoU of every class, those with most training pixels first."""
    ordered = sorted(rows, key=lambda row: -row.train_pixels)
    tested = [row for row in ordered if row.iou is not None]
    said = f"{len(tested)} of {len(rows)} classes are in the test masks or predictions."
    if tested:
        said += " From most to fewest training pixels: " + ", ".join(f"{r.name} {percent(r.iou or 0)}" for r in tested)
        said += "."
    return _named(ordered, said) if len(rows) <= MOST_NAMED else _unnamed(ordered, said)


def share_text(share: float) -> str:
    """Return a share of pixels with as many digits as tell a rare class from nothing."""
    return percent(share, 1 if share >= 0.01 or share == 0 else 2 if share >= 0.0001 else 4)


def _named(ordered: Sequence[DenseClass], said: str) -> Markup:
    plot = Plot("chart-iou", "IoU by class", said, height=46 + _ROW * len(ordered), bottom=24)
    plot.left, plot.right = 122.0, plot.width - 92.0
    across = Scale(0.0, 1.0, plot.left, plot.right)
    plot.add('<text class="end" x="{:.1f}" y="10">of training pixels</text>', plot.width)
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        plot.add('<path class="grid" d="M{:.1f} {:.1f}V{:.1f}"/>', across(tick), plot.top + 6, plot.bottom)
        plot.add('<text class="mid" x="{:.1f}" y="{:.1f}">{}</text>', across(tick), plot.bottom + 17, percent(tick, 0))
    for place, row in enumerate(ordered):
        top = plot.top + 8 + place * _ROW
        short = row.name if len(row.name) <= _LONGEST else row.name[: _LONGEST - 1] + "\u2026"
        plot.add(
            '<text class="end" x="{:.1f}" y="{:.1f}">{}<title>{}</title></text>',
            *(plot.left - 24, top + 12, short, row.name),
        )
        plot.add(
            '<rect class="swatch" fill="{}" x="{:.1f}" y="{:.1f}" width="11" height="11"/>',
            *(row.colour, plot.left - 18, top + 2.5),
        )
        plot.add('<text class="end" x="{:.1f}" y="{:.1f}">{}</text>', plot.width, top + 12, share_text(row.share))
        if row.iou is None:
            plot.add('<text x="{:.1f}" y="{:.1f}">not in the test</text>', plot.left + 5, top + 12)
            continue
        plot.add(
            '<rect class="fill {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="15"><title>{}: IoU {}</title></rect>',
            *(row.group, plot.left, top + 0.5, across(row.iou) - plot.left, row.name, percent(row.iou)),
        )
        plot.add(
            '<text class="strong" x="{:.1f}" y="{:.1f}">{:.1f}</text>', across(row.iou) + 5, top + 12, 100 * row.iou
        )
    plot.add('<path class="axis" d="M{0:.1f} {1:.1f}V{2:.1f}"/>', plot.left, plot.top + 6, plot.bottom)
    return plot.svg()


def _unnamed(ordered: Sequence[DenseClass], said: str) -> Markup:
    plot = Plot("chart-iou", "IoU by class", said)
    y = Scale(0.0, 1.0, plot.bottom, plot.top + 4)
    plot.axes(None, y, lambda v: percent(v, 0), f"{len(ordered)} classes, most training pixels first")
    step = (plot.right - plot.left) / len(ordered)
    for place, row in enumerate(ordered):
        if row.iou is None:
            continue
        plot.add(
            '<rect class="fill {}" x="{:.2f}" y="{:.1f}" width="{:.2f}" height="{:.1f}"><title>{}: IoU {}, {} of the '
            "training pixels</title></rect>",
            *(row.group, plot.left + place * step, y(row.iou), max(0.4, step * 0.85), plot.bottom - y(row.iou)),
            *(row.name, percent(row.iou), share_text(row.share)),
        )
    return plot.svg()


def group_meaning(edges: Sequence[float]) -> dict[str, str]:
    """Return what many, medium and few mean, in words for "... of the training pixels" or "... images".

    ``edges`` are shares, the larger first.
    """
    words = [f"{100 * edge:.2g}\u00a0%" if edge < 0.995 else percent(edge, 0) for edge in edges]
    return dict(
        zip(GROUPS, (f"more than {words[0]}", f"{words[1]} to {words[0]}", f"less than {words[1]}"), strict=True)
    )
