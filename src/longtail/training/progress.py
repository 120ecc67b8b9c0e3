"""What a person sees while a run trains: one live line on a terminal, plain lines when piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from longtail.errors import printable


def clock(seconds: float) -> str:
    """Return a duration as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class ProgressReporter:
    """Shows a stage's epochs, losses, readings and time left.

    Args:
        quiet: print nothing at all.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(file=sys.stdout, quiet=quiet, highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal and not quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def say(self, text: str) -> None:
        """Print one line, at once also into a pipe."""
        self.console.print(printable(text), markup=False)
        self.console.file.flush()

    def counter(self, what: str) -> Callable[[int, int], None]:
        """Return a function of (done, of how many) that shows how far a long preparation is."""
        began = last = time.monotonic()

        def show(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            # Nothing is said of what takes a moment.
            if now - began >= 2.0 and (now - last >= (0.2 if self.live else 10.0) or (done == total and self.live)):
                last = now
                left = (now - began) / max(done, 1) * (total - done)
                text = f"{what}: {done} of {total}, left {clock(left)}"
                if self.live:
                    self.console.print(text, end="\r" if done < total else "\n", markup=False)
                else:
                    self.say(text)

        return show

    def start(self, stage: str, epochs: int, done: int) -> None:
        """Begin a stage of which ``done`` epochs were trained before."""
        self.stage, self.epochs, self.first = stage, epochs, done
        self.began = self.last_line = time.monotonic()
        if self.live:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[text]}"),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            )
            self._task = self._bar.add_task(stage, total=epochs, completed=done, text="")
            self._bar.start()

    def epoch(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Show epoch number ``epoch`` (1-based) with its figures; plain output at most every few seconds."""
        now = time.monotonic()
        left = (now - self.began) / max(epoch - self.first, 1) * (self.epochs - epoch)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        text = f"{epoch}/{self.epochs}  {shown}  left {clock(left)}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=epoch, text=text)
        elif epoch in (1, self.epochs) or now - self.last_line >= 5.0:
            self.last_line = now
            self.say(f"{self.stage}  epoch {text}")

    def stop(self) -> None:
        """End the live line."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
