"""The processes that train the cells of a study side by side."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from longtail.studies.worker import Job, Outcome

_TO_END = 10.0

Answers = queue.Queue[tuple["Worker", str]]
"""Lines of workers; "" when one has ended."""


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Worker:
    """A process that trains one cell after the other (:mod:`longtail.studies.worker`).

    It has a session of its own, so that Ctrl-C reaches the study alone, which then asks each worker once: a second
    signal would end a worker while it writes its state.

    Args:
        log: file that takes what it prints.
        threads: of torch and OpenMP.
        answers: takes its lines.
        lock: the open file that holds the study's folder; while the worker lives, no other study takes it.
    """

    def __init__(self, log: Path, threads: int, answers: Answers, lock: int) -> None:
        environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))}
        with open(log, "ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "longtail.studies.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
                text=True,
                start_new_session=True,
                pass_fds=(lock,),
            )
        self._answers = answers
        self._job: Job | None = None
        self._began = 0.0
        self._ended = False
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put((self, line))
        self._answers.put((self, ""))

    @property
    def idle(self) -> bool:
        """Whether it can take a job."""
        return self._job is None and not self._ended and self._process.poll() is None

    def start(self, job: Job) -> None:
        """Have it train a cell."""
        self._job, self._began = job, time.monotonic()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # its end will be heard of
            self._process.stdin.write(json.dumps(asdict(job)) + "\n")
            self._process.stdin.flush()

    def outcome(self, line: str, stopping: bool = False) -> Outcome | None:
        """Return what a line of it says of its job; None if it ended without one.

        Where it ended in the middle of a job, that is why the cell failed, unless it was being stopped.
        """
        job, self._job = self._job, None
        if line:
            return Outcome(**json.loads(line))
        self._ended = True
        if job is None:
            return None
        seconds = round(time.monotonic() - self._began, 1)
        if stopping:
            return Outcome(job.cell, "stopped", seconds)
        code = self._process.wait()
        memory = " (perhaps the machine's memory was full)" if code == -signal.SIGKILL else ""
        why = f"was ended by signal {-code}{memory}" if code < 0 else f"ended with exit code {code}"
        return Outcome(job.cell, "failed", seconds, f"its process {why}; see workers.log.")

    def stop(self) -> None:
        """Have it write the state of its cell and end it there."""
        if self._job is not None:
            self._process.terminate()

    def close(self) -> None:
        """Let it go: it ends when its input does."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_TO_END)
