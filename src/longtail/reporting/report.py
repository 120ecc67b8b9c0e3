"""From a finished run's folder to ``report.html``: one page that needs nothing else, not even a network.

The page's security policy forbids every request, and lets only the page's own script run, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from longtail.errors import UserError
from longtail.files import write_bytes
from longtail.metrics import GROUP_EDGES, GROUPS
from longtail.reporting.confusions import confusion_record
from longtail.reporting.headline import all_figures, group_sizes, headline
from longtail.reporting.in_words import NEGATIVE_BITS, interval_note, unlearned, warnings
from longtail.reporting.reproduce import reproduce_command, settings
from longtail.reporting.run_record import (
    ClassRow,
    fold_rows,
    read_classes,
    read_data,
    read_evaluation,
    read_folds,
    read_gallery,
    read_log,
    read_temperature_figures,
)
from longtail.reporting.templates import templates
from longtail.reporting.training_curves import training_curves
from longtail.training.run_folder import read_config, read_environment

from . import charts

ROWS_A_PAGE = 100
METHODS = {
    "cross_entropy": "cross entropy",
    "focal": "focal loss",
    "class_balanced": "class-balanced loss",
    "ldam": "LDAM",
    "ldam_drw": "LDAM-DRW",
    "logit_adjustment": "logit adjustment",
    "balanced_softmax": "balanced softmax",
    "crt": "classifier re-training",
    "lws": "learnable weight scaling",
    "tau_norm": "tau-normalised classifier",
    "ncm": "nearest class mean",
    "infonce": "InfoNCE",
    "supcon": "SupCon",
    "supcon_la": "SupCon + logit adjustment",
    "bcl": "BCL",
    "paco": "PaCo",
    "proco": "ProCo",
    "gml": "GML",
}
OVER_FOLDS = {
    "top1": "Top-1",
    "balanced_accuracy": "Balanced",
    **{group: group.capitalize() for group in GROUPS},
    "worst_class": "Worst class",
    "ece": "Calibration error",
}


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into the run folder ``folder`` and return its path.

    Read are ``config.yaml``, ``evaluation.json`` and ``per_class.csv``, and, where they exist, ``data.json``,
    ``metrics.jsonl``, ``environment.json``, ``calibration.json``, ``gallery.json`` and the teacher's figures in
    ``teacher``. The same files give the same bytes. A run over folds has links to the reports of its folds that exist.

    Raises:
        UserError: one of the first three is missing, or a file is cut off or of another form.
    """
    path = folder / "report.html"
    write_bytes(path, render(folder).encode("utf-8", "replace"))
    return path


def render(folder: Path) -> str:
    """Return the page for the run in ``folder``; raises as :func:`write_report`."""
    config = read_config(folder)
    evaluation = read_evaluation(folder / "evaluation.json")
    rows = read_classes(folder / "per_class.csv", evaluation["classes"])
    teacher_file = folder / "teacher" / "evaluation.json"
    teacher = read_evaluation(teacher_file) if teacher_file.exists() else None
    taught = folder / "teacher" / "per_class.csv"
    teacher_rows = read_classes(taught, teacher["classes"]) if teacher and taught.exists() else None
    folds = read_folds(folder / "evaluation.json", evaluation)
    log = read_log(folder / "metrics.jsonl")
    shown = [("student", evaluation), ("teacher", teacher)] if teacher else [("this run", evaluation)]
    try:
        confusion = confusion_record(evaluation, rows)
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError):
        raise UserError(
            f"{folder / 'evaluation.json'} has confusions that cannot be read; run the evaluation again."
        ) from None
    page_size = ROWS_A_PAGE if len(rows) > charts.MOST_MARKS else len(rows)
    return _template().render(
        config=config,
        data=str(config.get("data") or "unnamed data"),
        method=METHODS.get(str(config.get("method")), str(config.get("method"))),
        evaluation=evaluation,
        warnings=[
            *warnings(evaluation),
            *(warnings(teacher, "the teacher") if teacher else []),
            *unlearned(log, evaluation["class_counts"]),
        ],
        teacher=teacher,
        cards=headline(evaluation, teacher, rows),
        folds=folds,
        fold_rows=fold_rows(folder, folds) if folds else [],
        over_folds=OVER_FOLDS,
        few_deals=interval_note(folds["repeats"], "deals") if folds else "",
        record=read_data(folder / "data.json"),
        sizes=group_sizes(evaluation["group_edges"]),
        usual_edges=GROUP_EDGES,
        figures=all_figures(evaluation, teacher),
        worst=rows[evaluation["worst_class"]["class"]],
        teacher_worst=teacher_rows[teacher["worst_class"]["class"]] if teacher and teacher_rows else None,
        rows=rows,
        page_size=page_size,
        class_data=_compact(rows, page_size),
        confusion=confusion,
        gallery=read_gallery(folder / "gallery.json"),
        calibration=read_temperature_figures(folder / "calibration.json"),
        limits=charts,
        counts_chart=charts.class_count_chart(rows),
        size_chart=charts.accuracy_by_size_chart(rows),
        group_chart=charts.group_chart(shown),
        reliability_chart=charts.reliability_chart(evaluation["reliability"]),
        stages=training_curves(log),
        watched=any(key.startswith("test_") for line in log for key in line),
        informed=any("bits" in line for line in log),
        misled=NEGATIVE_BITS if any(_negative(line.get("bits")) for line in log) else "",
        skipped=[line for line in log if "skipped_step" in line],
        settings=settings(config),
        environment=read_environment(folder / "environment.json"),
        command=reproduce_command(config),
    )


def _template() -> jinja2.Template:
    pages = templates()
    pages.filters.update(csp_hash=_csp_hash, duration=_duration)
    return pages.get_template("report.html")


def _compact(rows: list[ClassRow], page_size: int) -> dict[str, Any]:
    """Return the rows for the page's script: names once, the rest as short arrays of numbers."""
    position = {row.name: k for k, row in enumerate(rows)}
    numbers = [
        [
            *(GROUPS.index(row.group), row.train_images, row.test_images, row.correct),
            *(round(row.low, 4), round(row.high, 4)),
            None if row.confidence is None else round(row.confidence, 4),
            *(position.get(row.confused_with, -1), row.confused_count),
        ]
        for row in rows
    ]
    names = [row.name for row in rows]
    return {
        "names": names,
        "groups": GROUPS,
        "rows": numbers,
        "page_size": page_size,
        "few_images": charts.FEW_IMAGES,
    }


def _negative(value: Any) -> bool:
    return isinstance(value, int | float) and value < 0


def _duration(seconds: float) -> str:
    """Return seconds as ``42 s``, ``3 min 5 s`` or ``2 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _csp_hash(script: Markup) -> str:
    """Return the source expression by which a security policy allows exactly this inline script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()
