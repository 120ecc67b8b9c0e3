"""What processes that train together must agree on before they begin: options, data, versions."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

import longtail
from longtail.config import TrainConfig, resolved
from longtail.data.keyed import derive_seed
from longtail.data.shares import check_divides
from longtail.errors import UserError
from longtail.files import read_json
from longtail.options import make_config, parse_values
from longtail.ranks import Ranks

_MOST_COUNTS_TOLD = 20


class Samples(Protocol):
    """A training, validation or test set: of images, or of images with masks."""

    @property
    def class_counts(self) -> Tensor:
        """Images, or pixels, of each class."""

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """What tells it from another."""


class Splits(Protocol):
    """What a run is on."""

    @property
    def train(self) -> Samples:
        """To train on."""

    @property
    def validation(self) -> Samples | None:
        """To choose by."""

    @property
    def test(self) -> Samples:
        """To test on."""


def check_processes(ranks: Ranks, given: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` unless all processes were given the same options and run the same versions."""
    if ranks.alone:
        return
    versions = {
        "version of longtail": longtail.__version__,
        "version of torch": torch.__version__,
        "version of Python": platform.python_version(),
    }
    ranks.check_same(versions, "install the same versions on every machine")
    ranks.check_same({f"--{key}": str(value) for key, value in given.items()}, "start all with the same command")


def agreed_config(config: TrainConfig, data: Splits, ranks: Ranks) -> TrainConfig:
    """Return the first process's options, which were chosen by its memory and its timings; one process keeps its own.

    Raises:
        UserError: the processes see different data, or the batch cannot be dealt to them.
    """
    if not ranks.alone:
        sets = {"training": data.train, "validation": data.validation, "test": data.test}
        counts = data.train.class_counts.tolist()
        # The first that differs is told: what says most comes first.
        facts: dict[str, Any] = {"number of classes": len(counts)}
        for name, images in sets.items():
            facts[f"number of {name} images"] = None if images is None else len(images)
        many = len(counts) > _MOST_COUNTS_TOLD
        facts["count of each class"] = hashlib.sha256(str(counts).encode()).hexdigest()[:12] if many else counts
        for name, images in sets.items():
            facts[f"{name} set"] = None if images is None else images.fingerprint()[:12]
        ranks.check_same(facts, "give every machine the same data")
        config = make_config(parse_values(ranks.share(asdict(config)), "process 0"))
        ranks.seed = derive_seed(config.seed, "rank", ranks.rank)
    check_divides(resolved(config.batch_size), ranks.world, config.optimiser.accumulate)
    return config


def how_to_begin(out: Path, resume: bool, overwrite: bool, ranks: Ranks) -> tuple[bool, bool]:
    """Return ``resume`` and ``overwrite`` as they are meant: a job that its launcher starts anew goes on.

    So it does only if the run in ``out`` is its own, which :meth:`RunFolder.note_job` noted there. Another command may
    have the same name for its job; after a restart the first process may have another launcher. A run in which nothing
    is noted nor trained was left by a process that died as it began.
    """
    if not ranks.job:
        return resume, overwrite
    path = out / "environment.json"
    try:
        record = read_json(path) if path.exists() else {}
    except UserError:
        record = {}
    known = record.get("ranks") if isinstance(record, dict) else None
    job = str(known.get("job")) if isinstance(known, dict) else ""
    name = ranks.job.split()[0]
    again = ranks.restarts > 0
    own = job == ranks.job or (again and name != "none" and job.split()[:1] == [name])
    own = own or (again and not overwrite and not path.exists() and not (out / "resume").exists())
    return (True, False) if own else (resume, overwrite)
