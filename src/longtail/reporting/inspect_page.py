"""The page of ``longtail inspect``: one file that needs no network and runs no script, in the report's style."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from longtail.data.survey import TRAIN, Survey
from longtail.data.thumbnails import many_thumbnails
from longtail.reporting import charts
from longtail.reporting.inspect_figures import size_bins
from longtail.reporting.inspect_findings import trust
from longtail.reporting.inspect_text import expected_time, not_compared
from longtail.reporting.templates import templates

MOST_PICTURES = 2000
"""Thumbnails on the page; each takes about 2 kB."""
_SIDE, _QUALITY = 72, 60
A_CLASS = 6
ROWS_A_TABLE = 300
"""Classes above which the table is cut into several, all but the first closed."""
PAIRS = 60
SUSPECTS = 240

_MARK = '<meta name="generator" content="longtail inspect">'

Figures = dict[str, Any]


@dataclass(frozen=True)
class SizedClass:
    """What the chart of class sizes needs of a class."""

    name: str
    group: str
    train_images: int


def is_ours(path: Path) -> bool:
    """Return whether the file is such a page, which may be written anew."""
    try:
        with open(path, "rb") as file:
            return _MARK.encode() in file.read(4096)
    except OSError:
        return False


def render(figures: Figures, found: Survey) -> str:
    """Return the page for the ``figures`` of the images that were ``found``."""
    place = {found.title(index): index for index in range(len(found))}
    pairs = figures["near_duplicates"]["listed"][:PAIRS] if figures["near_duplicates"] else []
    exact = figures["exact_duplicates"]["listed"][:PAIRS]
    suspects = _shown_suspects(figures.get("label_suspects"))
    shown = [image["file"] for group in [*exact, *(pair["images"] for pair in pairs)] for image in group[:4]]
    shown += [image["file"] for row in suspects for image in row["listed"]]
    wanted = [place[file] for file in dict.fromkeys(shown)]
    samples = class_samples(figures["classes"], found, MOST_PICTURES - len(wanted))
    wanted += [index for indices in samples.values() for index in indices]
    pictures = many_thumbnails(found.images, list(dict.fromkeys(wanted)), _SIDE, _QUALITY)
    rows = [SizedClass(row["class"], row["group"], row["train_images"]) for row in figures["classes"]]
    return (
        templates()
        .get_template("inspect.html")
        .render(
            figures=figures,
            mark=Markup(_MARK),
            chart=charts.class_count_chart(rows) if figures["largest_class"] else None,
            bins=size_bins([row["train_images"] for row in figures["classes"]]),
            exact=exact,
            pairs=pairs,
            not_compared=not_compared(figures),
            suspects=suspects,
            trust=trust(figures["label_suspects"]) if suspects else "",
            samples=samples,
            pictures=pictures,
            place=place,
            rows_a_table=ROWS_A_TABLE,
            time=expected_time(figures["training"]) if figures["training"] and figures["training"]["stages"] else None,
        )
    )


def class_samples(classes: Sequence[Figures], found: Survey, budget: int) -> dict[str, list[int]]:
    """Return some training images of each class, evenly spread: the largest and the smallest classes first."""
    labels = np.where((found.sides == TRAIN) & (found.facts.widths > 0), found.labels, -1)
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(found.images.num_classes + 1))
    number = {name: label for label, name in enumerate(found.images.class_names)}
    each = min(A_CLASS, max(1, budget // max(len(classes), 1)))
    samples: dict[str, list[int]] = {}
    for row in _from_both_ends(classes):
        label = number[row["class"]]
        members = order[starts[label] : starts[label + 1]]
        some = members[np.unique(np.linspace(0, len(members) - 1, each).astype(int))] if len(members) else members
        if budget < len(some):
            break
        budget -= len(some)
        samples[row["class"]] = some.tolist()
    return samples


def _from_both_ends(rows: Sequence[Figures]) -> Iterator[Figures]:
    for place in range(len(rows)):
        yield rows[place // 2 if place % 2 == 0 else -1 - place // 2]


def _shown_suspects(suspects: Figures | None) -> list[Figures]:
    """Return the classes with suspects, each with those to look at first, as many as the page has room for."""
    left, rows = SUSPECTS, []
    for row in suspects["classes"] if suspects else []:
        listed = row["listed"][: min(row["look_first"], left)]
        left -= len(listed)
        rows.append({**row, "listed": listed})
    return rows
