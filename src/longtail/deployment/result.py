"""What training or evaluating a run comes to, for Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtail.deployment.run_records import load_classifier
from longtail.models import Classifier


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        folder: of the run; ``report.html`` lies in it.
        evaluation: the figures of ``evaluation.json``, fractions in 0..1.
    """

    folder: Path
    evaluation: dict[str, Any]

    @property
    def report(self) -> Path:
        """Path of the report."""
        return self.folder / "report.html"


@dataclass(frozen=True)
class Result(FinishedRun):
    """A finished run of classification; attributes as those of :class:`FinishedRun`."""

    def load(self) -> Classifier:
        """Return the trained classifier, as :func:`longtail.load` does."""
        return load_classifier(self.folder)
