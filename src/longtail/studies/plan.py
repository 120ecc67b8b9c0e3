"""From a study and what the user asked for to its cells: resolved options, an identity, and what cells may share."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longtail.config import TrainConfig, flatten, get_option, replace_options
from longtail.data import DataSplits
from longtail.errors import UserError
from longtail.methods import METHODS, Stage, get_method, is_read
from longtail.options import make_config, read_recipe
from longtail.studies.catalog import RECIPES, Study
from longtail.studies.published import published_set
from longtail.studies.rows import Row
from longtail.training.defaults import resolve
from longtail.training.progress import ProgressReporter
from longtail.training.run_data import read_splits
from longtail.training.run_folder import may_change
from longtail.training.stages import plan_stages

REFERENCE = "cross_entropy"
"""Row that methods are compared with, where it is among them."""
_OF_METHOD = ("loss.", "queue.", "decoupled.", "teacher.kind")
"""Options of a recipe that are for its own method alone; the others (views, schedule, teacher) are for every row."""
_OF_CELL = ("seed", "out", "method", "folds", "source.fold", "teacher.run", "decoupled.run")
_READY = ("teacher.run", "decoupled.run")
"""Options that put a finished run in place of a stage."""


@dataclass(frozen=True)
class DataFacts:
    """What the tables say of a panel's data.

    Attributes:
        name: as the user calls it.
        classes, train_images, test_images, largest, smallest: numbers; the last two of a class's training images.
        published: name and imbalance of the published set that it is, None if it is none.
        digest: of training, validation and test images.
        notes: what reading said.
    """

    name: str
    classes: int
    train_images: int
    test_images: int
    largest: int
    smallest: int
    published: tuple[str, int | None] | None
    digest: str
    notes: tuple[str, ...]

    @property
    def text(self) -> str:
        """Sizes in words."""
        return (
            f"{self.name}: {self.classes} classes of {self.largest} down to {self.smallest} training images, "
            f"{self.train_images} in all, {self.test_images} test images"
        )


@dataclass(frozen=True)
class Shared:
    """A stage that other cells may take ready-made.

    Attributes:
        name: of the stage, and of its folder in the run's.
        key: of all that its result follows from; the same key, the same result.
        option: by which a run is given it.
        work: passes over the training images that it costs.
    """

    name: str
    key: str
    option: str
    work: float


@dataclass(frozen=True)
class Cell:
    """One training run of a study.

    Attributes:
        panel: title of its table.
        row: name of its row.
        seed: of the run.
        options: what ``longtail.train`` is given, by dotted name, without the folder.
        config: the same, resolved on the data.
        folder: name of the run's folder; cells of the same options have the same, and are one run.
        shares: stages that may come from another cell.
        work: what it costs, in passes over training images.
        refused: why it cannot be trained, where that is known beforehand; "" otherwise.
    """

    panel: str
    row: str
    seed: int
    options: Mapping[str, Any]
    config: TrainConfig
    folder: str
    shares: tuple[Shared, ...] = ()
    work: float = 1.0
    refused: str = ""


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
        fixed = {**shared, **options, **given}
        splits = read_splits(_quick(make_config({**fixed, "method": "gml"})), say)
        facts = _facts(splits)
        rows = _rows(study, chosen, fixed | own, splits, given)
        title = _title(options, given)
        panels.append(Panel(title, options, facts, tuple(rows)))
        for row in rows:
            mine = {**shared, **(own if row.options["method"] == "gml" else {}), **options, **row.options, **given}
            cells += _cells(title, row, mine, splits, facts, range(seeds))
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
        return tuple(name for name in study.methods if name in METHODS)
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
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return options that fit the data: those for every row, and those for GML alone."""
    name = recipe or study.recipe or RECIPES.get(Path(panel["data"]).stem)
    options = {} if name is None else read_recipe(name)
    # A shortened or smaller student has a teacher alike, unless one is asked for.
    for key in ("epochs", "backbone", "pretrained"):
        if key in given:
            options.pop(f"teacher.{key}", None)
    # How the data is cut is the study's to say, unless the user chose the recipe.
    for key in ("data", *(["imbalance"] if recipe is None else []), *_OF_CELL):
        options.pop(key, None)
    own = {key: value for key, value in options.items() if key.startswith(_OF_METHOD)}
    return {key: value for key, value in options.items() if key not in own}, own


def _rows(
    study: Study, methods: Sequence[str], base: Mapping[str, Any], splits: DataSplits, given: Mapping[str, Any]
) -> list[Row]:
    if study.methods:
        reference = REFERENCE if REFERENCE in methods else ""
        return [Row(name, {"method": name}, reference, published=name) for name in methods]
    config, _ = resolve(_quick(make_config({**base, "method": "gml"})), splits)
    rows = study.rows(config)
    for key in sorted({key for row in rows for key in row.options} & given.keys()):
        raise UserError(f"--{key} is what the study {study.name} varies or needs as it is; leave it out.")
    return rows


