"""From a study and what the user asked for to its cells: resolved options, an identity, and what cells may share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longtail.data import DataSplits
from longtail.errors import UserError, unknown_name
from longtail.methods import METHODS, get_method
from longtail.options import make_config, read_recipe
from longtail.studies.catalog import ALL_METHODS, RECIPES, Study
from longtail.studies.cells import Cell, DataFacts, data_facts, make_cells, quick
from longtail.studies.rows import Row
from longtail.training.defaults import resolve
from longtail.training.progress import ProgressReporter
from longtail.training.run_data import read_splits

REFERENCE = "cross_entropy"
"""Row that methods are compared with, where it is among them."""
_OF_METHOD = ("loss.", "queue.", "decoupled.", "teacher.kind")
"""Options of a recipe that are for its own method alone; the others (views, schedule, teacher) are for every row."""
_OF_CELL = ("seed", "out", "method", "folds", "source.fold", "teacher.run", "decoupled.run")


@dataclass(frozen=True)
class Panel:
    """One table of a study.

    Attributes:
        title: unique.
        options: those that make it.
        facts: what its data is.
        rows: in the order of the table; each says which row it is compared with.
    """

    title: str
    options: Mapping[str, Any]
    facts: DataFacts
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Plan:
    """All of a study.

    Attributes:
        study: what it compares.
        panels: its tables.
        cells: every run, seeds innermost.
        seeds: 0, 1, ...
    """

    study: Study
    panels: tuple[Panel, ...]
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]


def make_plan(
    study: Study,
    given: Mapping[str, Any],
    *,
    data: str | None = None,
    methods: Sequence[str] = (),
    recipe: str | None = None,
    against: str | None = None,
    seeds: int = 1,
    say: ProgressReporter | None = None,
) -> Plan:
    """Return the cells of a study.

    Args:
        study: what is compared.
        given: options of training for every cell, by dotted name; they go before those of a recipe.
        data: in place of the study's own.
        methods: in place of the study's own.
        recipe: in place of the one that fits the data.
        against: name of the row that all others are compared with, in place of the study's own.
        seeds: how many.
        say: tells of what is read.

    Raises:
        UserError: something given is unknown or is what the study varies, or no cell at all can be trained.
    """
    say = say or ProgressReporter(quiet=True)
    _check_given(given)
    chosen = _methods(study, methods)
    if recipe is not None and data is None:
        data = read_recipe(recipe).get("data")
    panels, cells = [], []
    for options in _panels(study, given, data):
        shared, own = _preset(study, recipe, options, given)
        base = {**shared, **own.get("gml", {}), **options, **given}
        splits = read_splits(quick(make_config({**base, "method": "gml"})), say)
        facts = data_facts(splits)
        rows = _rows(study, chosen, base, splits, given)
        if against is not None:
            if against not in (known := [row.name for row in rows]):
                raise unknown_name("row", against, known)
            rows = [replace(row, against=against) for row in rows]
        title = _title(options, given)
        panels.append(Panel(title, options, facts, tuple(rows)))
        for row in rows:
            mine = {**shared, **own.get(row.options["method"], {}), **options, **row.options, **given}
            cells += make_cells(title, row, mine, splits, facts, range(seeds))
    refused = [cell.refused for cell in cells]
    if all(refused):
        raise UserError(refused[0])
    # Two rows may come to the same options (a switch that is the default): they are one run.
    names: dict[str, str] = {}
    cells = [replace(cell, folder=names.setdefault(cell.folder.rpartition("-")[2], cell.folder)) for cell in cells]
    return Plan(study, tuple(panels), tuple(cells), tuple(range(seeds)))


def _check_given(given: Mapping[str, Any]) -> None:
    for key in _OF_CELL:
        if key in given:
            hints = {"seed": "--seeds N says how many", "method": "--methods names the methods"}
            raise UserError(
                f"--{key} is not for all cells of a study{': ' + hints[key] if key in hints else ''}; leave it out."
            )


def _methods(study: Study, methods: Sequence[str]) -> tuple[str, ...]:
    if not methods:
        return tuple(METHODS) if study.methods == ALL_METHODS else study.methods
    if not study.methods:
        raise UserError(f"the study {study.name} has its own rows; leave out --methods.")
    for name in methods:
        get_method(name)
    return tuple(dict.fromkeys(methods))


def _panels(study: Study, given: Mapping[str, Any], data: str | None) -> list[dict[str, Any]]:
    """Return the options of each panel: those that agree with what is given, else what is given in their place."""
    own = [dict(panel) for panel in study.panels]
    wanted = {key: given[key] for key in {key for panel in own for key in panel} if key in given}
    if data is not None:
        named = [panel for panel in own if panel["data"] == data]
        # A file may be long-tailed already: it is cut anew only where a study varies the imbalance of one data set.
        one = len({panel["data"] for panel in own}) == 1
        own = named or ([panel | {"data": data} for panel in own] if one else [{"data": data}])
    kept = [panel for panel in own if all(panel.get(key) == value for key, value in wanted.items())]
    found = kept or [panel | wanted for panel in own]
    return [panel for place, panel in enumerate(found) if panel not in found[:place]]


def _preset(
    study: Study, recipe: str | None, panel: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return options that fit the data: those for every row, and those of the recipe's own method, by its name."""
    name = recipe or study.recipe or RECIPES.get(Path(panel["data"]).stem)
    options = {} if name is None else read_recipe(name)
    # A shortened or smaller student has a teacher alike, unless one is asked for.
    for key in ("epochs", "backbone", "pretrained"):
        if key in given:
            options.pop(f"teacher.{key}", None)
    method = options.get("method", "gml")
    # How the data is cut is the study's to say, unless the user chose the recipe.
    for key in ("data", *(["imbalance"] if recipe is None else []), *_OF_CELL):
        options.pop(key, None)
    own = {key: value for key, value in options.items() if key.startswith(_OF_METHOD)}
    return {key: value for key, value in options.items() if key not in own}, {method: own}


def _rows(
    study: Study, methods: Sequence[str], base: Mapping[str, Any], splits: DataSplits, given: Mapping[str, Any]
) -> list[Row]:
    if study.methods:
        reference = REFERENCE if REFERENCE in methods else ""
        return [Row(name, {"method": name}, reference, published=name) for name in methods]
    config, _ = resolve(quick(make_config({**base, "method": "gml"})), splits)
    rows = study.rows(config)
    for key in sorted({key for row in rows for key in row.options} & given.keys()):
        raise UserError(f"--{key} is what the study {study.name} varies or needs as it is; leave it out.")
    return rows


def _title(options: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Return the data's name and what is said of its imbalance, or of whatever else makes the panel."""
    shown = {key: value for key, value in {**given, **options}.items() if key in {*options, "imbalance"}}
    others = (f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items())
    return ", ".join([Path(options["data"]).stem, *(text for text in others if not text.startswith("data "))])
