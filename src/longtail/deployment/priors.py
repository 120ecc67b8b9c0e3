"""Class priors that a user names: how often each class occurs where the model is used."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from longtail.data.tables import read_table
from longtail.errors import UserError, counted, unknown_name
from longtail.files import write_bytes

_COLUMNS = ("class", "prior")


class CountedModel(Protocol):
    """A model whose classes have names and training counts: a classifier, or a segmenter."""

    @property
    def class_names(self) -> Sequence[str]:
        """C names in label order."""
        ...

    @property
    def class_counts(self) -> Tensor:
        """Training images (or pixels) of each class, ``[C]``."""
        ...


def find_prior(prior: str, classifier: CountedModel) -> Tensor:
    """Return the class prior that ``prior`` names: float64 ``[C]`` with sum 1.

    Args:
        prior: ``"uniform"``, ``"train"`` (the training data's own class frequencies), or the path of a table (see
            :func:`read_prior`).
        classifier: whose classes it is for.

    Raises:
        UserError: neither of the two words nor a file, or a file that :func:`read_prior` refuses.
    """
    if prior == "uniform":
        return torch.full((len(classifier.class_names),), 1 / len(classifier.class_names), dtype=torch.float64)
    if prior == "train":
        counts = classifier.class_counts.cpu().double()
        return counts / counts.sum()
    if not Path(prior).suffix and not Path(prior).exists():
        raise unknown_name("prior", prior, ("uniform", "train", "FILE.csv"))
    return read_prior(prior, classifier.class_names)


def read_prior(file: str | Path, class_names: Sequence[str]) -> Tensor:
    """Return the class prior in a CSV or Parquet table with the columns ``class`` (name) and ``prior``.

    Weights are 0 or more, in any unit: shares, per cent or counts of images. A class of prior 0 is never predicted.

    Args:
        file: the table, one row a class in any order.
        class_names: C names in label order.

    Returns:
        float64 ``[C]`` with sum 1, in label order.

    Raises:
        UserError: no such table, a class missing, twice or unknown, or a weight that is none.
    """
    path = Path(file)
    table = read_table(path, _COLUMNS)
    lacking = [name for name in _COLUMNS if name not in table.columns]
    if lacking:
        raise UserError(
            f"{path} has no column {lacking[0]!r} (it has {', '.join(table.found[:10])}); a prior is a table with the "
            "columns class,prior."
        )
    place = {name.strip(): index for index, name in enumerate(class_names)}  # cells come without blanks around them
    if len(place) < len(class_names):
        alike = next(name for name in class_names if class_names[place[name.strip()]] != name)
        raise UserError(
            f"classes {alike!r} and {class_names[place[alike.strip()]]!r} differ in outer blanks alone, which a table "
            "does not keep; give the prior as uniform or train, or rename one."
        )
    weights: dict[int, float] = {}
    for line, name, text in zip(table.lines, *(table.columns[column] for column in _COLUMNS), strict=True):
        where = f"{path}, {table.unit} {line}"
        if name not in place:
            error = unknown_name("class", name, place) if len(place) <= 50 else None
            raise UserError(f"{where}: {error or f'unknown class {name!r}; the model has no such class.'}")
        if place[name] in weights:
            raise UserError(f"{where}: class {name!r} for the second time; keep one row a class.")
        weights[place[name]] = _weight(text, f"{where}, class {name!r}")
    missing = [name for index, name in enumerate(class_names) if index not in weights]
    if missing:
        others = f" and {counted(len(missing) - 1, 'other class', 'other classes')}" if len(missing) > 1 else ""
        raise UserError(f"{path} gives no prior for class {missing[0]!r}{others}; add a row (0 = it never occurs).")
    prior = torch.tensor([weights[index] for index in range(len(class_names))], dtype=torch.float64)
    if not bool(prior.sum() > 0):
        raise UserError(f"{path}: every class has prior 0; give at least one class a positive weight.")
    return prior / prior.sum()


def write_prior(file: Path, class_names: Sequence[str], prior: Tensor) -> None:
    """Write a table that :func:`read_prior` reads, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_COLUMNS)
    rows.writerows(zip(class_names, prior.tolist(), strict=True))
    try:
        write_bytes(file, text.getvalue().encode())
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}.") from None


def _weight(text: str, where: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight) or weight < 0:
        raise UserError(f"{where}: the prior is {text!r}; give a number of 0 or more.")
    return weight
