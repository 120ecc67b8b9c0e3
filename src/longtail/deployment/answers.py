"""From logits to rows: what is told of each image, and a tally of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from longtail.deployment.logit_stream import ScoredBatch
from longtail.deployment.result_table import Column, Row
from longtail.training.shortlists import Shortlist

NOT_SURE = "not sure"


@dataclass(frozen=True)
class AnswerForm:
    """What is told of an image.

    Attributes:
        class_names: C names.
        top_k: how many classes, the most probable first.
        shift: ``[C]``, added to the logits for another class prior; None = none.
        reject_below: lowest probability of an answer that counts as sure; None = no column for it.
        shortlist: None = no shortlists.
    """

    class_names: Sequence[str]
    top_k: int = 1
    shift: Tensor | None = None
    reject_below: float | None = None
    shortlist: Shortlist | None = None

    @property
    def columns(self) -> dict[str, Column]:
        """The columns of a table of answers, in order, and what each holds."""
        found: dict[str, Column] = {"file": "text"}
        for place in range(self.top_k):
            found |= {f"label{_mark(place)}": "text", f"probability{_mark(place)}": "number"}
        if self.shortlist is not None:
            found["set"] = "texts"
        if self.reject_below is not None:
            found["decision"] = "text"
        return found | {"error": "text"}

    def rows(self, batch: ScoredBatch) -> list[Row]:
        """Return a row an image, in order; all but ``file`` and ``error`` are None where it cannot be read."""
        logits = batch.logits.double()
        shifted = logits if self.shift is None else logits + self.shift
        # Sorted stably: of equal probabilities the first class wins, as everywhere.
        probabilities, classes = shifted.softmax(1).sort(dim=1, descending=True, stable=True)
        sets: Tensor | None = None
        if self.shortlist is not None:
            chosen = self.shortlist.choose(logits, classes[:, 0])
            sets = chosen.gather(1, classes)  # in the order of the classes: the most probable first
        empty: Row = dict.fromkeys(self.columns)
        rows: list[Row] = []
        good = 0
        for position, name in enumerate(batch.names):
            if position in batch.errors:
                rows.append({**empty, "file": name, "error": batch.errors[position]})
                continue
            listed = None if sets is None else classes[good][sets[good]].tolist()
            top = probabilities[good, : self.top_k].tolist()
            rows.append(self._row(empty, name, classes[good, : self.top_k].tolist(), top, listed))
            good += 1
        return rows

    def _row(self, empty: Row, name: str, classes: list[int], top: list[float], listed: list[int] | None) -> Row:
        row = {**empty, "file": name}
        for place, (index, probability) in enumerate(zip(classes, top, strict=True)):
            row[f"label{_mark(place)}"] = self.class_names[index]
            row[f"probability{_mark(place)}"] = float(f"{probability:.6g}")
        if listed is not None:
            row["set"] = [self.class_names[index] for index in listed]
        if self.reject_below is not None:
            row["decision"] = row["label"] if top[0] >= self.reject_below else NOT_SURE
        return row


@dataclass
class Tally:
    """What rows said so far.

    Attributes:
        images, unreadable, unsure: how many.
        listed: classes in all shortlists together.
        first_bad: name and reason of the first image that cannot be read.
    """

    images: int = 0
    unreadable: int = 0
    unsure: int = 0
    listed: int = 0
    first_bad: str = ""

    def add(self, rows: Sequence[Row]) -> None:
        """Count ``rows``."""
        for row in rows:
            self.images += 1
            if row["error"] is not None:
                self.unreadable += 1
                self.first_bad = self.first_bad or f"{row['file']} ({row['error']})"
                continue
            self.unsure += row.get("decision") == NOT_SURE
            self.listed += len(row.get("set") or ())


def _mark(place: int) -> str:
    return "" if place == 0 else f"_{place + 1}"
