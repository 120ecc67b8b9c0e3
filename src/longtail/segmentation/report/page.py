"""From the folder of a finished run on masks to ``report.html``: one page that needs nothing else, not even a network.

As :mod:`longtail.reporting.report`, whose parts and style it takes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from longtail.files import write_bytes
from longtail.metrics import GROUPS
from longtail.reporting.charts import group_chart, reliability_chart
from longtail.reporting.in_words import bits_note, duration
from longtail.reporting.report import METHODS
from longtail.reporting.reproduce import as_text, reproduce_command, settings
from longtail.reporting.run_record import read_data, read_log
from longtail.reporting.templates import templates
from longtail.reporting.training_curves import training_curves
from longtail.segmentation.evaluation import dense_warnings
from longtail.segmentation.methods import dense_is_read
from longtail.segmentation.overlays import FALSE, FOUND, MISSED, NOWHERE, OTHER
from longtail.segmentation.report import headline
from longtail.segmentation.report.charts import group_meaning, iou_chart, share_text
from longtail.segmentation.report.confusions import rare_confusions
from longtail.segmentation.report.record import (
    checked,
    read_dense_classes,
    read_dense_evaluation,
    read_dense_gallery,
)
from longtail.training.run_folder import read_config, read_environment

_METHODS = METHODS | {"dice": "Dice loss", "lovasz": "Lov\u00e1sz loss", "region_rebalance": "region rebalance"}
_SHADES = (
    (FOUND, "of the class, found"),
    (MISSED, "of the class, missed"),
    (FALSE, "wrongly called the class"),
    (OTHER, "other classes mistaken for each other"),
    (NOWHERE, "counts nowhere"),
)


def write_dense_report(folder: Path) -> Path:
    """Write ``report.html`` into the run folder ``folder`` and return its path.

    Read are ``config.yaml``, ``evaluation.json`` and ``per_class.csv``, and, where they exist, ``gallery.json``,
    ``data.json``, ``metrics.jsonl``, ``environment.json`` and the teacher's figures in ``teacher``. The same files give
    the same bytes.

    Raises:
        UserError: one of the first three is missing, or a file is cut off or of another form.
    """
    path = folder / "report.html"
    write_bytes(path, render_dense(folder).encode("utf-8", "replace"))
    return path


def render_dense(folder: Path) -> str:
    """Return the page for the run in ``folder``; raises as :func:`write_dense_report`."""
    file = folder / "evaluation.json"
    config, evaluation = read_config(folder), read_dense_evaluation(file)
    of_teacher = folder / "teacher" / "evaluation.json"
    teacher = read_dense_evaluation(of_teacher) if of_teacher.exists() else None
    record, log = read_data(folder / "data.json"), read_log(folder / "metrics.jsonl")
    gallery = read_dense_gallery(folder / "gallery.json", len(evaluation["class_names"]))
    rows = read_dense_classes(folder / "per_class.csv", evaluation, gallery.palette)
    values = checked(file, lambda: _figures(evaluation, teacher, rows))
    return _template().render(
        **values,
        config=config,
        data=str(config.get("data") or "unnamed data"),
        method=_METHODS.get(str(config.get("method")), str(config.get("method"))),
        evaluation=evaluation,
        teacher=teacher,
        rows=rows,
        gallery=gallery.classes,
        shades=[("#{:02x}{:02x}{:02x}".format(*shade), words) for shade, words in _SHADES],
        inference=_inference(evaluation, config),
        record=record,
        folds=None,
        stages=training_curves(log),
        watched=any(key.startswith("test_") for line in log for key in line),
        informed=any("bits" in line for line in log),
        misled=bits_note(line["bits"] for line in log if isinstance(line.get("bits"), int | float)),
        skipped=[line for line in log if "skipped_step" in line],
        settings=settings(config),
        environment=read_environment(folder / "environment.json"),
        command=reproduce_command(config, reads=dense_is_read),
    )


def _template() -> jinja2.Template:
    pages = templates()
    own = jinja2.PackageLoader("longtail.segmentation.report", "pages")
    assert pages.loader is not None
    pages.loader = jinja2.ChoiceLoader([own, pages.loader])
    pages.filters.update(duration=duration, pixel_share=share_text)
    return pages.get_template("dense.html")


def _figures(evaluation: dict[str, Any], teacher: dict[str, Any] | None, rows: list[Any]) -> dict[str, Any]:
    """Return what the page shows of the figures."""
    by_pixels = sorted(rows, key=lambda row: -row.train_pixels)
    equal = 1 / len(rows)
    meaning = {
        "pixels": group_meaning([edge * equal for edge in evaluation["pixel_edges"]]),
        "images": group_meaning(evaluation["image_edges"]),
    }
    bins = evaluation.get("calibration") or []
    whole = sum(entry["count"] for entry in bins) or 1
    return {
        "words": headline.in_words(evaluation, rows),
        "chosen": headline.chosen_epoch(evaluation),
        "warnings": dense_warnings(evaluation),
        "cards": headline.cards(evaluation, teacher, meaning["pixels"]),
        "level": evaluation["miou_interval"].get("level", 0.95),
        "figures": headline.further_figures(evaluation, teacher),
        "groups": [
            {"name": group, "pixels": meaning["pixels"][group], "images": meaning["images"][group]}
            | {f"by_{by}": _classes_of(evaluation[f"groups_by_{by}"][group]) for by in ("pixels", "images")}
            for group in GROUPS
        ],
        "group_chart": group_chart(
            [(f"by {by}", _as_groups(evaluation[f"groups_by_{by}"])) for by in ("pixels", "images")],
            "Mean IoU by group",
        ),
        "iou_chart": iou_chart(rows),
        "equal_share": equal,
        "by_pixels": by_pixels,
        "largest": by_pixels[0],
        "rarest": by_pixels[-1],
        "test_pixels": sum(row.test_pixels for row in rows) or 1,
        "boundary": any(row.boundary_f is not None for row in rows),
        "tolerance": headline.tolerance(evaluation) if "boundary_tolerance" in evaluation else "",
        "confusions": rare_confusions(evaluation.get("confusion"), rows),
        "reliability": [{**entry, "share": entry["count"] / whole} for entry in bins],
        "reliability_chart": reliability_chart(bins, "pixels") if bins else "",
    }


def _as_groups(groups: dict[str, Any]) -> dict[str, Any]:
    """Return groups of classes as the chart of accuracies takes them."""
    return {"groups": {name: {"accuracy": group["iou"]} for name, group in groups.items()}, "intervals": {}}


def _classes_of(group: dict[str, Any]) -> str:
    count = group["classes"]
    return "no class" if not count else f"{count} {'class' if count == 1 else 'classes'}"


def _inference(evaluation: dict[str, Any], config: dict[str, Any]) -> list[tuple[str, str]]:
    """Return how test images were looked at: name and setting."""
    own = config.get("segmentation") or {}
    size = own.get("resize")
    return [
        ("In short", str(evaluation.get("inference", "not recorded"))),
        ("Images brought to", "their own size" if not size else f"{size[0]} x {size[1]} pixels"),
        ("Sliding window", "none" if not own.get("window") else " x ".join(map(str, own["window"])) + " pixels"),
        ("Window moved by", "\u2013" if not own.get("window") else f"{own.get('stride')} of its side"),
        ("Scales averaged", ", ".join(as_text(scale) for scale in own.get("test_scales") or [1.0])),
        ("Mirror image", "averaged" if own.get("test_mirror") else "not used"),
    ]
