"""The tables of a study as rows of cells, for Markdown and the page alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longtail.errors import counted
from longtail.metrics import MeanInterval
from longtail.reporting import markdown
from longtail.reporting.compared_runs import FIGURES
from longtail.reporting.in_words import any_negative_bits, duration, interval_note
from longtail.studies.results import INTERVAL, PanelResult, RowResult


@dataclass(frozen=True)
class TableCell:
    """One cell: what is read, and what it is sorted by (None: by its text)."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table with a head, rows whose first cell names them, and notes below it."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    notes: tuple[str, ...] = ()


def percent_cell(value: MeanInterval | None, *, bits: bool = False, sign: bool = False) -> TableCell:
    """Return a mean with half its interval, in per cent or bits; a dash where there is none."""
    if value is None:
        return TableCell("-")
    scale, digits = (1, 2) if bits else (100, 1)
    text = f"{scale * value.mean:{'+' if sign else ''}.{digits}f}"
    text = f"{0:.{digits}f}" if float(text) == 0 else text  # no "-0.0"
    if value.low is not None and value.high is not None:
        text += f" ± {scale * (value.high - value.mean):.{digits}f}"
    return TableCell(text, scale * value.mean)


def panel_tables(result: PanelResult) -> list[Table]:
    """Return the tables of a panel: figures with published ones beside, differences, published ones without a row."""
    title = result.panel.title
    tables = [_figures(result)]
    compared = [row for row in result.rows if row.against]
    if compared:
        tables.append(_differences(title, compared))
    if result.others:
        rows = tuple(
            (
                TableCell(figure.method),
                TableCell("-".join(f"{value:g}" for value in figure.top1), figure.top1[0]),
                TableCell(figure.network or "-"),
                TableCell("-" if figure.epochs is None else str(figure.epochs), figure.epochs),
                TableCell(figure.source),
            )
            for figure in result.others
        )
        head = ("method", "top-1", "network", "epochs", "source")
        tables.append(Table(f"{title}: published, not run here (per cent)", head, rows))
    return tables


def _figures(result: PanelResult) -> Table:
    published = any(row.published for row in result.rows)
    head = ("row", "n", *FIGURES.values(), "time", *(["published top-1"] if published else []))
    rows = []
    for row in result.rows:
        told = "; ".join(figure.text for figure in row.published) or "-"
        first = row.published[0].top1[0] if row.published else None
        cells = [TableCell(row.row.name), TableCell(str(len(row.finished)), len(row.finished))]
        cells += [percent_cell(value, bits=_bits(name)) for name, value in row.figures.items()]
        cells.append(TableCell("-" if row.seconds is None else duration(row.seconds), row.seconds))
        rows.append((*cells, *([TableCell(told, first)] if published else [])))
    notes = [result.panel.facts.text + "."]
    counts = {len(row.finished) for row in result.rows if row.finished}
    if counts - {1}:
        notes.append(f"±: {INTERVAL}; n: seeds that are finished.")
    if 1 in counts:
        notes.append("n = 1: no interval, and a difference of one seed may be luck.")
    notes += [note for note in dict.fromkeys(interval_note(count, "seeds") for count in sorted(counts)) if note]
    if any(_takes(row) for row in result.rows):
        notes.append("time: training of a cell, without the stages that it took from another cell.")
    bits = any_negative_bits(row.figures for row in result.rows)
    notes += [f"bits {bits}."] if bits else []
    notes += _failures(result.rows)
    return Table(f"{result.panel.title}: figures (per cent; bits)", head, tuple(rows), tuple(notes))


def _takes(row: RowResult) -> bool:
    return any(cell.entry is not None and cell.entry.taken for cell in row.cells)


def _failures(rows: Sequence[RowResult]) -> list[str]:
    """Return what failed, each sentence once with its seeds, and how many cells are still to be run."""
    told = []
    for row in rows:
        seeds: dict[str, list[int]] = {}
        for cell in row.cells:
            if cell.error:
                seeds.setdefault(cell.error, []).append(cell.cell.seed)
        for error, failed in seeds.items():
            which = f"seed{'s' if len(failed) > 1 else ''} {', '.join(map(str, failed))}"
            told.append(f"{row.row.name}, {which}: failed: {error}")
    waiting = sum(not cell.done and not cell.error for row in rows for cell in row.cells)
    return [*told, *([f"{counted(waiting, 'cell')} not finished yet."] if waiting else [])]


def _differences(title: str, rows: Sequence[RowResult]) -> Table:
    head = ("row", "compared with", *FIGURES.values())
    body = tuple(
        (
            TableCell(row.row.name),
            TableCell(row.against),
            *(percent_cell(value, bits=_bits(name), sign=True) for name, value in row.differences.items()),
        )
        for row in rows
    )
    notes = ("±: 95 % Student interval of the difference over the seeds that both have; one that holds 0 shows none.",)
    return Table(f"{title}: differences (percentage points; bits)", head, body, notes)


def _bits(name: str) -> bool:
    return name == "mutual_information_bits"


def as_markdown(table: Table) -> str:
    """Return a table with its title and notes as Markdown."""
    rows = [[markdown.escape(cell.text) for cell in row] for row in table.rows]
    head = [markdown.escape(cell) for cell in table.head]
    parts = [f"## {markdown.escape(table.title)}", markdown.table(head, rows), *map(markdown.escape, table.notes)]
    return "\n\n".join(parts)
