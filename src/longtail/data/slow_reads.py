"""Reading many files where the storage answers late: then several are asked for at once, and else one after another."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AT_ONCE = 16
"""Files that one process waits for at a time."""
_LEAST_WAIT = 2e-3
"""Seconds a file below which threads would cost more than they save."""


class SlowReads:
    """Calls of a function that reads a file and decodes it, in order, however they are made.

    Whether the storage is slow is told by the time that passes while the thread computes nothing, having given up the
    processor of its own accord (on a busy machine it is taken away): once that is more than what it computes, and more
    than 2 ms a file, the files are read by threads. What is read does not depend on it.
    """

    def __init__(self) -> None:
        self.slow = False

    def all(self, read: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return ``read(item)`` of each item, in order; the first error in that order is raised."""
        listed = list(items)
        if self.slow and len(listed) > 1:
            # Threads of their own each time: a pool that is kept would not outlive a fork.
            with ThreadPoolExecutor(min(AT_ONCE, len(listed))) as pool:
                return list(pool.map(read, listed))
        began, computed, pauses = time.perf_counter(), time.thread_time(), _pauses()
        results = [read(item) for item in listed]
        computed = time.thread_time() - computed
        waited = time.perf_counter() - began - computed
        paused = _pauses() - pauses >= len(listed)
        self.slow = len(listed) > 1 and paused and waited > max(computed, _LEAST_WAIT * len(listed))
        return results


def _pauses() -> float:
    """Return how often this thread has waited of its own accord; not a number where the system does not say."""
    try:
        resource: Any = importlib.import_module("resource")
        return float(resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw)
    except (ImportError, AttributeError):  # not Linux: everything is read one after another
        return float("nan")
