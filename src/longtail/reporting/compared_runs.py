"""Finished runs side by side: which are the same but for their seed, and which were tested on the same images."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtail.config import TrainConfig, flatten
from longtail.errors import UserError, counted
from longtail.files import load_tensors
from longtail.methods import is_read
from longtail.metrics import predict_with_confidence
from longtail.metrics.folds import figure_value
from longtail.options import make_config, parse_values
from longtail.reporting.run_record import ClassRow, read_classes, read_evaluation
from longtail.training.run_folder import may_change, read_config

FIGURES = {
    "top1": "top-1",
    "balanced_accuracy": "balanced",
    "many": "many",
    "medium": "medium",
    "few": "few",
    "worst_class": "worst class",
    "ece": "ECE",
    "mutual_information_bits": "bits",
}
"""Figures that are compared, with their short names; all but the bits are fractions in 0..1."""
NOT_READ = "not read"
"""Stands for the value of an option that a run's method does not read."""
_CHOOSE_TEST = re.compile(r"(data|root|folds|on_bad_image|source\.(?!mean|std|profile).*)$")


@dataclass(frozen=True)
class ComparedRun:
    """A finished run.

    Attributes:
        path: its folder, as the user named it.
        options: those of its ``config.yaml`` by dotted name, without the seed, what changes no figure and what its
            method does not read.
        seed: its seed.
        evaluation: its ``evaluation.json``.
        classes: its ``per_class.csv``.
    """

    path: Path
    options: dict[str, Any]
    seed: int
    evaluation: dict[str, Any]
    classes: list[ClassRow]

    def figure(self, name: str) -> float | None:
        """Return one of ``FIGURES``; None where it is not defined or not recorded."""
        return figure_value({"mutual_information_bits": None, **self.evaluation}, name)

    @cached_property
    def predictions(self) -> tuple[Tensor, Tensor, list[str] | None] | None:
        """Whether each test image was right ``[N]``, its label ``[N]``, and its file; None if they were not kept."""
        if not (self.path / "predictions.json").exists():
            return None
        tensors, meta = load_tensors(self.path, "predictions")
        labels, predicted = tensors["labels"], tensors.get("predicted")
        if predicted is None:  # older runs kept the logits alone
            predicted = predict_with_confidence(tensors["logits"])[0]
        return predicted == labels, labels, meta.get("files")

    @property
    def class_counts(self) -> Tensor:
        """Training images of each class ``[C]``."""
        return torch.tensor([row.train_images for row in self.classes])

    @property
    def edges(self) -> tuple[int, int]:
        """Group edges: many above, few below."""
        many, few = self.evaluation["group_edges"]
        return int(many), int(few)


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ in nothing but their seed.

    Attributes:
        name: what their folders' names share.
        runs: one a seed, in the order of seeds.
    """

    name: str
    runs: tuple[ComparedRun, ...]

    def by_seed(self, figure: str) -> dict[int, float | None]:
        """Return a figure of each seed."""
        return {run.seed: run.figure(figure) for run in self.runs}


def find_runs(words: Sequence[str]) -> tuple[list[ComparedRun], list[str]]:
    """Read the runs that folders and globs name, each once.

    Returns:
        The runs, and a note for each folder that a glob found and that is left out: it is no finished run, or has
        options and seed of an earlier one.

    Raises:
        UserError: a folder that was named is no finished run, a glob finds none, or a file is cut off.
    """
    runs: dict[Path, ComparedRun] = {}
    notes = []
    for word in words:
        named = Path(word).exists() or not glob.has_magic(word)
        found = (
            [Path(word)] if named else [Path(p) for p in sorted(glob.glob(word, recursive=True)) if Path(p).is_dir()]
        )
        left_out = [] if named else [path for path in found if not (path / "evaluation.json").exists()]
        if len(left_out) == len(found):
            raise UserError(f"{word} matches no finished run.")
        notes += [f"left out: {path} is no finished run." for path in left_out]
        for path in found:
            if path in left_out or path.resolve() in runs:
                continue
            run = read_run(path)
            twin = None if named else next((other for other in runs.values() if _twins(run, other)), None)
            if twin is None:
                runs[path.resolve()] = run
            else:
                notes.append(f"left out: {path} has the same options and the same seed as {twin.path}.")
    return list(runs.values()), notes


def _twins(one: ComparedRun, other: ComparedRun) -> bool:
    return one.options == other.options and one.seed == other.seed


def read_run(path: Path) -> ComparedRun:
    """Read a finished run.

    Raises:
        UserError: it is no run, is not finished, or a file is cut off.
    """
    nested = read_config(path)
    if not (path / "evaluation.json").exists():
        data = nested.get("data") or "DATA"
        raise UserError(f"{path} is not finished; go on with: longtail train {data} --out {path} --resume.")
    evaluation = read_evaluation(path / "evaluation.json")
    config = make_config(parse_values(nested, str(path / "config.yaml")))
    options = {
        key: value
        for key, value in flatten(config).items()
        if key != "seed" and not may_change(key) and is_read(config.method, key)
    }
    classes = read_classes(path / "per_class.csv", evaluation["classes"])
    return ComparedRun(path, options, config.seed, evaluation, classes)


def group_by_seed(runs: Sequence[ComparedRun]) -> list[SeedGroup]:
    """Put runs together that differ in their seed alone, in the order in which the first of each was named.

    Raises:
        UserError: two runs have the same options and seed.
    """
    alike: list[list[ComparedRun]] = []
    for run in runs:
        home = next((group for group in alike if group[0].options == run.options), None)
        if home is None:
            alike.append([run])
            continue
        twin = next((other for other in home if _twins(run, other)), None)
        if twin is not None:
            raise UserError(
                f"{twin.path} and {run.path} have the same options and the same seed; leave one of them out."
            )
        home.append(run)
    names = [_name(group) for group in alike]
    return [
        SeedGroup(
            name if names.count(name) == 1 else str(group[0].path),
            tuple(sorted(group, key=lambda run: run.seed)),
        )
        for name, group in zip(names, alike, strict=True)
    ]


def _name(runs: Sequence[ComparedRun]) -> str:
    """Return the name of a run's folder, without its seed where there are several."""
    first = runs[0].path.resolve().name
    if len(runs) == 1:
        return first
    seed = runs[0].seed
    # A digit inside a word is no seed: cifar10, e20.
    found = list(re.finditer(rf"[-_.]*seed[-_.]*{seed}(?=$|[-_.])", first))
    found = found or list(re.finditer(rf"(?:^|[-_.]+){seed}(?=$|[-_.])", first))
    if not found:
        return first
    return (first[: found[-1].start()] + first[found[-1].end() :]).lstrip("-_.") or first


