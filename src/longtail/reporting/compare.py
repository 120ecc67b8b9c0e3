"""``longtail compare``: finished runs in one table, for the terminal, Markdown, HTML or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longtail.errors import UserError
from longtail.files import as_json, check_output, write_output
from longtail.metrics import MeanInterval
from longtail.reporting import markdown
from longtail.reporting.compare_page import render_comparison
from longtail.reporting.compared_runs import FIGURES, find_runs, group_by_seed
from longtail.reporting.comparison import Comparison, Kind, Row, build_comparison
from longtail.reporting.in_words import any_negative_bits, interval_note
from longtail.reporting.reproduce import as_text
from longtail.reporting.terminal import print_table
from longtail.training.progress import ProgressReporter

_SPEAKS_OF = {
    "seeds": "±: 95 % t interval of the mean over seeds: what other seeds on the same images would change.",
    "images": "[low, high]: 95 % bootstrap over test images: what other test images would change, not another seed.",
}
_PAIRED = {
    "seeds": "±: 95 % t interval of the difference over the seeds that both have.",
    "images": "[low, high]: 95 % bootstrap of the difference, both models on the same test images, resampled within "
    "each class: what other test images would change, not another seed.",
}


def compare(
    runs: Sequence[str],
    *,
    out: str | None = None,
    baseline: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Comparison:
    """Compare finished runs: figures, and paired differences to a baseline.

    Args:
        runs: folders of finished runs, or globs in quotes ("runs/digits-*"). Runs that differ in nothing but their
            seed are put together.
        out: also write the comparison to this file: .md, .html or .json.
        baseline: the run, or the name in the table, that the others are compared with; default: the first.
        overwrite: replace the file at out.
        quiet: print nothing.

    Raises:
        UserError: a folder is no finished run, or the file cannot be written.
    """
    say = ProgressReporter(quiet)
    target = None if out is None else check_output(Path(out), overwrite, (".md", ".html", ".json"))
    found, notes = find_runs([runs] if isinstance(runs, str) else [str(run) for run in runs])
    if len(found) < 2:
        raise UserError(f"{found[0].path} is one run; name two or more to compare.")
    comparison = build_comparison(group_by_seed(found), baseline)
    for note in notes:
        say.say(note)
    for title, head, rows, below in tables(comparison):
        print_table(say, title, head, rows)
        for line in below:
            say.say(line)
    if target is not None:
        write_output(target, _rendered(comparison, target.suffix))
        say.say(f"{target}")
    return comparison


def tables(comparison: Comparison) -> list[tuple[str, list[str], list[list[str]], list[str]]]:
    """Return (title, head, rows, notes below) of each table: figures, differences, options that differ."""
    labels = list(FIGURES.values())
    shown = [[row.name, str(len(row.seeds)), *_cells(row)] for row in comparison.rows]
    kinds = {row.kind for row in comparison.rows}
    below = [*_legend(_SPEAKS_OF, kinds), *_cautions(comparison.rows)]
    bits = any_negative_bits(row.figures for row in comparison.rows)
    below += [f"bits {bits}."] if bits else []
    found = [("Figures (per cent; bits)", ["runs", "seeds", *labels], shown, below)]
    if comparison.differences:
        title = f"Difference to {comparison.baseline} (percentage points; bits)"
        rows = [[row.name, str(len(row.seeds) or "-"), *_cells(row, sign=True)] for row in comparison.differences]
        below = _legend(_PAIRED, {row.kind for row in comparison.differences})
        below += _cautions(comparison.differences)
        below += [f"{row.name}: {row.note}" for row in comparison.differences if row.note]
        found.append((title, ["runs", "seeds", *labels], rows, below))
    if comparison.options:
        names = [group.name for group in comparison.groups]
        rows = [[key, *map(as_text, values)] for key, values in comparison.options.items()]
        found.append(("Options that differ", ["option", *names], rows, []))
    return found


def _legend(texts: dict[str, str], kinds: set[Kind]) -> list[str]:
    return [text for kind, text in texts.items() if kind in kinds]


def _cautions(rows: Sequence[Row]) -> list[str]:
    """Return what intervals over very few seeds are worth, once for all rows that have them."""
    notes = {interval_note(len(row.seeds), "seeds"): None for row in rows if row.kind == "seeds"}
    return [note for note in notes if note]


def _cells(row: Row, sign: bool = False) -> list[str]:
    return [_cell(value, name, row.kind, sign) for name, value in row.figures.items()]


def _cell(value: MeanInterval | None, name: str, kind: Kind, sign: bool) -> str:
    """Return a figure with its interval; per cent but for the bits."""
    if value is None:
        return "-"
    scale, digits = (1, 2) if name == "mutual_information_bits" else (100, 1)

    def word(number: float) -> str:
        text = f"{scale * number:{'+' if sign else ''}.{digits}f}"
        return f"{0:.{digits}f}" if float(text) == 0 else text  # no "-0.0"

    if value.low is None or value.high is None:
        return word(value.mean)
    if kind == "seeds":
        return f"{word(value.mean)} ± {scale * (value.high - value.mean):.{digits}f}"
    return f"{word(value.mean)} [{word(value.low)}, {word(value.high)}]"


def as_markdown(comparison: Comparison) -> str:
    """Return the comparison as Markdown."""
    parts = ["# Comparison of runs"]
    for title, head, rows, below in tables(comparison):
        cells = [[markdown.escape(cell) for cell in row] for row in rows]
        parts += [f"## {markdown.escape(title)}", markdown.table([markdown.escape(cell) for cell in head], cells)]
        parts += [markdown.escape(line) for line in below]
    listed = [(group.name, ", ".join(str(run.path) for run in group.runs)) for group in comparison.groups]
    lines = (f"- {markdown.escape(name)}: {markdown.escape(paths)}" for name, paths in listed)
    return "\n\n".join([*parts, "## Runs", "\n".join(lines)]) + "\n"


def _rendered(comparison: Comparison, ending: str) -> bytes:
    if ending == ".json":
        return as_json(comparison.record())
    if ending == ".md":
        return as_markdown(comparison).encode("utf-8", "replace")
    return render_comparison(comparison, tables(comparison)).encode("utf-8", "replace")
