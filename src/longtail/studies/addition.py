"""What a study may tell beside its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from longtail.metrics import MeanInterval, mean_interval
from longtail.studies.charts import Figure
from longtail.studies.tables import Table


@dataclass
class Addition:
    """What is added to a study.

    Attributes:
        tables, figures: shown after the study's own.
        record: ready for JSON.
        notes: of what could not be computed.
    """

    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def mean_of(values: Sequence[float | None]) -> MeanInterval | None:
    """Return the mean over seeds that have a value, with its interval; None if none has."""
    known = [value for value in values if value is not None]
    return mean_interval(known) if known else None
