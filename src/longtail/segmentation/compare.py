"""``longtail compare`` for runs on masks: figures side by side, and paired differences on the same test images."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longtail.config import flatten
from longtail.errors import UserError
from longtail.files import as_json, check_output, read_json, write_output
from longtail.metrics import GROUPS
from longtail.options import make_config, parse_values
from longtail.reporting import markdown
from longtail.reporting.reproduce import as_text
from longtail.reporting.terminal import print_table
from longtail.segmentation.evaluation import read_per_image
from longtail.segmentation.methods import dense_is_read
from longtail.segmentation.metrics import PairedDifference, paired_miou_difference
from longtail.training.progress import ProgressReporter
from longtail.training.run_folder import may_change, read_config

_FIGURES = ("mean IoU", *GROUPS, "rarest four", "pixel accuracy", "class recall", "boundary F", "ECE")
_BELOW = "[low, high]: 95 % bootstrap over test images: what other test images would change, not another seed."


@dataclass(frozen=True)
class DenseRow:
    """A run in the comparison.

    Attributes:
        run: its folder, as named.
        figures: by the names of the table's head, fractions in 0..1; None where one is not defined.
        interval: of mean IoU.
        rarest: the classes of its ``rarest four``.
        difference: to the baseline, by ``mean IoU`` and ``rarest four``; None for the baseline itself.
        note: why there is no difference, or "".
    """

    run: str
    figures: dict[str, float | None]
    interval: tuple[float, float] | None
    rarest: tuple[str, ...]
    difference: dict[str, PairedDifference] | None
    note: str = ""


@dataclass(frozen=True)
class DenseComparison:
    """Runs side by side.

    Attributes:
        baseline: the run that others are compared with.
        rows: one a run.
        options: ``{dotted name: value in each run}`` of the options that differ.
    """

    baseline: str
    rows: tuple[DenseRow, ...]
    options: dict[str, list[Any]]


def compare_dense(
    runs: Sequence[str],
    *,
    out: str | None = None,
    baseline: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> DenseComparison:
    """Compare finished runs on masks: figures, and paired differences to a baseline.

    Args:
        runs: folders of finished runs, or globs in quotes ("runs/camvid-*").
        out: also write the comparison to this file: .md or .json.
        baseline: the run that the others are compared with; default: the first.
        overwrite: replace the file at out.
        quiet: print nothing.

    Raises:
        UserError: a folder is no finished run on masks, or the file cannot be written.
    """
    say = ProgressReporter(quiet)
    target = None if out is None else check_output(Path(out), overwrite, (".md", ".json"))
    paths = _find([runs] if isinstance(runs, str) else [str(run) for run in runs])
    if len(paths) < 2:
        raise UserError(f"{paths[0]} is one run; name two or more to compare.")
    first = paths[0] if baseline is None else Path(baseline)
    if first.resolve() not in [path.resolve() for path in paths]:
        raise UserError(f"--baseline {baseline} is none of the runs: {', '.join(map(str, paths))}.")
    figures = {path: read_json(path / "evaluation.json") for path in [first, *paths]}
    rows = tuple(_row(path, first, figures) for path in paths)
    comparison = DenseComparison(str(first), rows, _options_that_differ(paths))
    for title, head, lines, below in _tables(comparison):
        print_table(say, title, head, lines)
        for line in below:
            say.say(line)
    if target is not None:
        text = _as_markdown(comparison).encode("utf-8", "replace")
        write_output(target, as_json(asdict(comparison)) if target.suffix == ".json" else text)
        say.say(f"{target}")
    return comparison


def _find(words: Sequence[str]) -> list[Path]:
    found: dict[Path, Path] = {}
    for word in words:
        named = Path(word).exists() or not glob.has_magic(word)
        paths = [Path(word)] if named else [Path(path) for path in sorted(glob.glob(word, recursive=True))]
        paths = paths if named else [path for path in paths if (path / "evaluation.json").exists()]
        if not paths:
            raise UserError(f"{word} matches no finished run.")
        for path in paths:
            if read_config(path).get("task") != "segmentation":
                raise UserError(
                    f"{path} is a run of classification, which cannot be compared with one of segmentation."
                )
            if not (path / "evaluation.json").exists():
                raise UserError(f"{path} is not finished; go on with: longtail train --out {path} --resume.")
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _row(path: Path, first: Path, figures: dict[Path, dict[str, Any]]) -> DenseRow:
    own, base = figures[path], figures[first]
    shown = {
        "mean IoU": own["miou"],
        **{group: own["groups_by_pixels"][group]["iou"] for group in GROUPS},
        "rarest four": own["rarest_four"]["miou"],
        "pixel accuracy": own["pixel_accuracy"],
        "class recall": own["balanced_accuracy"],
        "boundary F": own["boundary_f"],
        "ECE": own["ece"],
    }
    interval = own["miou_interval"]
    span = None if interval["low"] is None else (float(interval["low"]), float(interval["high"]))
    rarest = tuple(own["rarest_four"]["classes"])
    if path.resolve() == first.resolve():
        return DenseRow(str(path), shown, span, rarest, None)
    if own["class_names"] != base["class_names"]:
        return DenseRow(str(path), shown, span, rarest, None, "other classes")
    try:
        mine, theirs = read_per_image(path), read_per_image(first)
        chosen = [own["class_names"].index(name) for name in base["rarest_four"]["classes"]]
        difference = {
            "mean IoU": paired_miou_difference(mine, theirs),
            "rarest four": paired_miou_difference(mine, theirs, chosen),
        }
    except ValueError:
        return DenseRow(str(path), shown, span, rarest, None, "other test images")
    return DenseRow(str(path), shown, span, rarest, difference)


def _options_that_differ(paths: Sequence[Path]) -> dict[str, list[Any]]:
    every = []
    for path in paths:
        config = make_config(parse_values(read_config(path), str(path / "config.yaml")))
        every.append({key: value for key, value in flatten(config).items() if dense_is_read(config.method, key)})
    keys = dict.fromkeys(key for options in every for key in options if not may_change(key))
    found = {key: [options.get(key, "not read") for options in every] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def _tables(comparison: DenseComparison) -> list[tuple[str, list[str], list[list[str]], list[str]]]:
    """Return (title, head, rows, notes below) of each table."""
    lines = []
    for row in comparison.rows:
        cells = [_percent(row.figures[name]) for name in _FIGURES]
        if row.interval is not None:
            cells[0] += f" [{100 * row.interval[0]:.1f}, {100 * row.interval[1]:.1f}]"
        lines.append([row.run, *cells])
    sets = {row.rarest for row in comparison.rows}
    rarest = [f"rarest four: {', '.join(names)}." for names in sorted(sets)]
    tables = [("Figures (per cent; groups by training pixels)", ["run", *_FIGURES], lines, [_BELOW, *rarest])]
    differing = [
        [row.run, *(_difference(row.difference[name]) for name in ("mean IoU", "rarest four"))]
        for row in comparison.rows
        if row.difference is not None
    ]
    notes = [f"{row.run}: {row.note}, so no paired difference." for row in comparison.rows if row.note]
    title = f"Difference to {comparison.baseline} (percentage points)"
    tables.append((title, ["run", "mean IoU", "rarest four"], differing, [_BELOW, *notes]))
    if comparison.options:
        head = ["option", *(row.run for row in comparison.rows)]
        rows = [[key, *map(as_text, values)] for key, values in comparison.options.items()]
        tables.append(("Options that differ", head, rows, []))
    return tables


def _difference(value: PairedDifference) -> str:
    span = "" if value["low"] is None else f" [{100 * value['low']:+.1f}, {100 * (value['high'] or 0):+.1f}]"
    return f"{100 * value['difference']:+.1f}{span}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _as_markdown(comparison: DenseComparison) -> str:
    parts = ["# Comparison of runs"]
    for title, head, rows, below in _tables(comparison):
        cells = [[markdown.escape(cell) for cell in row] for row in rows]
        parts += [f"## {markdown.escape(title)}", markdown.table([markdown.escape(cell) for cell in head], cells)]
        parts += [markdown.escape(line) for line in below]
    return "\n\n".join(parts) + "\n"
