"""What runs side by side say: figures with intervals, and paired differences where the test images are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from longtail.errors import UserError, counted
from longtail.metrics import GROUPS, MeanInterval, mean_interval
from longtail.metrics.paired import paired_by_image, paired_by_seed
from longtail.reporting.compared_runs import (
    FIGURES,
    SeedGroup,
    groups_mean_the_same,
    options_that_differ,
    why_not_the_same_test,
)

Kind = Literal["seeds", "images", "none"]
"""What an interval speaks of: other seeds on the same images, other test images for the same models, or nothing."""


@dataclass(frozen=True)
class Row:
    """Figures of one group of runs, or their difference to the baseline's.

    Attributes:
        name: the group's.
        seeds: seeds that the figures are over.
        kind: what the intervals speak of.
        figures: one for each of ``FIGURES``; None where it is not defined or cannot be told.
        note: why there is no difference, or no interval; "" if there is nothing to say.
    """

    name: str
    seeds: tuple[int, ...]
    kind: Kind
    figures: dict[str, MeanInterval | None]
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """Groups of runs with their figures and differences.

    Attributes:
        groups: runs that differ in nothing but their seed.
        rows: the figures, one row a group.
        baseline: name of the group that the others are compared with.
        differences: other - baseline, one row for each other group.
        options: the options in which groups differ: one value a group, ``"not read"`` where its method does not.
    """

    groups: tuple[SeedGroup, ...]
    rows: tuple[Row, ...]
    baseline: str
    differences: tuple[Row, ...]
    options: dict[str, list[Any]]

    def record(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""

        def as_json(row: Row) -> dict[str, Any]:
            figures = {name: None if value is None else value._asdict() for name, value in row.figures.items()}
            return {"name": row.name, "seeds": row.seeds, "interval": row.kind, "note": row.note, "figures": figures}

        runs = {group.name: [str(run.path) for run in group.runs] for group in self.groups}
        return {
            "groups": [{**as_json(row), "runs": runs[row.name]} for row in self.rows],
            "baseline": self.baseline,
            "differences": [as_json(row) for row in self.differences],
            "options": self.options,
        }


def build_comparison(groups: Sequence[SeedGroup], baseline: str | None = None) -> Comparison:
    """Compare ``groups`` with the one that ``baseline`` names (or whose run it is the folder of); default: the first.

    Raises:
        UserError: there is no such group.
    """
    base = _find(groups, baseline) if baseline else groups[0]
    return Comparison(
        groups=tuple(groups),
        rows=tuple(_figures(group) for group in groups),
        baseline=base.name,
        differences=tuple(_difference(group, base) for group in groups if group is not base),
        options=options_that_differ(groups),
    )


def _find(groups: Sequence[SeedGroup], baseline: str) -> SeedGroup:
    for group in groups:
        if baseline == group.name or any(Path(baseline).resolve() == run.path.resolve() for run in group.runs):
            return group
    raise UserError(f"--baseline {baseline} is none of {', '.join(group.name for group in groups)}.")


def _figures(group: SeedGroup) -> Row:
    """Return means over seeds, or a single run's own figures with its interval over test images."""
    figures: dict[str, MeanInterval | None] = {}
    for name in FIGURES:
        values = [value for value in group.by_seed(name).values() if value is not None]
        found = mean_interval(values) if values else None
        bounds = group.runs[0].evaluation["intervals"].get(name)
        if found is not None and len(group.runs) == 1 and bounds is not None:
            found = MeanInterval(found.mean, *bounds)
        figures[name] = found
    seeds = tuple(run.seed for run in group.runs)
    return Row(group.name, seeds, "images" if len(seeds) == 1 else "seeds", figures)


def _difference(group: SeedGroup, base: SeedGroup) -> Row:
    reasons = (why_not_the_same_test(base.runs[0], run) for run in (*group.runs, *base.runs[1:]))
    reason = next((reason for reason in reasons if reason is not None), None)
    nothing: dict[str, MeanInterval | None] = dict.fromkeys(FIGURES)
    if reason is not None:
        return Row(group.name, (), "none", nothing, f"no difference to {base.name}: {reason}.")
    shared = tuple(run.seed for run in group.runs if run.seed in {other.seed for other in base.runs})
    single = len(group.runs) == len(base.runs) == 1
    if not shared and not single:
        return Row(group.name, (), "none", nothing, f"no difference to {base.name}: no seed that both have.")
    if len(shared) > 1:
        row = Row(
            group.name,
            shared,
            "seeds",
            {name: paired_by_seed(group.by_seed(name), base.by_seed(name)) for name in FIGURES},
        )
    else:
        row = _one_against_one(group, base, shared)
    runs = [*group.runs, *base.runs]
    if all(groups_mean_the_same(base.runs[0], run) for run in runs):
        return row
    note = f"{row.note} many, medium and few hold other classes than in {base.name}: no difference of theirs.".strip()
    return Row(row.name, row.seeds, row.kind, row.figures | dict.fromkeys(GROUPS), note)


def _one_against_one(group: SeedGroup, base: SeedGroup, shared: tuple[int, ...]) -> Row:
    """Return the difference of two runs: of the seed that both have, or of the only runs that there are."""
    seed = shared[0] if shared else None
    one, other = (next(run for run in g.runs if seed is None or run.seed == seed) for g in (group, base))
    figures: dict[str, MeanInterval | None] = {}
    for name in FIGURES:
        a, b = one.figure(name), other.figure(name)
        figures[name] = None if a is None or b is None else MeanInterval(a - b, None, None)
    which = "" if seed is None or len(group.runs) == len(base.runs) == 1 else f"only seed {seed} is in both; "
    lacking = [f"{run.path}/predictions.safetensors" for run in (one, other) if run.predictions is None]
    if one.predictions is None or other.predictions is None:
        note = f"{which}no interval without {' and '.join(lacking)} (longtail evaluate writes it)."
        return Row(group.name, shared, "none", figures, note)
    right, labels, _ = one.predictions
    paired = paired_by_image(right, other.predictions[0], labels, one.class_counts, one.edges)
    images = counted(len(labels), "test image")
    return Row(group.name, shared, "images", figures | paired, f"{which}paired over {images}." if which else "")
