"""The log of a run as one small chart a figure: each part of the loss, temperature, label information, test figures."""

from __future__ import annotations

import math
from typing import Any

from longtail.reporting.charts import curve_chart

LOSSES = {
    "classifier": "Classifier loss",
    "rebalanced": "Rebalanced classifier loss",
    "focal": "Focal loss",
    "ldam": "LDAM loss",
    "gml": "GML contrast loss",
    "infonce": "InfoNCE loss",
    "supcon": "Supervised contrast loss",
    "bcl": "Balanced contrast loss",
    "paco": "PaCo loss",
    "proco": "ProCo contrast loss",
    "distillation": "Distillation loss",
    "dice": "Dice loss",
    "lovasz": "Lovász loss",
    "region": "Region loss",
    "auxiliary": "Auxiliary loss",
}
READINGS = {
    "lr": "Learning rate",
    "temperature": "Contrast temperature",
    "concentration": "Concentration of the classes, geometric mean",
    "bits": "Label information, bits",
    "queue_filled": "Share of the queue that is filled",
    "test_top1": "Test top-1",
    "test_balanced_accuracy": "Test balanced accuracy",
    "val_top1": "Validation top-1",
    "val_balanced_accuracy": "Validation balanced accuracy",
    "test_miou": "Test mIoU",
    "val_miou": "Validation mIoU",
}
_NOT_CURVES = {"stage", "epoch", "step", "steps_taken"}


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
            chart = curve_chart(name, title, points, in_percent)
            drawn.append({"title": title, "last": points[-1][1], "percent": in_percent, "svg": chart})
        stages.append({"name": stage, "epochs": max(p[0] for c in curves.values() for p in c), "curves": drawn})
    return stages
