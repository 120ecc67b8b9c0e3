"""From a finished run's folder to ``report.html``: one page that needs nothing else, not even a network.

The page's security policy forbids every request, and lets only the page's own script run, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import shlex
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from longtail.config import TrainConfig, flatten
from longtail.files import write_bytes
from longtail.metrics import GROUP_EDGES, GROUPS
from longtail.reporting.run_record import (
    ClassRow,
    fold_rows,
    read_classes,
    read_data,
    read_evaluation,
    read_folds,
    read_log,
)
from longtail.reporting.svg import number, percent
from longtail.training.run_folder import read_config, read_environment

from . import charts

ROWS_A_PAGE = 100
METHODS = {"gml": "GML", "logit_adjustment": "logit adjustment", "cross_entropy": "cross entropy"}
LOSSES = {
    "classifier": "Classifier loss",
    "gml": "GML contrast loss",
    "distillation": "Distillation loss",
}
OVER_FOLDS = {
    "top1": "Top-1",
    "balanced_accuracy": "Balanced",
    **{group: group.capitalize() for group in GROUPS},
    "worst_class": "Worst class",
    "ece": "Calibration error",
}
READINGS = {
    "lr": "Learning rate",
    "temperature": "Contrast temperature",
    "bits": "Label information, bits",
    "test_top1": "Test top-1",
    "test_balanced_accuracy": "Test balanced accuracy",
    "val_top1": "Validation top-1",
    "val_balanced_accuracy": "Validation balanced accuracy",
}
_NOT_CURVES = {"stage", "epoch", "step", "steps_taken"}


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into the run folder ``folder`` and return its path.

    Read are ``config.yaml``, ``evaluation.json`` and ``per_class.csv``, and, where they exist, ``data.json``,
    ``metrics.jsonl``, ``environment.json`` and the teacher's figures in ``teacher``. The same files give the same
    bytes. A run over folds has links to the reports of its folds that exist.

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
    in_pages = len(rows) > charts.MOST_MARKS
    return _template().render(
        config=config,
        data=str(config.get("data") or "unnamed data"),
        method=METHODS.get(str(config.get("method")), str(config.get("method"))),
        evaluation=evaluation,
        teacher=teacher,
        cards=headline(evaluation, teacher, rows),
        folds=folds,
        fold_rows=fold_rows(folder, folds) if folds else [],
        over_folds=OVER_FOLDS,
        record=read_data(folder / "data.json"),
        sizes=group_sizes(evaluation["group_edges"]),
        usual_edges=GROUP_EDGES,
        figures=all_figures(evaluation, teacher),
        worst=rows[evaluation["worst_class"]["class"]],
        teacher_worst=teacher_rows[teacher["worst_class"]["class"]] if teacher and teacher_rows else None,
        rows=rows,
        page_size=ROWS_A_PAGE if in_pages else len(rows),
        class_data=_compact(rows),
        limits=charts,
        counts_chart=charts.class_count_chart(rows),
        size_chart=charts.accuracy_by_size_chart(rows),
        group_chart=charts.group_chart(shown),
        reliability_chart=charts.reliability_chart(evaluation["reliability"]),
        stages=training_curves(log),
        watched=any(key.startswith("test_") for line in log for key in line),
        informed=any("bits" in line for line in log),
        skipped=[line for line in log if "skipped_step" in line],
        settings=_settings(config),
        environment=read_environment(folder / "environment.json"),
        command=reproduce_command(config),
    )


def _template() -> jinja2.Template:
    """Return the page's template; it escapes all text, and a name it is not given is an error."""
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("longtail.reporting", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(percent=percent, number=number, csp_hash=_csp_hash, duration=_duration)
    return pages.get_template("template.html")


def group_sizes(edges: list[int]) -> dict[str, str]:
    """Return what many, medium and few mean, in words for "... training images"."""
    many, few = edges
    return {"many": f"more than {many}", "medium": f"{few} to {many}", "few": f"fewer than {few}"}


def headline(evaluation: dict[str, Any], teacher: dict[str, Any] | None, rows: list[ClassRow]) -> list[dict[str, Any]]:
    """Return the figures that come first: what, value, interval, what it is about, the teacher's value."""
    overall = [
        ("top1", "Top-1", "share of all test images right"),
        ("balanced_accuracy", "Balanced", "balanced accuracy: every class weighs the same"),
    ]
    cards = [
        {"label": label, "value": evaluation[key], "note": note, "teacher": teacher[key] if teacher else None}
        | {"interval": evaluation["intervals"].get(key), "missing": "", "group": ""}
        for key, label, note in overall
    ]
    for group, size in group_sizes(evaluation["group_edges"]).items():
        images = sum(row.test_images for row in rows if row.group == group)
        figures = evaluation["groups"][group]
        count, tested = figures["classes"], figures.get("tested_classes", figures["classes"])
        of = f"{count}" if tested == count else f"{tested} tested of {count}"
        cards.append(
            {
                "label": group.capitalize(),
                "value": figures["accuracy"],
                "interval": evaluation["intervals"].get(group),
                "missing": "no such class" if not count else "no test image",
                "note": f"{of} {'class' if count == 1 else 'classes'} with {size} training images"
                + (f"; {number(images)} test images" if images else ""),
                "teacher": teacher["groups"][group]["accuracy"] if teacher else None,
                "group": group,
            }
        )
    return cards


def all_figures(evaluation: dict[str, Any], teacher: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the figures beside the headline: name, what it means, values of this run and of the teacher."""
    floor = number(evaluation.get("harmonic_mean_floor", 0.0))
    entropy = evaluation.get("label_entropy_bits")
    of_entropy = "" if entropy is None else f", of {entropy:.2f} bits in the test labels"
    kinds = [
        ("top5", "Top-5", "right class among the five first", "percent"),
        ("harmonic_mean", "Harmonic mean", f"of class accuracies, each at least {floor}", "percent"),
        ("macro_f1", "Macro F1", "mean over classes", "percent"),
        ("ece", "Calibration error", "mean gap between confidence and accuracy; lower is better", "percent"),
        ("class_ece", "Calibration error by class", "the same within each class; lower is better", "percent"),
        ("mutual_information_bits", "Label information", f"lower bound{of_entropy}", "bits"),
    ]
    return [
        {"label": label, "note": note, "unit": unit, "value": evaluation.get(key)}
        | {"teacher": teacher.get(key) if teacher else None}
        for key, label, note, unit in kinds
    ]


def training_curves(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each stage, in order, its name, number of epochs and one chart for each figure in the log."""
    series: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for line in log:
        for key, value in line.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if "skipped_step" not in line and "epoch" in line and key not in _NOT_CURVES and is_number:
                points = series.setdefault(str(line["stage"]), {}).setdefault(key, [])
                points.append((int(line["epoch"]), float(value)))
    stages = []
    last = list(READINGS)
    for position, (stage, curves) in enumerate(series.items()):
        drawn: list[dict[str, Any]] = []
        for key in sorted(curves, key=lambda key: last.index(key) if key in READINGS else -1):
            title = {**LOSSES, **READINGS}.get(key, f"{key} loss")
            name, points, in_percent = f"curve-{position}-{len(drawn)}", curves[key], key.startswith(("test_", "val_"))
            chart = charts.curve_chart(name, title, points, in_percent)
            drawn.append({"title": title, "last": points[-1][1], "percent": in_percent, "svg": chart})
        stages.append({"name": stage, "epochs": max(p[0] for c in curves.values() for p in c), "curves": drawn})
    return stages


def reproduce_command(config: dict[str, Any]) -> str:
    """Return the command that trains this run again: every option that is not the program's own default."""
    defaults = flatten(TrainConfig())
    words = [
        f"longtail train {shlex.quote(str(config.get('data') or 'DATA'))}",
        f"--method {shlex.quote(str(config.get('method')))}",
    ]
    for key, value in _options(config).items():
        if key in ("data", "method", "seed", "out", "device") or key.startswith("checkpoint."):
            continue
        if key not in defaults or value != defaults[key]:
            words.append(f"--{key} {shlex.quote(_as_text(value))}")
    return " \\\n  ".join([*words, f"--seed {config.get('seed', 0)}"])


def _options(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options as ``{dotted name: value}``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _options(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _settings(config: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (group of options, its names and values); the ungrouped come first."""
    groups: dict[str, list[tuple[str, str]]] = {"run": []}
    for key, value in _options(config).items():
        group, _, name = key.rpartition(".")
        groups.setdefault(group or "run", []).append((name, _as_text(value)))
    return list(groups.items())


def _as_text(value: Any) -> str:
    """Return a value as the command line and YAML read it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _compact(rows: list[ClassRow]) -> dict[str, Any]:
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
    return {"names": [row.name for row in rows], "groups": GROUPS, "rows": numbers}


def _duration(seconds: float) -> str:
    """Return seconds as ``42 s``, ``3 min 5 s`` or ``2 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _csp_hash(script: Markup) -> str:
    """Return the source expression by which a security policy allows exactly this inline script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()
