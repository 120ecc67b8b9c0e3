"""One cell trained, in this process or in a worker's: ``python -m longtail.studies.worker``.

A worker reads a job a line on standard input and answers each with a line on standard output. When the study's process
is gone, its input ends; it then stops as at Ctrl-C: the state is written, and the cell goes on later.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from longtail import api
from longtail.errors import UserError, printable
from longtail.training.guard import Diverged, Interrupted

Status = Literal["done", "failed", "stopped"]


@dataclass(frozen=True)
class Job:
    """A cell to train.

    Attributes:
        cell: its name.
        folder: of the run; one that was begun there goes on.
        options: what ``longtail.train`` is given, by dotted name.
        anew: delete what is there first.
    """

    cell: str
    folder: str
    options: Mapping[str, Any] = field(default_factory=dict)
    anew: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        cell: its name.
        status: ``stopped`` means that its state is kept and that it goes on.
        seconds: of this attempt.
        error: a sentence, where it failed.
        trace: where in the code, if it was no mistake of the user's.
        signal: that it was stopped by; 0 = none.
    """

    cell: str
    status: Status
    seconds: float
    error: str = ""
    trace: str = ""
    signal: int = 0


def train_cell(job: Job) -> Outcome:
    """Train a cell, or go on with it, and tell what became of it; no failure of it is raised."""
    began = time.monotonic()

    def outcome(status: Status, error: str = "", trace: str = "", number: int = 0) -> Outcome:
        return Outcome(job.cell, status, round(time.monotonic() - began, 1), printable(error), trace, number)

    begun = not job.anew and (Path(job.folder) / "config.yaml").exists()
    # What was begun goes on with its own options: ready runs may lie elsewhere by now, and were copied.
    options = {"device": job.options.get("device", "auto")} if begun else dict(job.options)
    try:
        api.train(out=job.folder, resume=not job.anew, overwrite=job.anew, quiet=True, **options)
    except Interrupted as stop:
        return outcome("stopped", number=stop.exit_code - 128)
    except (UserError, Diverged) as error:
        return outcome("failed", str(error))
    except Exception as error:  # whatever it is, the other cells go on
        first = (str(error).splitlines() or [""])[0]
        return outcome("failed", f"{type(error).__name__}: {first}", traceback.format_exc())
    return outcome("done")


def main() -> None:
    """Work on jobs until there are no more."""
    # What anything prints goes to the log, not among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    jobs: queue.Queue[str | None] = queue.Queue()
    busy = threading.Event()

    def listen() -> None:
        for line in sys.stdin:
            jobs.put(line)
        jobs.put(None)
        if busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=listen, daemon=True).start()
    while (line := jobs.get()) is not None:
        busy.set()
        outcome = train_cell(Job(**json.loads(line)))
        busy.clear()
        try:
            answers.write(json.dumps(asdict(outcome)) + "\n")
            answers.flush()
        except BrokenPipeError:  # nobody waits for it any more
            break


if __name__ == "__main__":
    main()
