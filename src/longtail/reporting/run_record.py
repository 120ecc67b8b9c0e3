"""Reads back what a run wrote: figures, the table of classes and the log of its epochs."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtail.errors import UserError
from longtail.files import read_json
from longtail.metrics import GROUPS

_NEEDED = (
    "test_images classes top1 balanced_accuracy groups group_edges worst_class harmonic_mean macro_f1 ece class_ece "
    "intervals reliability"
).split()


@dataclass(frozen=True)
class ClassRow:
    """One class of ``per_class.csv``; ``accuracy`` and ``confidence`` are None without test images."""

    name: str
    group: str
    train_images: int
    test_images: int
    correct: int
    accuracy: float | None
    low: float
    high: float
    confidence: float | None
    confused_with: str
    confused_count: int


def read_evaluation(path: Path) -> dict[str, Any]:
    """Return an ``evaluation.json``, or raise UserError that names the file and what it lacks."""
    evaluation = read_json(path)
    lacking = [key for key in _NEEDED if not isinstance(evaluation, dict) or key not in evaluation]
    if lacking:
        raise UserError(f"{path} lacks {lacking[0]!r}; run the evaluation again to write it anew.")
    return dict(evaluation)


def read_classes(path: Path, num_classes: int) -> list[ClassRow]:
    """Return the ``num_classes`` rows of a ``per_class.csv`` in class order, or raise UserError that names the file."""

    def fraction(text: str) -> float | None:
        return float(text) if text else None

    try:
        lines = list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8"), newline="")))
        rows = [
            ClassRow(
                name=line["name"],
                group=line["group"],
                train_images=int(line["train_images"]),
                test_images=int(line["test_images"]),
                correct=int(line["correct"]),
                accuracy=fraction(line["accuracy"]),
                low=float(line["low"]),
                high=float(line["high"]),
                confidence=fraction(line["mean_confidence"]),
                confused_with=line["most_confused_with"],
                confused_count=int(line["confused_count"]),
            )
            for line in lines
        ]
    except FileNotFoundError:
        raise UserError(f"no such file: {path}; run the evaluation again to write it.") from None
    except (KeyError, ValueError, TypeError, csv.Error, OSError) as error:
        raise UserError(f"{path} cannot be read as a table of classes ({error}); it was cut off or changed.") from None
    if len(rows) != num_classes or any(row.group not in GROUPS for row in rows):
        raise UserError(
            f"{path} does not belong to the evaluation.json beside it, which has {num_classes} classes; run the "
            "evaluation again to write both anew."
        )
    return rows


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the records of a ``metrics.jsonl``, [] if there is none; a last line that was cut off is left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    records = []
    for place, line in enumerate(lines, start=1):
        try:
            record = json.loads(line) if line.strip() else None
        except ValueError:
            if place < len(lines):
                raise UserError(f"{path} cannot be read: line {place} is not JSON; it was changed.") from None
            break
        if isinstance(record, dict) and "stage" in record:
            records.append(record)
    return records
