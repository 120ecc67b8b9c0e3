"""Markdown out of names that may hold anything: text that stays text, and tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

from longtail.errors import printable

_MEANS_SOMETHING = re.compile(r"([\\`*_\[\]#|~$@])")


def escape(text: str) -> str:
    """Return ``text`` so that Markdown shows it as it is, also in a cell of a table; no HTML comes through."""
    shown = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MEANS_SOMETHING.sub(r"\\\1", shown)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column is text and the others figures; cells are Markdown already."""
    widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        shown = (c.rjust(w) if k else c.ljust(w) for k, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(shown)} |"

    rule = "|".join(("-" * (w + 1) + ":") if k else ":" + "-" * (w + 1) for k, w in enumerate(widths))
    return "\n".join([line(head), f"|{rule}|", *(line(row) for row in rows)])