def options_that_differ(groups: Sequence[SeedGroup]) -> dict[str, list[Any]]:
    """Return ``{dotted name: value in each group}`` of the options in which groups differ whose methods read them.

    A group whose method does not read an option has :data:`NOT_READ` there.
    """
    every = [group.runs[0].options for group in groups]
    differing = {}
    for key in flatten(TrainConfig()):
        read = [options[key] for options in every if key in options]
        if any(value != read[0] for value in read):
            differing[key] = [options.get(key, NOT_READ) for options in every]
    return differing


def why_not_the_same_test(one: ComparedRun, other: ComparedRun) -> str | None:
    """Return why the two were not, or may not have been, tested on the same images of the same classes; else None."""
    if [row.name for row in one.classes] != [row.name for row in other.classes]:
        return f"other classes ({len(one.classes)} and {len(other.classes)})"
    if [row.test_images for row in one.classes] != [row.test_images for row in other.classes]:
        sizes = (counted(run.evaluation["test_images"], "image") for run in (one, other))
        return f"other test images ({' and '.join(sizes)}, or as many in other classes)"
    if one.predictions is not None and other.predictions is not None:
        if not torch.equal(one.predictions[1], other.predictions[1]):
            return "other test images (their labels differ)"
        files = (one.predictions[2], other.predictions[2])
        if None not in files:
            return None if files[0] == files[1] else "other test images (their files differ)"
    chosen = [key for key in one.options if _CHOOSE_TEST.match(key)]
    differing = next((key for key in chosen if one.options[key] != other.options[key]), None)
    return f"another choice of test images ({differing} differs)" if differing else None


def groups_mean_the_same(one: ComparedRun, other: ComparedRun) -> bool:
    """Return whether many, medium and few hold the same classes in both."""
    return one.edges == other.edges and [row.group for row in one.classes] == [row.group for row in other.classes]
