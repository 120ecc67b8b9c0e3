"""What a person sees while a run trains: one live panel on a terminal or in a notebook, plain lines when piped."""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.text import Text

from longtail.errors import printable
from longtail.training.live_region import TerminalRegion, region_for
from longtail.training.pace import Pace, PlannedStage, clock
from longtail.training.panel import StageView, panel_lines, plain_line, split_looks
from longtail.training.trend import Trend

Read = Callable[[], tuple[int, Mapping[str, float]]]
"""Returns an epoch's figures so far and of how many steps they are the means. It may have to wait for the device."""

_READ_SECONDS = 1.0
"""Least time between two readings of figures within an epoch, for the panel."""
_DRAWING_SHARE = 0.01
"""Largest share of the time that goes into drawing: a panel costs milliseconds, as a step on small images does."""
_BETWEEN_LINES = 5.0
"""Least time between two plain lines."""


def plain_seconds(elapsed: float) -> float:
    """Return the time between two plain lines of epochs: 5 seconds at first, a minute in a long run."""
    return min(max(_BETWEEN_LINES, elapsed / 20), 60.0)


class ProgressReporter:
    """Shows how far a run is.

    Args:
        quiet: print nothing at all.

    Attributes:
        live: whether lines are redrawn in place.
        fold: position among runs of the same plan that follow each other, and their number.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(file=sys.stdout, quiet=quiet, highlight=False, soft_wrap=True)
        self.fold: tuple[int, int] = (0, 1)
        self._region = region_for(self.console)
        if self._region is not None:
            # However the process ends, the terminal gets its cursor back.
            weakref.finalize(self, self._region.close)
        self._plan: Sequence[PlannedStage] = ()
        self._run, self._report = "", ""
        self._stage: _StageInProgress | None = None

    @property
    def live(self) -> bool:
        """Whether lines are redrawn in place."""
        return self._region is not None

    def say(self, text: str) -> None:
        """Print one line, at once also into a pipe."""
        text = self._encodable(printable(text))
        if isinstance(self._region, TerminalRegion):
            try:
                self.console.print(text, markup=False)
            except OSError:  # the terminal was closed; what is trained in it goes on
                self._region = None
        elif not self.console.quiet:
            print(text, file=self.console.file, flush=True)

    def note(self, text: str) -> None:
        """Show what is done between two steps, where lines are live."""
        if self._stage is not None:
            self._stage.view.note = text
            self._draw_stage()
        else:
            self._draw([Text(self._encodable(printable(text)))])

    def counter(self, what: str) -> Callable[[int, int], None]:
        """Return a function of (done, of how many) that shows how far a long preparation is."""
        began = last = time.monotonic()

        def show(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            # Nothing is said of what takes a moment.
            if now - began >= 2.0 and now - last >= (self._region.seconds if self._region is not None else 10.0):
                last = now
                left = (now - began) / max(done, 1) * (total - done)
                text = f"{what}: {done} of {total}, left {clock(left)}"
                if self.live:
                    self._draw([Text(text)])
                else:
                    self.say(text)
            if done == total and self._region is not None and self._stage is None:
                self._region.close()

        return show

    def plan(self, run: str, report: Path, stages: Sequence[PlannedStage]) -> None:
        """Take in what the run is called, where its report will be, and which stages it has."""
        self._run, self._report, self._plan = printable(run), printable(str(report)), stages

    def start(self, number: int, steps: int, done: int, batch_size: int) -> None:
        """Begin a stage.

        Args:
            number: its position in the plan.
            steps: of an epoch.
            done: steps of the stage that were taken before.
            batch_size: images a step.
        """
        if self.console.quiet:
            return
        planned = self._plan[number]
        places = [(self.fold[0] + 1, self.fold[1], "fold"), (number + 1, len(self._plan), "stage")]
        view = StageView(
            run=self._encodable(self._run),
            stage=planned.name,
            place=", ".join(f"{what} {at} of {of}" for at, of, what in places if of > 1),
            epochs=planned.epochs,
            steps=steps,
            report=self._encodable(self._report),
        )
        pace = Pace(planned.epochs * steps, done, time.monotonic())
        self._stage = _StageInProgress(view, pace, number, batch_size)
        self._refresh(self._stage, done)
        self._draw_stage()

    def step(self, done: int, learning_rate: float, read: Read) -> None:
        """Take in that ``done`` steps of the stage are taken; figures are read now and then only."""
        stage = self._stage
        if stage is None:
            return
        now = time.monotonic()
        stage.pace.step(done, now)
        if now < stage.next_look:
            return
        if now - stage.read_at >= _READ_SECONDS:
            stage.read(*read())
            stage.read_at = now
        stage.view.learning_rate, stage.view.note = learning_rate, ""
        self._refresh(stage, done)
        pause = _BETWEEN_LINES
        if self._region is not None:
            began = time.thread_time()
            self._draw_stage()
            pause = max(self._region.seconds if self._region else 0.0, (time.thread_time() - began) / _DRAWING_SHARE)
        elif done % stage.view.steps and now - stage.line_at >= 2 * plain_seconds(now - stage.pace.began):
            self._write_line(stage, now)
        stage.next_look = now + pause

    def epoch(self, epoch: int, steps: int, figures: Mapping[str, float]) -> None:
        """Take in the figures of epoch number ``epoch`` (from 1), means over ``steps`` steps, at its end."""
        stage = self._stage
        if stage is None:
            return
        now = time.monotonic()
        stage.pace.rest(now)
        stage.end_epoch(epoch, steps, figures)
        self._refresh(stage, stage.pace.done)
        if self._region is not None:
            if now >= stage.next_look:
                self._draw_stage()
        elif epoch in (1, stage.view.epochs) or (
            now - stage.epoch_line_at >= plain_seconds(now - stage.pace.began) and now - stage.line_at >= _BETWEEN_LINES
        ):
            stage.epoch_line_at = now
            self._write_line(stage, now)

    def stop(self) -> None:
        """Take the live lines away, leaving one that says how far the stage came."""
        stage, self._stage = self._stage, None
        if self._region is not None:
            self._region.close()
            if stage is not None:
                self.say(plain_line(stage.view))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _refresh(self, stage: _StageInProgress, done: int) -> None:
        """Bring what follows from the time and the steps taken into the view."""
        view, pace = stage.view, stage.pace
        # At the end of an epoch, that epoch is shown, not the next.
        view.epoch = max(1, -(-done // view.steps)) if done > pace.first else done // view.steps + 1
        view.epoch = min(view.epoch, view.epochs)  # a finished stage has no next one
        view.step = done - (view.epoch - 1) * view.steps
        view.done = done / pace.total
        view.elapsed, view.left = pace.last - pace.began, pace.left()
        each = pace.steps_per_second()
        view.speed = None if each is None else each * stage.batch_size
        at, of = self.fold
        later = len(self._plan) - stage.number - 1 + of - at - 1
        view.run_left = pace.run_left(self._plan, stage.number, of - at - 1) if later else None

    def _write_line(self, stage: _StageInProgress, now: float) -> None:
        stage.line_at = now
        self.say(plain_line(stage.view))

    def _draw_stage(self) -> None:
        if self._stage is not None and self._region is not None:
            self._draw(panel_lines(self._stage.view, *self._region.size, self.console.options.ascii_only))

    def _draw(self, lines: list[Text]) -> None:
        if self._region is None:
            return
        width, _ = self._region.size
        for line in lines:
            line.truncate(width)
        try:
            self._region.draw(lines)
        except OSError:  # the terminal was closed; what is trained in it goes on
            self._region = None

    def _encodable(self, text: str) -> str:
        """Write out what the terminal's or file's encoding has no sign for."""
        encoding = self.console.encoding
        return text.encode(encoding, "backslashreplace").decode(encoding)


class _StageInProgress:
    """What is known of the stage that is trained."""

    def __init__(self, view: StageView, pace: Pace, number: int, batch_size: int) -> None:
        self.view, self.pace, self.number, self.batch_size = view, pace, number, batch_size
        self.next_look = self.read_at = self.line_at = self.epoch_line_at = pace.began

    def read(self, steps: int, figures: Mapping[str, float]) -> None:
        """Take in the means of an epoch's first ``steps`` steps."""
        self.view.figures = dict(figures)
        for name, value in figures.items():
            self.view.trends.setdefault(name, Trend()).read(steps, value)

    def end_epoch(self, epoch: int, steps: int, figures: Mapping[str, float]) -> None:
        """Take in the figures of a whole epoch."""
        training, looks = split_looks(dict(figures))
        self.read(steps, training)
        for trend in self.view.trends.values():
            trend.end_epoch()
        self.view.note = ""
        self.view.looks.update({kind: (epoch, found) for kind, found in looks.items()})
        value = figures.get("val_balanced_accuracy")
        if value is not None and (self.view.best is None or value >= self.view.best[0]):
            self.view.best = value, epoch
