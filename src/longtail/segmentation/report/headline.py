"""The figures of a run on masks in the order in which they are read, and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longtail.errors import counted
from longtail.metrics import GROUPS
from longtail.reporting.svg import number, percent
from longtail.segmentation.report.charts import share_text
from longtail.segmentation.report.dense_class import DenseClass


def in_words(evaluation: dict[str, Any], rows: Sequence[DenseClass]) -> str:
    """Return what came of the run in two or three sentences."""
    bounds = _bounds(evaluation["miou_interval"])
    within = f" (between {percent(bounds[0])} and {percent(bounds[1])})" if bounds else ""
    images = counted(evaluation["test_images"], "test image")
    words = [f"On {images} the mean IoU over classes is {percent(evaluation['miou'])}{within}."]
    rare = evaluation["rarest_four"]
    if rare.get("miou") is not None:
        names = _listed([str(name) for name in rare["classes"]])
        one = len(rare["classes"]) == 1
        words.append(f"Of the rarest {'class' if one else 'classes'}, {names}, it is {percent(rare['miou'])}.")
    tested = [row for row in rows if row.iou is not None and row.test_pixels]
    if tested:
        worst, best = min(tested, key=lambda row: row.iou or 0), max(tested, key=lambda row: row.iou or 0)
        words.append(
            f"The weakest class is {worst.name} ({percent(worst.iou or 0)}, {share_text(worst.share)} of the training "
            f"pixels), the strongest {best.name} ({percent(best.iou or 0)})."
        )
    return " ".join(words)


def cards(evaluation: dict[str, Any], teacher: dict[str, Any] | None, meaning: dict[str, str]) -> list[dict[str, Any]]:
    """Return the figures that come first: what, value, interval, what it is about, the teacher's.

    ``meaning`` says what many, medium and few are by training pixels.
    """
    tested = sum(value is not None for value in evaluation["iou"])
    rare = evaluation["rarest_four"]
    found: list[dict[str, Any]] = [
        {
            "label": "Mean IoU",
            "value": evaluation["miou"],
            "interval": _bounds(evaluation["miou_interval"]),
            "note": f"of {counted(tested, 'class', 'classes')}, each weighing the same",
            "missing": "none",
            "teacher": teacher["miou"] if teacher else None,
            "group": "",
        },
        {
            "label": "Rarest four" if len(rare["classes"]) == 4 else "Rarest",
            "value": rare.get("miou"),
            "interval": _bounds(rare.get("interval")),
            "note": _listed([str(name) for name in rare["classes"]]),
            "missing": "none",
            "teacher": teacher["rarest_four"].get("miou") if teacher else None,
            "group": "rare",
        },
    ]
    for group in GROUPS:
        figures = evaluation["groups_by_pixels"][group]
        count = counted(figures["classes"], "class", "classes")
        found.append(
            {
                "label": group.capitalize(),
                "value": figures["iou"],
                "interval": None,
                "missing": "no such class" if not figures["classes"] else "not in the test",
                "note": f"{count} with {meaning[group]} of the training pixels",
                "teacher": teacher["groups_by_pixels"][group]["iou"] if teacher else None,
                "group": group,
            }
        )
    return found


def further_figures(evaluation: dict[str, Any], teacher: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the figures beside the headline: name, what it means, values of this run and of the teacher."""
    within = f"; outlines within {tolerance(evaluation)}" if "boundary_tolerance" in evaluation else ""
    kinds = [
        ("pixel_accuracy", "Pixel accuracy", "share of all test pixels right"),
        ("balanced_accuracy", "Mean recall", "balanced accuracy: every class weighs the same"),
        ("fw_iou", "Frequency-weighted IoU", "classes weigh as many test pixels as they have"),
        ("boundary_f", "Boundary F", f"mean over classes{within}"),
        ("ece", "Calibration error", "mean gap between confidence and accuracy; lower is better"),
    ]
    found = [
        {"label": label, "note": note, "value": evaluation.get(key), "teacher": teacher.get(key) if teacher else None}
        for key, label, note in kinds
        if key in evaluation
    ]
    worst = evaluation.get("worst_class")
    if worst and worst.get("iou") is not None:
        other = (teacher or {}).get("worst_class") or {}
        note = str(worst["name"]) + (f" (teacher: {other['name']})" if other.get("name") else "")
        found.append({"label": "Worst class", "note": note, "value": worst["iou"], "teacher": other.get("iou")})
    return found


def tolerance(evaluation: dict[str, Any]) -> str:
    """Return the tolerance of the boundary F-score in words."""
    pixels = evaluation["boundary_tolerance"]
    return f"{number(pixels)} {'pixel' if pixels == 1 else 'pixels'}"


def chosen_epoch(evaluation: dict[str, Any]) -> str:
    """Return which epoch's weights were tested, and by what they were chosen."""
    selection = evaluation.get("selection")
    if selection is None:
        return "How the epoch was chosen is not recorded."
    if selection == "last":
        return "Figures of the last epoch; the test set selected nothing."
    if isinstance(selection, dict) and {"epoch", "of", "value"} <= selection.keys():
        images = f" on {number(selection['images'])} validation images" if "images" in selection else ""
        return (
            f"Figures of epoch {selection['epoch']}, the best of {selection['of']} by mean IoU{images} "
            f"({percent(selection['value'])}); the test set selected nothing."
        )
    return f"Epoch chosen by: {selection}."


def _bounds(interval: dict[str, Any] | None) -> tuple[float, float] | None:
    low, high = (interval or {}).get("low"), (interval or {}).get("high")
    return None if low is None or high is None else (float(low), float(high))


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
