"""Trains the cells of a study that are not finished, in this process or in several."""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Callable, Sequence

from longtail.errors import counted
from longtail.studies.board import Board
from longtail.studies.cells import Cell
from longtail.studies.ledger import Ledger
from longtail.studies.worker import Outcome, train_cell
from longtail.studies.workers import Answers, Worker, cores
from longtail.training.guard import Interrupted, StopRequest
from longtail.training.pace import clock
from longtail.training.progress import ProgressReporter

_LOOK = 0.2
"""Seconds between two looks at whether the study was asked to stop, and at which stages are finished."""
_TO_STOP = 300.0
"""Seconds that workers get to write their state when the study is asked to stop."""

Tell = Callable[[Outcome], None]


def run_cells(cells: Sequence[Cell], ledger: Ledger, jobs: int, say: ProgressReporter) -> None:
    """Train every cell that is not finished; one that fails is written down, and the others go on.

    Args:
        cells: of the plan.
        ledger: the study's folder.
        jobs: processes; the threads of this machine are shared out among them. 1 = this process alone.
        say: told a line a cell, with the time left.

    Raises:
        Interrupted: asked to stop (Ctrl-C, SIGTERM); cells in training have written their state.
    """
    board, began = Board(cells, ledger), time.monotonic()
    for cell in board.refused:
        say.say(f"{named(cell)}: failed: {cell.refused}")
    if board.over > len(board.refused):
        say.say(f"finished before: {board.over - len(board.refused)} of {counted(board.total, 'cell')}.")

    def tell(outcome: Outcome) -> None:
        cell = board.close(outcome)
        if outcome.status == "stopped":
            return
        text = f"{named(cell)}: {'done' if outcome.status == 'done' else 'failed: ' + outcome.error}"
        left = board.work_left() * (time.monotonic() - began) / board.work_done if board.work_done else None
        after = f", left {clock(left)}" if left else ""
        say.say(f"{text} ({clock(outcome.seconds)}); {board.over} of {board.total}{after}")

    if jobs > 1 and board.waiting:
        _in_processes(board, jobs, tell)
        return
    while (job := board.next_job()) is not None:
        try:
            outcome = train_cell(job)
        except KeyboardInterrupt:  # while the data was read: there is nothing to keep yet
            outcome = Outcome(job.cell, "stopped", 0.0)
        tell(outcome)
        if outcome.status == "stopped":
            raise _stopped(board, outcome.signal or signal.SIGINT)


def named(cell: Cell) -> str:
    """Return a cell's name as people read it."""
    return f"{cell.panel}: {cell.row}, seed {cell.seed}"


def _stopped(board: Board, number: int) -> Interrupted:
    return Interrupted(
        f"stopped with {board.over} of {counted(board.total, 'cell')} over; the same command goes on.", number
    )


def _in_processes(board: Board, jobs: int, tell: Tell) -> None:
    answers: Answers = queue.Queue()
    workers: list[Worker] = []
    log, threads = board.ledger.path / "workers.log", max(1, cores() // jobs)
    with StopRequest() as stop:
        try:
            while board.waiting or board.running:
                while stop.received is None and len(board.running) < jobs and (job := board.next_job()) is not None:
                    worker = next((worker for worker in workers if worker.idle), None)
                    if worker is None:
                        worker = Worker(log, threads, answers, board.ledger.lock)
                        workers.append(worker)
                    worker.start(job)
                if stop.received is not None:
                    _stop(board, workers, answers, tell)
                    raise _stopped(board, stop.received)
                _take(answers, tell)
        finally:
            for worker in workers:
                worker.close()


def _take(answers: Answers, tell: Tell, stopping: bool = False) -> None:
    """Tell the next answer of a worker, if there is one soon."""
    try:
        worker, line = answers.get(timeout=_LOOK)
    except queue.Empty:
        return
    outcome = worker.outcome(line, stopping)
    if outcome is not None:
        tell(outcome)


def _stop(board: Board, workers: Sequence[Worker], answers: Answers, tell: Tell) -> None:
    """Have every worker write its state."""
    for worker in workers:
        worker.stop()
    until = time.monotonic() + _TO_STOP
    while board.running and time.monotonic() < until:
        _take(answers, tell, stopping=True)
