"""What the cells of a study come to: means over seeds with intervals, paired differences, published figures, time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import longtail
from longtail.config import flatten
from longtail.errors import UserError
from longtail.methods import is_read
from longtail.metrics import MeanInterval, mean_interval
from longtail.metrics.folds import figure_value
from longtail.metrics.paired import paired_by_seed
from longtail.reporting.compared_runs import FIGURES
from longtail.reporting.run_record import read_evaluation, read_log
from longtail.studies.cells import Cell
from longtail.studies.ledger import Entry, Ledger
from longtail.studies.plan import Panel, Plan
from longtail.studies.published import Published, published_figures
from longtail.studies.rows import Row
from longtail.training.run_folder import may_change, read_environment

INTERVAL = "95 % Student interval of the mean over seeds; differences paired by seed"


@dataclass(frozen=True)
class CellResult:
    """A cell and what became of it.

    Attributes:
        cell: as planned.
        folder: of its run.
        entry: what is known of it; None if it was never begun.
        figures: one for each of ``FIGURES``, None where it is not defined; {} unless it is finished.
    """

    cell: Cell
    folder: Path
    entry: Entry | None
    figures: dict[str, float | None]

    @property
    def done(self) -> bool:
        """Whether it is finished."""
        return bool(self.figures)

    @property
    def error(self) -> str:
        """The sentence that it failed with; "" if it did not."""
        return self.entry.error if self.entry is not None and self.entry.status == "failed" else ""

    @cached_property
    def environment(self) -> dict[str, dict[str, Any]]:
        """Versions, hardware and seconds a stage."""
        return read_environment(self.folder / "environment.json")

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The epochs of its last stage."""
        lines = [line for line in read_log(self.folder / "metrics.jsonl") if "lr" in line]
        return [line for line in lines if line["stage"] == lines[-1]["stage"]]


@dataclass(frozen=True)
class RowResult:
    """A row of a panel over its seeds.

    Attributes:
        row: as planned.
        cells: one a seed.
        figures: means over the seeds that are finished; None where no seed has the figure.
        against: name of the row that it is compared with; "" if that is itself.
        differences: this row minus that one, over the seeds that both have.
        published: figures of others on the same set.
    """

    row: Row
    cells: tuple[CellResult, ...]
    figures: dict[str, MeanInterval | None]
    against: str
    differences: dict[str, MeanInterval | None]
    published: tuple[Published, ...]

    @property
    def finished(self) -> list[CellResult]:
        """The cells that are."""
        return [cell for cell in self.cells if cell.done]

    @property
    def seconds(self) -> float | None:
        """Mean seconds that a finished cell was training; stages taken from another cell are not in it."""
        spent = [sum(cell.environment["seconds"].values()) for cell in self.finished]
        return sum(spent) / len(spent) if spent else None


@dataclass(frozen=True)
class PanelResult:
    """A table of a study.

    Attributes:
        panel: as planned.
        rows: in order.
        others: published figures on the same set of methods that have no row.
    """

    panel: Panel
    rows: tuple[RowResult, ...]
    others: tuple[Published, ...]


def read_results(plan: Plan, ledger: Ledger) -> tuple[PanelResult, ...]:
    """Return what there is so far of every panel."""
    cells = [_read_cell(cell, ledger) for cell in plan.cells]
    return tuple(_panel(panel, [cell for cell in cells if cell.cell.panel == panel.title]) for panel in plan.panels)


def _read_cell(cell: Cell, ledger: Ledger) -> CellResult:
    entry, folder, figures = ledger.entry(cell.folder), ledger.folder(cell.folder), {}
    if ledger.done(cell.folder):
        evaluation = read_evaluation(folder / "evaluation.json")
        figures = {name: figure_value({"mutual_information_bits": None, **evaluation}, name) for name in FIGURES}
    return CellResult(cell, folder, entry, figures)


def _panel(panel: Panel, cells: Sequence[CellResult]) -> PanelResult:
    by_row = {row.name: tuple(cell for cell in cells if cell.cell.row == row.name) for row in panel.rows}
    known = [] if panel.facts.published is None else published_figures(*panel.facts.published)
    rows = []
    for row in panel.rows:
        against = row.against or panel.rows[0].name
        figures, differences = {}, {}
        for name in FIGURES:
            own = _by_seed(by_row[row.name], name)
            values = [value for value in own.values() if value is not None]
            figures[name] = mean_interval(values) if values else None
            if against != row.name:
                differences[name] = paired_by_seed(own, _by_seed(by_row[against], name))
        found = tuple(figure for figure in known if figure.method == row.published)
        mine = "" if against == row.name else against
        rows.append(RowResult(row, by_row[row.name], figures, mine, differences, found))
    shown = {row.published for row in panel.rows}
    others = tuple(figure for figure in known if figure.method not in shown)
    return PanelResult(panel, tuple(rows), others)


