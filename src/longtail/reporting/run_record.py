"""Reads back what a run wrote: figures, the table of classes, the log of its epochs, and what was said of its data."""

from __future__ import annotations

import csv
import io
import json
import re
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
_OF_FOLDS = {"mean", "sd", "values", "undefined", "interval"}
_PICTURE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*")


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


@dataclass(frozen=True)
class DataRecord:
    """What ``data.json`` says of the images: how they were split, notes, and files that could not be read.

    ``skipped`` holds (file, reason), ``skipped_count`` how many there were in all.
    """

    test_split: str
    validation_images: int
    validation_split: str
    train_images: int
    test_images: int
    notes: list[str]
    skipped: list[tuple[str, str]]
    skipped_count: int


def read_data(path: Path) -> DataRecord | None:
    """Return a ``data.json``, None if there is none, or raise UserError that names the file."""
    if not path.exists():
        return None
    record = read_json(path)
    try:
        skipped = [(str(entry["file"]), str(entry["reason"])) for entry in record.get("skipped", [])]
        return DataRecord(
            test_split=str(record["test_split"]),
            validation_images=int(record.get("validation_images", 0)),
            validation_split=str(record.get("validation_split", "")),
            train_images=int(record["train_images"]),
            test_images=int(record["test_images"]),
            notes=[str(note) for note in record.get("notes", [])],
            skipped=skipped,
            skipped_count=int(record.get("skipped_count", len(skipped))),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read as a record of the data ({error}); it was cut off or changed."
        ) from None


def read_temperature_figures(path: Path) -> dict[str, Any] | None:
    """Return a ``calibration.json`` (temperature, images, nll and ece before and after), None if there is none.

    Raises:
        UserError: it lacks one of them.
    """
    if not path.exists():
        return None
    record = read_json(path)
    try:
        pairs = {key: [float(value) for value in record[key]] for key in ("nll", "ece")}
        if any(len(pair) != 2 for pair in pairs.values()):
            raise ValueError("nll and ece need two values each")
        return {"temperature": float(record["temperature"]), "images": int(record["images"]), **pairs}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a calibration ({error}); it was cut off or changed.") from None


def read_gallery(path: Path) -> dict[str, Any] | None:
    """Return a ``gallery.json`` (see ``longtail.training.gallery``), None if there is none.

    Raises:
        UserError: it is of another form, or a thumbnail is not a picture that the file itself holds.
    """
    if not path.exists():
        return None
    record = read_json(path)
    try:
        whole = {"group", "images", "mistakes", "most_of_a_class", "no_neighbours"} <= record.keys()
        for entry in record["entries"]:
            whole &= {"image", "file", "true", "predicted", "confidence"} <= entry.keys()
            whole &= all({"class", "similarity"} <= near.keys() for near in entry["nearest"])
            pictures = [part["thumbnail"] for part in (entry, *entry["nearest"])]
            whole &= all(_PICTURE.fullmatch(picture) is not None for picture in pictures)
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f"{path} cannot be read as pictures of mistakes; it was cut off or changed.")
    return dict(record)


def read_folds(path: Path, evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """Return ``folds`` of the ``evaluation`` read from ``path``, None if it was not over folds.

    Raises:
        UserError: a figure has not one value a fold.
    """
    record = evaluation.get("folds")
    if record is None:
        return None
    try:
        number = record["folds"] * record["repeats"]
        lengths = {len(figure["values"]) for figure in record["figures"].values()} | {len(record["test_images"])}
        whole = lengths == {number} and all(figure.keys() >= _OF_FOLDS for figure in record["figures"].values())
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f"{path} cannot be read as figures over folds; it was cut off or changed.")
    return dict(record)


def fold_rows(folder: Path, folds: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each fold of :func:`read_folds`: number, repeat, test images, figures, and its folder's report.

    ``report`` is relative to ``folder``, and None where there is none. ``worst_of`` are the test images of the fold's
    worst class, None where not recorded.
    """
    rows = []
    worst_of = folds["figures"].get("worst_class", {}).get("test_images") or [None] * len(folds["test_images"])
    for position, images in enumerate(folds["test_images"]):
        repeat, fold = divmod(position, folds["folds"])
        report = f"fold-{position}/report.html"
        rows.append(
            {
                "fold": fold + 1,
                "repeat": repeat + 1,
                "report": report if (folder / report).exists() else None,
                "test_images": images,
                "values": {name: figure["values"][position] for name, figure in folds["figures"].items()},
                "worst_of": worst_of[position],
            }
        )
    return rows


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
