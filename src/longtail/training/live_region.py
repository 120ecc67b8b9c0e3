"""Where live lines are drawn: the lower end of a terminal, or one output of a notebook cell. Redrawn in place."""

from __future__ import annotations

import contextlib
import html
import os
import sys
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text


class Region(Protocol):
    """Lines that are replaced by the next ones.

    Attributes:
        seconds: least time between two drawings.
    """

    seconds: float

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines that there are."""

    def draw(self, lines: list[Text]) -> None:
        """Show ``lines`` instead of the ones before."""

    def close(self) -> None:
        """Take the lines away."""


class TerminalRegion:
    """The lower end of a terminal; what else is printed, also by other libraries, appears above it.

    No thread of its own draws: the training forks workers, and a fork in the middle of a drawing would leave them a
    lock that nobody opens.
    """

    seconds = 0.25

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines; the last column stays free, since some terminals wrap there."""
        width, height = self._console.size
        return max(width - 1, 1), max(height - 1, 1)

    def draw(self, lines: list[Text]) -> None:
        """Show ``lines``, unless the shell has put the process into the background."""
        if not in_foreground(self._console):
            return
        if self._live is None:  # a new one each time: the old one remembers lines that it would erase
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(Group(*lines), refresh=True)

    def close(self) -> None:
        """Take the lines away and show the cursor again."""
        with contextlib.suppress(OSError, ValueError):  # the terminal, or sys.stdout, was closed
            if self._live is not None:
                self._live.stop()
        self._live = None


class NotebookRegion:
    """One output of a notebook's cell."""

    seconds = 1.0
    size = (100, 40)

    def __init__(self) -> None:
        self._handle: Any = None

    def draw(self, lines: list[Text]) -> None:
        """Show ``lines``."""
        text = "\n".join(line.plain for line in lines)
        self._show({"text/plain": text, "text/html": f'<pre style="line-height:normal">{html.escape(text)}</pre>'})

    def close(self) -> None:
        """Leave an empty output."""
        if self._handle is not None:
            self._show({"text/plain": "", "text/html": ""})
            self._handle = None

    def _show(self, bundle: dict[str, str]) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def region_for(console: Console) -> Region | None:
    """Return where live lines go, or None where only plain lines are fit (a pipe, TERM=dumb, the background)."""
    if console.quiet:
        return None
    if console.is_jupyter:
        return NotebookRegion()
    # Not console.is_terminal alone: FORCE_COLOR makes it true for a pipe.
    live = console.is_interactive and console.file.isatty() and in_foreground(console)
    return TerminalRegion(console) if live else None


def in_foreground(console: Console) -> bool:
    """Return whether the terminal's shell lets this process have the screen."""
    try:
        return os.tcgetpgrp(console.file.fileno()) == os.getpgrp()
    except (OSError, ValueError):  # not the controlling terminal: no shell to disturb
        return True


def _plain_streams() -> None:
    # A forked worker must not draw its parent's panel around what it prints.
    sys.stdout, sys.stderr = (getattr(s, "rich_proxied_file", s) for s in (sys.stdout, sys.stderr))


os.register_at_fork(after_in_child=_plain_streams)
