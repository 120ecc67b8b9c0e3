"""What a report says of confusions: shares between rare and frequent classes, and the most confused pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from longtail.metrics import GROUPS, wilson_interval
from longtail.reporting.run_record import ClassRow
from longtail.reporting.svg import Plot, Scale, percent

_RARE_AND_FREQUENT = (("few", "many"), ("many", "few"))
_LEAST_LABELLED = 0.09
"""Share of a bar from which on its part has room for a number."""


def confusion_record(evaluation: dict[str, Any], rows: Sequence[ClassRow]) -> dict[str, Any] | None:
    """Return what the section on confusions shows, None for an evaluation of an earlier version.

    Raises:
        KeyError, IndexError, TypeError, ValueError: the records in ``evaluation`` are not of the form they are
            written in.
    """
    if "confused_pairs" not in evaluation or "group_confusion" not in evaluation:
        return None
    groups = [{"name": group, **evaluation["group_confusion"][group]} for group in GROUPS]
    shares = []
    for true, predicted in _RARE_AND_FREQUENT:
        row = evaluation["group_confusion"][true]
        count, images = int(row[predicted]), int(row["images"])
        shares.append(
            {"true": true, "predicted": predicted, "count": count, "images": images}
            | {"share": count / images if images else 0.0, "interval": wilson_interval(count, images)}
        )
    pairs = [
        {
            "true": rows[pair["true"]],
            "predicted": rows[pair["predicted"]],
            "count": pair["count"],
            "of": pair["of"],
            "share": pair["count"] / pair["of"],
            "interval": wilson_interval(pair["count"], pair["of"]),
        }
        for pair in evaluation["confused_pairs"]
    ]
    wrong = sum(group["images"] - group["right"] for group in groups)
    return {
        "groups": groups,
        "shares": shares,
        "pairs": pairs,
        "all_shown": sum(pair["count"] for pair in pairs) == wrong,
        "chart": group_flow_chart(groups),
    }


def group_flow_chart(groups: Sequence[dict[str, Any]]) -> Markup:
    """One bar a group: the share of its test images that is right, and what the others were taken for."""
    tested = [group for group in groups if group["images"]]
    said = [
        f"{group['name']}: {percent(group['right'] / group['images'])} right, "
        + ", ".join(f"{percent(group[other] / group['images'])} taken for {other}" for other in GROUPS)
        for group in tested
    ]
    plot = Plot("chart-flow", "Where test images of each group went", "; ".join(said) + ".", height=190, bottom=30)
    plot.left = 64.0
    across = Scale(0.0, 1.0, plot.left, plot.right)
    tall = (plot.bottom - plot.top - 26) / len(GROUPS)
    for place, kind in enumerate(("right", *GROUPS)):
        at = plot.left + place * (plot.right - plot.left) / 4
        plot.add('<rect class="part {}" x="{:.1f}" y="0" width="11" height="11"/>', kind, at)
        plot.add('<text x="{:.1f}" y="10">{}</text>', at + 16, kind)
    for place, group in enumerate(groups):
        top = plot.top + 20 + place * tall
        plot.add('<text class="end" x="{:.1f}" y="{:.1f}">{}</text>', plot.left - 8, top + tall / 2 + 1, group["name"])
        if not group["images"]:
            plot.add('<text x="{:.1f}" y="{:.1f}">no test image</text>', plot.left + 4, top + tall / 2 + 1)
            continue
        done = 0.0
        for kind in ("right", *GROUPS):
            share = group[kind] / group["images"]
            if not share:
                continue
            left, wide = across(done), across(share) - plot.left
            plot.add(
                '<rect class="part {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>',
                *(kind, left, top, wide, tall - 9),
                f"{group[kind]} of {group['images']} {'right' if kind == 'right' else f'taken for {kind}'}",
            )
            if share >= _LEAST_LABELLED:
                middle = left + wide / 2
                plot.add(
                    '<text class="mid on {}" x="{:.1f}" y="{:.1f}">{:.0f}</text>',
                    *(kind, middle, top + tall / 2 + 1, 100 * share),
                )
            done += share
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        anchor = "end" if tick == 1 else "mid"
        plot.add(
            '<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>', anchor, across(tick), plot.bottom + 18, percent(tick, 0)
        )
    return plot.svg()
