"""What a study tells beside its table: figures, and tables of another kind, from what its cells left behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from longtail.metrics import MeanInterval
from longtail.metrics.folds import figure_value
from longtail.metrics.paired import paired_by_seed
from longtail.studies.addition import Addition, mean_of
from longtail.studies.charts import Line, line_figure
from longtail.studies.ledger import Ledger
from longtail.studies.prior_tables import prior
from longtail.studies.results import PanelResult, RowResult, as_json, teacher_evaluation
from longtail.studies.tables import Table, TableCell, percent_cell


def imbalance(panels: Sequence[PanelResult], ledger: Ledger) -> Addition:
    """Balanced accuracy over the imbalance of the training set, a line a row; and how much each loses."""
    added = Addition()
    names = list(dict.fromkeys(row.row.name for panel in panels for row in panel.rows))
    by_name: dict[str, list[tuple[float, RowResult]]] = {name: [] for name in names}
    for panel in panels:
        options, facts = panel.panel.options, panel.panel.facts
        factor = float(options["imbalance"] if "imbalance" in options else facts.largest / facts.smallest)
        for row in panel.rows:
            by_name[row.row.name].append((factor, row))
    lines = []
    for name, found in by_name.items():
        points = [(x, row.figures["balanced_accuracy"]) for x, row in sorted(found, key=lambda pair: pair[0])]
        lines.append(Line(name, tuple((x, y) for x, y in points if y is not None)))
    figure = line_figure(
        "imbalance",
        "Balanced accuracy over imbalance",
        "Largest over smallest training class, logarithmic; bars: 95 % Student interval over seeds.",
        lines,
        x_title="imbalance (logarithmic)",
        as_percent=True,
        log=True,
        ticks=[(x, f"{x:g}") for x in sorted({x for found in by_name.values() for x, _ in found})],
    )
    added.figures += [figure] if figure is not None else []
    rows = []
    for name, found in by_name.items():
        ordered = [row for _, row in sorted(found, key=lambda pair: pair[0])]
        first, last = (_balanced(row) for row in (ordered[0], ordered[-1]))
        lost = paired_by_seed(last, first) if len(ordered) > 1 else None
        rows.append((TableCell(name), percent_cell(lost, sign=True)))
        added.record[name] = {"change": None if lost is None else lost._asdict()}
    levels = sorted({x for found in by_name.values() for x, _ in found})
    title = f"Balanced accuracy at imbalance {levels[-1]:g} minus that at {levels[0]:g} (percentage points)"
    added.tables += [Table(title, ("row", "change"), tuple(rows))] if len(levels) > 1 else []
    return added


def _balanced(row: RowResult) -> dict[int, float | None]:
    return {cell.cell.seed: cell.figures["balanced_accuracy"] for cell in row.finished}


def temperature(panels: Sequence[PanelResult], ledger: Ledger) -> Addition:
    """The temperature at the end of every epoch, means over seeds, a line a row."""
    added = Addition()
    for number, panel in enumerate(panels):
        lines, rows = [], []
        for row in panel.rows:
            logs = [[(int(line["epoch"]), line.get("temperature")) for line in cell.log] for cell in row.finished]
            epochs = sorted({epoch for log in logs for epoch, value in log if value is not None})
            at = {epoch: [value for log in logs for e, value in log if e == epoch] for epoch in epochs}
            points = [(float(epoch), mean_of(values)) for epoch, values in at.items()]
            lines.append(Line(row.row.name, tuple((x, y) for x, y in points if y is not None)))
            last = points[-1][1] if points else None
            shown = TableCell("-") if last is None else TableCell(_number(last), last.mean)
            rows.append((TableCell(row.row.name), shown, percent_cell(row.figures["balanced_accuracy"])))
            added.record.setdefault(panel.panel.title, {})[row.row.name] = {
                "epochs": epochs,
                "mean": [None if y is None else y.mean for _, y in points],
                "last": None if last is None else last._asdict(),
            }
        title = f"Temperature over training: {panel.panel.title}"
        caption = "Means over the steps of each epoch and over seeds."
        figure = line_figure(f"temperature-{number}", title, caption, lines, x_title="epoch", as_percent=False)
        added.figures += [figure] if figure is not None else []
        head = ("row", "temperature in the last epoch", "balanced")
        added.tables.append(Table(f"{panel.panel.title}: where the temperature ends", head, tuple(rows)))
    return added


def _number(value: MeanInterval) -> str:
    spread = "" if value.high is None else f" ± {value.high - value.mean:.4f}"
    return f"{value.mean:.4f}{spread}"


def teachers(panels: Sequence[PanelResult], ledger: Ledger) -> Addition:
    """Each teacher's accuracy beside its student's, and the student's gain over it, paired by seed."""
    added = Addition()
    for panel in panels:
        rows = []
        for row in panel.rows:
            taught = {cell.cell.seed: teacher_evaluation(cell, ledger) for cell in row.finished}
            own = {s: None if e is None else figure_value(e, "balanced_accuracy") for s, e in taught.items()}
            gain = paired_by_seed(_balanced(row), own)
            teacher, student = mean_of(list(own.values())), row.figures["balanced_accuracy"]
            rows.append(
                (
                    TableCell(str(row.row.options.get("teacher.backbone", row.row.name))),
                    *(percent_cell(value) for value in (teacher, student)),
                    percent_cell(gain, sign=True),
                )
            )
            figures = {"teacher": teacher, "student": student, "student_minus_teacher": gain}
            added.record.setdefault(panel.panel.title, {})[row.row.name] = as_json(figures)
        title = f"{panel.panel.title}: teacher and student (balanced accuracy, per cent)"
        added.tables.append(Table(title, ("teacher", "teacher's", "student's", "student minus teacher"), tuple(rows)))
    return added


