"""How processes that train together end: what ended one of them, as a sentence for all."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from typing import Any

from longtail.errors import UserError, printable

LOST = re.compile(r"gloo(?!\.cpp)|nccl|connection (closed|reset|refused)|timed out|broken pipe|socket", re.IGNORECASE)
"""What torch says where a connection to another process ends."""
GONE = (
    "a process of this job is gone (killed, out of memory, or its machine); what was saved is kept: torchrun's "
    "--max-restarts goes on by itself, and so does the same command with --resume."
)
ENDED = (
    "the launcher ended this job: it was told to, or another process is gone; what was saved is kept: the same command "
    "with --resume goes on."
)


class RankFailed(RuntimeError):
    """Another process of the job failed: the message says which and why, as a sentence."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(printable(message))
        self.exit_code = exit_code


class Ended(RuntimeError):
    """The launcher told this process to end, where nothing waits for that."""

    exit_code = 128 + signal.SIGTERM


def failure_of(record: Mapping[str, Any]) -> RankFailed:
    """Return the error that others raise for what a process has published of its end."""
    if record["lost"]:
        return RankFailed(record["text"], record["code"])
    return RankFailed(f"process {record['rank']}: {record['text']}", record["code"])


def sentence_of(error: BaseException) -> tuple[int, str]:
    """Return exit code and sentence of what ended a process."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, UserError):
        return 2, str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return 1, "out of memory; try a smaller --batch_size, --queue.capacity or encoder. What was saved is kept."
    code = getattr(error, "exit_code", None)
    if isinstance(code, int) or type(error).__name__ == "Diverged":
        return (code if isinstance(code, int) else 1), str(error)
    return 1, f"{type(error).__name__}: {text}"