def _by_seed(cells: Sequence[CellResult], figure: str) -> dict[int, float | None]:
    return {cell.cell.seed: cell.figures[figure] for cell in cells if cell.done}


def protocol(plan: Plan) -> dict[str, Any]:
    """Return the resolved options that all cells share, of those that any of them reads."""
    configs = [cell.config for cell in plan.cells if not cell.refused]
    flat = [flatten(config) for config in configs]
    return {
        key: value
        for key, value in flat[0].items()
        if value is not None
        and key not in ("data", "seed", "method", "out")
        and not may_change(key)
        and all(options[key] == value for options in flat)
        and any(is_read(config.method, key) for config in configs)
    }


def record(plan: Plan, panels: Sequence[PanelResult], ledger: Ledger, added: dict[str, Any]) -> dict[str, Any]:
    """Return all of a study, ready for JSON; figures are fractions in 0..1, bits, published ones per cent."""
    runs: dict[str, CellResult] = {}
    for each in (cell for panel in panels for row in panel.rows for cell in row.cells):
        runs.setdefault(each.cell.folder, each)
    cells = list(runs.values())
    done = [cell for cell in cells if cell.done]
    return {
        "study": plan.study.name,
        "text": plan.study.text,
        "longtail": longtail.__version__,
        "seeds": list(plan.seeds),
        "interval": INTERVAL,
        "protocol": {"selection": "nothing is chosen on the test set", **protocol(plan)},
        "cells": len(cells),
        "finished": len(done),
        "failed": sum(bool(cell.error) for cell in cells),
        "seconds": round(sum(cell.entry.seconds for cell in cells if cell.entry is not None), 1),
        "code": sorted({cell.entry.code for cell in done if cell.entry is not None}),
        "versions": distinct(cell.environment["versions"] for cell in done),
        "hardware": distinct(cell.environment["hardware"] for cell in done),
        "panels": [_panel_record(panel) for panel in panels],
        **({"added": added} if added else {}),
        "runs": [_cell_record(cell, ledger) for cell in cells],
    }


def distinct(records: Any) -> list[dict[str, Any]]:
    """Return each different record once."""
    found: list[dict[str, Any]] = []
    found.extend(each for each in records if each not in found)
    return found


def _panel_record(result: PanelResult) -> dict[str, Any]:
    facts = result.panel.facts
    return {
        "title": result.panel.title,
        "data": {
            **{key: getattr(facts, key) for key in ("name", "classes", "train_images", "test_images")},
            "largest_class": facts.largest,
            "smallest_class": facts.smallest,
            "notes": list(facts.notes),
        },
        "rows": [
            {
                "name": row.row.name,
                "options": dict(row.row.options),
                "seeds": [cell.cell.seed for cell in row.finished],
                "figures": as_json(row.figures),
                "against": row.against,
                "differences": as_json(row.differences),
                "published": [figure.record() for figure in row.published],
                "seconds": None if row.seconds is None else round(row.seconds, 1),
                "failed": {str(cell.cell.seed): cell.error for cell in row.cells if cell.error},
            }
            for row in result.rows
        ],
        "published_without_a_row": [figure.record() for figure in result.others],
    }


def as_json(figures: dict[str, MeanInterval | None]) -> dict[str, Any]:
    """Return figures with their intervals, ready for JSON."""
    return {name: None if value is None else value._asdict() for name, value in figures.items()}


def _cell_record(cell: CellResult, ledger: Ledger) -> dict[str, Any]:
    entry = cell.entry
    return {
        "run": str(cell.folder.relative_to(ledger.path)),
        "panel": cell.cell.panel,
        "row": cell.cell.row,
        "seed": cell.cell.seed,
        "status": "waiting" if entry is None else "done" if cell.done else entry.status,
        "error": cell.error,
        "code": "" if entry is None else entry.code,
        "seconds": 0.0 if entry is None else entry.seconds,
        "stages_taken_from": {} if entry is None else entry.taken,
        "stage_seconds": cell.environment["seconds"] if cell.done else {},
        "figures": cell.figures,
    }


def teacher_evaluation(cell: CellResult, ledger: Ledger) -> dict[str, Any] | None:
    """Return the evaluation of a cell's teacher, wherever it was trained; None if there is none."""
    entry = cell.entry
    source = "" if entry is None else entry.taken.get("teacher", "")
    path = (ledger.folder(source) if source else cell.folder) / "teacher" / "evaluation.json"
    try:
        return read_evaluation(path) if path.exists() else None
    except UserError:
        return None
