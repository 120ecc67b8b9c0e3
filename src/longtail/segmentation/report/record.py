"""Reads back what a run on masks wrote: figures, classes, confusions, and the pictures of its rarest classes."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtail.errors import UserError
from longtail.files import read_json
from longtail.metrics import GROUPS
from longtail.segmentation.report.confusions import taken_for
from longtail.segmentation.report.dense_class import DenseClass

_NEEDED = (
    "miou miou_interval iou class_names class_counts image_counts test_pixels groups_by_pixels groups_by_images "
    "rarest_four pixel_accuracy balanced_accuracy ece test_images"
).split()
_A_CLASS = "iou class_names class_counts image_counts test_pixels".split()
_KINDS = {"image", "truth", "prediction", "error"}
_COLOUR = re.compile("#[0-9a-f]{6}")
_PICTURE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*")


def read_dense_evaluation(path: Path) -> dict[str, Any]:
    """Return an ``evaluation.json`` of a run on masks, or raise UserError that names the file and what it lacks."""
    evaluation = read_json(path)
    lacking = [key for key in _NEEDED if not isinstance(evaluation, dict) or key not in evaluation]
    if lacking:
        raise UserError(f"{path} lacks {lacking[0]!r}; run the evaluation again to write it anew.")
    lengths = {len(evaluation[key]) for key in _A_CLASS if isinstance(evaluation[key], list)}
    if len(lengths) != 1 or not all(isinstance(evaluation[key], list) for key in _A_CLASS):
        raise UserError(f"{path} has not one value a class; it was cut off or changed.")
    return dict(evaluation)


def read_dense_classes(path: Path, evaluation: dict[str, Any], palette: Sequence[str] = ()) -> list[DenseClass]:
    """Return the rows of a ``per_class.csv`` in class order, or raise UserError that names the file.

    Args:
        path: the file.
        evaluation: of :func:`read_dense_evaluation`, of the same folder.
        palette: C colours ``#rrggbb``; () = none is known.
    """

    def fraction(text: str) -> float | None:
        return float(text) if text else None

    names, confusion = evaluation["class_names"], evaluation.get("confusion")
    colours = list(palette) if len(palette) == len(names) else ["transparent"] * len(names)
    whole = sum(evaluation["class_counts"]) or 1
    try:
        lines = list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8"), newline="")))
        rows = [
            DenseClass(
                index=index,
                name=line["name"],
                colour=colours[index],
                group=line["group_by_pixels"],
                train_pixels=int(line["train_pixels"]),
                share=int(line["train_pixels"]) / whole,
                images=int(line["train_images"]),
                test_pixels=int(line["test_pixels"]),
                iou=fraction(line["iou"]),
                recall=fraction(line["recall"]),
                precision=fraction(line["precision"]),
                boundary_f=fraction(line["boundary_f"]),
                taken_for=() if confusion is None else taken_for(confusion, index),
            )
            for index, line in enumerate(lines)
        ]
    except FileNotFoundError:
        raise UserError(f"no such file: {path}; run the evaluation again to write it.") from None
    except (KeyError, IndexError, ValueError, TypeError, csv.Error, OSError) as error:
        raise UserError(f"{path} cannot be read as a table of classes ({error}); it was cut off or changed.") from None
    if len(rows) != len(names) or any(row.group not in GROUPS for row in rows):
        raise UserError(
            f"{path} does not belong to the evaluation.json beside it, which has {len(names)} classes; run the "
            "evaluation again to write both anew."
        )
    return rows


@dataclass(frozen=True)
class DenseGallery:
    """What ``gallery.json`` holds: colours ``#rrggbb`` of the classes, and pictures of the rarest of them."""

    palette: list[str]
    classes: list[dict[str, Any]]


def read_dense_gallery(path: Path, classes: int) -> DenseGallery:
    """Return a ``gallery.json`` of so many ``classes`` (see :mod:`longtail.segmentation.report.gallery`), if any.

    Raises:
        UserError: it is of another form, or a picture is not one that the file itself holds.
    """
    if not path.exists():
        return DenseGallery([], [])
    record = read_json(path)

    def known(label: Any) -> bool:
        return isinstance(label, int) and 0 <= label < classes

    try:
        whole = len(record["palette"]) == classes
        whole &= all(_COLOUR.fullmatch(colour) is not None for colour in record["palette"])
        for shown in record["classes"]:
            whole &= known(shown["class"]) and isinstance(shown["images"], int)
            for entry in shown["entries"]:
                whole &= {"image", "file", "found", "true", "predicted"} <= entry.keys()
                whole &= all(map(known, entry["shown"])) and entry["pictures"].keys() == _KINDS
                whole &= all(_PICTURE.fullmatch(picture) is not None for picture in entry["pictures"].values())
                whole &= set(entry["why"]) <= {"most", "missed"}
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f"{path} cannot be read as pictures of classes; it was cut off or changed.")
    return DenseGallery(list(record["palette"]), list(record["classes"]))


def checked(path: Path, read: Callable[[], Any]) -> Any:
    """Return ``read()``; what fails in it is a UserError that says that the file at ``path`` was changed."""
    try:
        return read()
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); run the evaluation again to write it anew.") from None