def _quick(config: TrainConfig) -> TrainConfig:
    """Return options that are resolved without timing anything."""
    return replace_options(config, {"precision": "float32"}) if config.precision == "fastest" else config


def _cells(
    title: str, row: Row, options: Mapping[str, Any], splits: DataSplits, facts: DataFacts, seeds: Sequence[int]
) -> list[Cell]:
    refused = ""
    try:
        config = make_config(options)
        resolved, _ = resolve(_quick(config), splits)
        resolved = replace_options(resolved, {"precision": config.precision})
        get_method(config.method).check(resolved, splits.train)
    except UserError as error:
        refused, resolved = str(error), make_config({"data": options["data"], "method": options["method"]})
    cells = []
    for seed in seeds:
        config = replace_options(resolved, {"seed": seed})
        identity = cell_identity(config, facts.digest) if not refused else _digest([title, row.name, seed])
        cells.append(
            Cell(
                panel=title,
                row=row.name,
                seed=seed,
                options={**options, "seed": seed},
                config=config,
                folder=f"{_slug(title)}-{_slug(row.name)}-seed{seed}-{identity}",
                shares=() if refused else shared_stages(config, facts),
                work=1.0 if refused else _work(plan_stages(config), facts.train_images),
                refused=refused,
            )
        )
    return cells


def cell_identity(config: TrainConfig, data: str) -> str:
    """Return 10 hexadecimal digits of all that a run's figures follow from: resolved options that it reads, and images.

    Where it runs and where it writes is no part of it; nor is a ready run, which changes the time alone.
    """
    read = {
        key: value
        for key, value in flatten(config).items()
        if not may_change(key) and key not in ("data", "root", *_READY) and is_read(config.method, key)
    }
    return _digest([read, data])


def shared_stages(config: TrainConfig, facts: DataFacts) -> tuple[Shared, ...]:
    """Return the stages of a run that another run's finished stage can stand for, with the very same result.

    A stage is random by the run's seed and its own name alone, and later stages take nothing but its classifier, read
    back from its file: so the teacher of one cell serves every cell of the same seed, data, teacher and schedule.
    """
    stages, found = plan_stages(config), []
    for option in _READY:
        if get_option(config, option) is not None:
            continue
        others = plan_stages(replace_options(config, {option: "READY"}))
        names = [stage.name for stage in others]
        left = [stage for stage in stages if stage.name not in names]
        ready = [stage.takes for stage in others if stage.ready == "READY"]
        if len(left) == 1 and left[0].takes is None and ready == [left[0].name]:
            stage = left[0]
            key = _digest([_stage_facts(config, stage), facts.digest])
            found.append(Shared(stage.name, key, option, _work([stage], facts.train_images)))
    return tuple(found)


def _stage_facts(config: TrainConfig, stage: Stage) -> dict[str, Any]:
    """Return all that the result of a first stage follows from."""
    facts = {
        key: value
        for key, value in flatten(config).items()
        if not may_change(key)
        and key not in ("data", "root", "method", "backbone", "epochs", "sampler")
        and is_read(stage.method, key)
    }
    facts |= {"stage": stage.name, "method": stage.method, "epochs": stage.epochs, "backbone": stage.backbone}
    # Weights that are chosen later may follow from those of the other network, where that is of the same kind.
    facts |= {"pretrained": [stage.weights, config.pretrained, config.teacher.pretrained]}
    return facts | {"same": stage.backbone == config.backbone, "sampler": stage.sampler or config.sampler}


def _work(stages: Sequence[Stage], images: int) -> float:
    return images * sum(stage.epochs * get_method(stage.method).passes for stage in stages)


def _facts(splits: DataSplits) -> DataFacts:
    train, counts = splits.train, splits.train.class_counts
    parts = [train, splits.test, *([] if splits.validation is None else [splits.validation])]
    return DataFacts(
        name=splits.name,
        classes=train.num_classes,
        train_images=len(train),
        test_images=len(splits.test),
        largest=int(counts.max()),
        smallest=int(counts.min()),
        published=published_set(train.num_classes, len(train), len(splits.test)),
        digest=_digest([part.fingerprint() for part in parts]),
        notes=tuple(splits.notes),
    )


def _title(options: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Return the data's name and what is said of its imbalance, or of whatever else makes the panel."""
    shown = {key: value for key, value in {**given, **options}.items() if key in {*options, "imbalance"}}
    others = (f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items())
    return ", ".join([Path(options["data"]).stem, *(text for text in others if not text.startswith("data "))])


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-")[:60]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]