def queue(panels: Sequence[PanelResult], ledger: Ledger) -> Addition:
    """Balanced accuracy by capacity and least length."""
    added = Addition()
    for panel in panels:
        by_place = {
            (row.row.options["queue.capacity"], row.row.options["queue.min_per_class"]): row for row in panel.rows
        }
        capacities, minimums = (sorted({place[k] for place in by_place}) for k in (0, 1))
        rows = tuple(
            (
                TableCell(str(capacity), capacity),
                *(percent_cell(by_place[capacity, least].figures["balanced_accuracy"]) for least in minimums),
            )
            for capacity in capacities
        )
        head = ("capacity", *(f"minimum {least}" for least in minimums))
        added.tables.append(Table(f"{panel.panel.title}: balanced accuracy by capacity and minimum", head, rows))
    return added


def validation(panels: Sequence[PanelResult], ledger: Ledger) -> Addition:
    """Balanced accuracy on the validation images after the last epoch, and its difference to the first row's."""
    added = Addition()
    for panel in panels:
        found = {row.row.name: {cell.cell.seed: _validated(cell.log) for cell in row.finished} for row in panel.rows}
        first = next(iter(found.values()))
        rows = []
        for name, values in found.items():
            mean, gain = mean_of(list(values.values())), None if values is first else paired_by_seed(values, first)
            rows.append((TableCell(name), percent_cell(mean), percent_cell(gain, sign=True)))
            record = as_json({"balanced_accuracy": mean, "difference": gain})
            added.record.setdefault(panel.panel.title, {})[name] = record
        title = f"{panel.panel.title}: balanced accuracy on the validation images (per cent)"
        added.tables.append(Table(title, ("row", "validation", f"minus {next(iter(found))}"), tuple(rows)))
    return added


def _validated(log: Sequence[Mapping[str, Any]]) -> float | None:
    return next(
        (float(line["val_balanced_accuracy"]) for line in reversed(log) if "val_balanced_accuracy" in line), None
    )


ADDITIONS: dict[str, Callable[[Sequence[PanelResult], Ledger], Addition]] = {
    "imbalance": imbalance,
    "temperature": temperature,
    "teachers": teachers,
    "queue": queue,
    "prior": prior,
    "validation": validation,
}
"""By the name that a study has for it."""
