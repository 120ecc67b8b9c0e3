"""Tables for the terminal, of names that may hold anything."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from longtail.errors import printable
from longtail.training.progress import ProgressReporter

_WIDE = 10_000


def print_table(say: ProgressReporter, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column is text and the others figures; into a pipe, each row on one line."""
    table = Table(title=Text(printable(title)), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(head):
        table.add_column(Text(printable(name)), justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = say.console
    if not console.is_terminal:
        console = Console(file=console.file, quiet=console.quiet, highlight=False, width=_WIDE)
    console.print(table, soft_wrap=False)
    console.file.flush()
