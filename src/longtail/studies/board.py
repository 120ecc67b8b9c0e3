"""Which cells wait, run and are over, and which stages one may take from another."""

from __future__ import annotations

from collections.abc import Sequence

from longtail.studies.cells import Cell, Shared
from longtail.studies.ledger import Entry, Ledger
from longtail.studies.worker import Job, Outcome


class Board:
    """Hands out the cells that are not finished.

    Args:
        cells: of the plan; those of the same folder are one run. Cells that are refused are written down at once.
        ledger: the study's folder.

    Attributes:
        total: runs of the plan.
        waiting, running: those not begun in this process, and those in training.
        refused: those that cannot be trained.
        work_done: passes over training images that this process has made.
    """

    def __init__(self, cells: Sequence[Cell], ledger: Ledger) -> None:
        self.ledger = ledger
        runs: dict[str, Cell] = {}
        for cell in cells:
            runs.setdefault(cell.folder, cell)
        unique = list(runs.values())
        self.refused = [cell for cell in unique if cell.refused]
        self.waiting = [cell for cell in unique if not cell.refused and not ledger.done(cell.folder)]
        self.running: dict[str, Cell] = {}
        self.total, self.work_done = len(unique), 0.0
        self._taken: dict[str, dict[str, str]] = {}
        self._anew: set[str] = set()
        self._holders: dict[str, list[str]] = {}
        for cell in self.refused:
            ledger.write(cell.folder, Entry("failed", ledger.code, error=cell.refused))
        for cell in unique:
            if ledger.entry(cell.folder) is not None:
                self._add_holder(cell)

    @property
    def over(self) -> int:
        """How many cells are finished or have failed."""
        return self.total - len(self.waiting) - len(self.running)

    def next_job(self) -> Job | None:
        """Return the first cell that can start now; None if there is none, or all need a stage in training."""
        for place, cell in enumerate(self.waiting):
            sources = {shared: self._holder(shared) for shared in cell.shares}
            trained = {shared.key for other in self.running.values() for shared in other.shares}
            if any(source is None and shared.key in trained for shared, source in sources.items()):
                continue
            del self.waiting[place]
            return self._start(cell, {shared: source for shared, source in sources.items() if source is not None})
        return None

    def _start(self, cell: Cell, ready: dict[Shared, str]) -> Job:
        known, folder = self.ledger.entry(cell.folder), self.ledger.folder(cell.folder)
        begun = known is not None and (folder / "config.yaml").exists()
        # A run of other code is not gone on with; a finished one waits here only to be trained anew.
        anew = begun and known is not None and known.code != self.ledger.code
        goes_on = known if begun and not anew else None
        taken = {shared.name: source for shared, source in ready.items()} if goes_on is None else goes_on.taken
        spent = 0.0 if goes_on is None else goes_on.seconds
        self.ledger.write(cell.folder, Entry("begun", self.ledger.code, spent, taken=taken))
        self._taken[cell.folder] = taken
        self.running[cell.folder] = cell
        if anew:
            self._anew.add(cell.folder)
        self._add_holder(cell)
        given = {shared.option: str(self.ledger.folder(source) / shared.name) for shared, source in ready.items()}
        return Job(cell.folder, str(folder), {**cell.options, **given}, anew)

    def _add_holder(self, cell: Cell) -> None:
        for shared in cell.shares:
            holders = self._holders.setdefault(shared.key, [])
            if cell.folder not in holders:
                holders.append(cell.folder)

    def _holder(self, shared: Shared) -> str | None:
        """Return a cell whose folder holds the finished stage, trained by this very code."""
        for folder in self._holders.get(shared.key, ()):
            # What lies in a folder that is being emptied is of other code.
            if folder in self._anew or not (self.ledger.folder(folder) / shared.name / "model.json").exists():
                continue
            entry = self.ledger.entry(folder)
            if entry is not None and entry.code == self.ledger.code:
                return folder
        return None

    def close(self, outcome: Outcome) -> Cell:
        """Take in what became of a cell, and return it."""
        cell = self.running.pop(outcome.cell)
        self._anew.discard(outcome.cell)
        known = self.ledger.entry(outcome.cell)
        seconds = round((0.0 if known is None else known.seconds) + outcome.seconds, 1)
        taken = self._taken[outcome.cell]
        status = "begun" if outcome.status == "stopped" else outcome.status
        self.ledger.write(outcome.cell, Entry(status, self.ledger.code, seconds, outcome.error, outcome.trace, taken))
        if outcome.status == "stopped":
            self.waiting.insert(0, cell)
        if outcome.status == "done":
            self.work_done += cell.work - sum(shared.work for shared in cell.shares if shared.name in taken)
        return cell

    def work_left(self) -> float:
        """Return the passes over training images that are still to be made; those in training count in full."""
        left, trained = 0.0, {key for key, holders in self._holders.items() if holders}
        for cell in [*self.running.values(), *self.waiting]:
            taken = self._taken.get(cell.folder)
            for shared in cell.shares:
                known = shared.name in taken if taken is not None else shared.key in trained
                left -= shared.work if known else 0.0
                trained.add(shared.key)
            left += cell.work
        return max(left, 0.0)
