"""The study of priors at test time as tables and a figure, from the logits that each cell kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longtail.errors import UserError
from longtail.files import load_tensors
from longtail.studies.addition import Addition, mean_of
from longtail.studies.charts import Line, line_figure
from longtail.studies.ledger import Ledger
from longtail.studies.results import CellResult, PanelResult, as_json
from longtail.studies.shifted_tests import KNOWLEDGE, accuracies, make_test_sets
from longtail.studies.tables import Table, TableCell, percent_cell
from longtail.training.calibration import read_temperature
from longtail.training.evaluation import load_predictions

_WAYS = {"exact": "full test set, weighted", "sampled": "sampled from the test set"}
_READING = (
    "Prior unknown: the model's answers as they are; known: shifted for the test set's class frequencies; estimated: "
    "shifted for what EM finds in its images without their labels."
)
_Row = list[dict[str, Any]]
"""What :func:`_under_test_sets` says of the finished cells of a row."""


def prior(panels: Sequence[PanelResult], ledger: Ledger) -> Addition:
    """Accuracy on test sets whose classes come at other rates, with the prior unknown, known and estimated."""
    added = Addition()
    for number, panel in enumerate(panels):
        title = panel.panel.title
        cells = {row.row.name: [_under_test_sets(cell, added.notes) for cell in row.finished] for row in panel.rows}
        found = {name: [cell for cell in each if cell] for name, each in cells.items()}
        found = {name: each for name, each in found.items() if each}
        names = list(next(iter(found.values()))[0]) if found else []
        added.record[title] = {
            name: {test: {way: as_json(_means(each, test, way)) for way in _WAYS} for test in names}
            for name, each in found.items()
        }
        for way, text in _WAYS.items() if found else []:
            rows = tuple(
                (TableCell(f"{name}, {known}"), *(percent_cell(_means(each, test, way)[known]) for test in names))
                for name, each in found.items()
                for known in KNOWLEDGE
            )
            head = f"{title}: accuracy by test set, {text} (per cent)"
            added.tables.append(Table(head, ("row, prior", *names), rows, (_READING,)))
            rows = tuple(
                (TableCell(name), *(percent_cell(_means(each, test, way)["off"]) for test in names))
                for name, each in found.items()
            )
            head = f"{title}: how far the estimated prior is off, {text} (total variation, per cent)"
            added.tables.append(Table(head, ("row", *names), rows))
        figure = line_figure(
            f"prior-{number}",
            f"Accuracy by test set: {title}",
            "From the training set's own tail (left) over balanced to the converse (right); f: forward, b: backward.",
            [_line(name, each, names, known) for name, each in found.items() for known in KNOWLEDGE],
            x_title="test set",
            as_percent=True,
            ticks=[(float(k), name.replace("forward ", "f").replace("backward ", "b")) for k, name in enumerate(names)],
        )
        added.figures += [figure] if figure is not None else []
    added.notes = list(dict.fromkeys(added.notes))
    return added


def _means(cells: _Row, test: str, way: str) -> dict[str, Any]:
    return {key: mean_of([cell[test][way][key] for cell in cells]) for key in (*KNOWLEDGE, "off")}


def _line(name: str, cells: _Row, tests: Sequence[str], known: str) -> Line:
    points = [(float(place), _means(cells, test, "exact")[known]) for place, test in enumerate(tests)]
    return Line(f"{name}, {known}", tuple((x, y) for x, y in points if y is not None))


def _under_test_sets(cell: CellResult, notes: list[str]) -> dict[str, Any]:
    """Return ``{test set: what accuracies() says}`` of a finished cell; {} and a note if its logits were not kept."""
    try:
        logits, labels = load_predictions(cell.folder)
    except (KeyError, UserError):
        notes.append(f"{cell.cell.row}: the logits of its test set were not kept (over 256 MiB).")
        return {}
    model = load_tensors(cell.folder, "model")[0]
    divided = logits.double() / (read_temperature(cell.folder) or 1.0)
    sets = make_test_sets(model["class_counts"])
    return {each.name: accuracies(divided, labels, model["logit_prior"], each) for each in sets}
