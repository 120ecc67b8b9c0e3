"""Cells: one training run each, with an identity that says when two are the same, and stages that they may share."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longtail.config import TrainConfig, flatten, get_option, replace_options
from longtail.data import DataSplits
from longtail.errors import UserError
from longtail.methods import Stage, get_method, is_read
from longtail.options import make_config
from longtail.studies.published import published_set
from longtail.studies.rows import Row
from longtail.training.defaults import resolve
from longtail.training.run_folder import may_change
from longtail.training.stages import plan_stages

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


def make_cells(
    title: str, row: Row, options: Mapping[str, Any], splits: DataSplits, facts: DataFacts, seeds: Sequence[int]
) -> list[Cell]:
    """Return a cell a seed of a row whose runs have ``options``; what cannot be trained says so in ``refused``."""
    refused = ""
    try:
        config = make_config(options)
        resolved, _ = resolve(quick(config), splits)
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


def data_facts(splits: DataSplits) -> DataFacts:
    """Return what the tables say of the data that a panel trains and tests on."""
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


def quick(config: TrainConfig) -> TrainConfig:
    """Return options that are resolved without timing anything."""
    return replace_options(config, {"precision": "float32"}) if config.precision == "fastest" else config


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-")[:60]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]
