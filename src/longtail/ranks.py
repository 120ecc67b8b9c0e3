"""Several processes that train one model together: who is who, and how they wait for each other and end together.

They are started by ``torchrun`` (or ``accelerate launch``), which sets RANK, WORLD_SIZE and LOCAL_RANK. What is said
rarely (a decision of the first process, a failure) goes through torch's key-value store, where nothing can hang for
good: whoever waits there looks whether another process has failed. A thread does so for those that wait elsewhere.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from longtail.errors import UserError
from longtail.rank_errors import ENDED, GONE, LOST, Ended, RankFailed, failure_of, sentence_of

_FAILED, _TOLD, _LEFT = "failed", "told", "left"
_LOOK_SECONDS, _GRACE_SECONDS, _FAREWELL_SECONDS = 0.25, 2.0, 10.0


@dataclass
class Ranks:
    """This process's place among those that train together. Without arguments: it trains alone.

    Attributes:
        rank: of this process, from 0; the first one writes files and speaks.
        world: processes.
        local: number of this process on its machine, from 0.
        restarts: how often the job was started anew.
        job: the launcher's name for the job and number of the launcher's process, the same after a restart; "" if there
            is no launcher.
        seed: of what this process alone draws.
        store: what all processes write to and read; it ends with the first of them.
        launcher: the launcher's store, which outlives the first process; None if there is none.
        stopped: whether this process was told to stop, so that it waits for nobody for long.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    restarts: int = 0
    job: str = ""
    seed: int = 0
    store: Any = None
    launcher: Any = None
    stopped: Callable[[], bool] = lambda: False
    _said: int = field(default=0, repr=False)
    _lost: bool = field(default=False, repr=False)
    _over: threading.Event = field(default_factory=threading.Event, repr=False)
    _said_instead: bool = field(default=False, repr=False)
    _last_word: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.world == 1

    def barrier(self, patient: bool = False) -> None:
        """Wait until every process is here; ``patient``: also if this one was told to stop."""
        if not self.alone:
            key = self._next_key()
            self.store.add(key, 1)
            self._wait(lambda: int(self.store.add(key, 0)) >= self.world, patient)

    def share(self, value: Any) -> Any:
        """Return the first process's ``value`` (JSON-ready) in every process."""
        if self.alone:
            return value
        key = self._next_key()
        if self.is_main:
            self.store.set(key, json.dumps(value))
        return self._read(key)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the first process do the block alone, so that the others find what it fetched or found out.

        After it come the first ones of other machines, which may keep what they fetch to themselves, then all others.
        """
        turn = 0 if self.is_main else 1 if self.local == 0 else 2
        for _ in range(turn):
            self.barrier()
        yield
        for _ in range(2 - turn):
            self.barrier()

    def check_same(self, facts: Mapping[str, Any], remedy: str) -> None:
        """Raise :class:`UserError`, in every process, if one knows other facts (JSON-ready) than the first."""
        if self.alone:
            return
        key = self._next_key()
        self.store.set(f"{key}/{self.rank}", json.dumps(dict(facts)))
        found = self.share(self._difference(key) if self.is_main else None)
        if found is not None:
            raise UserError(f"{found}; {remedy}.")

    def _difference(self, key: str) -> str | None:
        """Return how what another process wrote under ``key`` differs from what this one did; None if nothing does."""
        first = self._read(f"{key}/{self.rank}")
        for number in range(1, self.world):
            other = self._read(f"{key}/{number}")
            for name in [*first, *sorted(other.keys() - first.keys())]:
                if other.get(name) != first.get(name):
                    return (
                        f"process {number} of {self.world} has another {name} than process 0 "
                        f"({_short(other.get(name))}, not {_short(first.get(name))})"
                    )
        return None

    def any_number(self, number: int) -> int:
        """Return the largest of the processes' numbers: one small exchange, for every step."""
        if self.alone:
            return number
        value = torch.tensor([number])
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Whatever ends the block in one process ends all of them, and the first says why; without it, another."""
        try:
            with self._ending():
                yield
        except BaseException as error:
            if self.alone or not isinstance(error, Exception | KeyboardInterrupt):
                raise
            other = self._report(error)
            if other is None:
                raise
            raise other from None

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Let SIGTERM be an error like others: a launcher sends it when one process is gone, and one must say so."""
        if self.alone or threading.current_thread() is not threading.main_thread():
            yield
            return

        def end(number: int, frame: FrameType | None) -> None:
            raise Ended(ENDED)

        before = signal.signal(signal.SIGTERM, end)
        try:
            yield
        except BaseException:
            # This process ends by itself: a launcher that tells it to must not cut off its last word.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise
        signal.signal(signal.SIGTERM, before)

    def _report(self, error: BaseException) -> RankFailed | None:
        """Publish what ended this process; return what is to be raised instead, if another is the reason."""
        if isinstance(error, RankFailed):
            return None
        # Whoever ends by an error has said so before its connections close.
        lost = isinstance(error, RuntimeError) and LOST.search(str(error)) is not None
        self._lost = lost or isinstance(error, Ended)
        code, text = (1, GONE) if lost else sentence_of(error)
        mine = json.dumps({"rank": self.rank, "code": code, "text": text, "lost": lost})
        try:
            record = json.loads(self.store.compare_set(_FAILED, "", mine))
        except RuntimeError:  # the store is gone with the first process
            self._say_instead()
            record = json.loads(mine)
        return failure_of(record) if lost else None

    def _say_instead(self) -> None:
        """Say that the first process is gone: one of those that are left does, once. It is said when this returns."""
        with self._last_word:
            if self.is_main or self._said_instead:
                return
            self._said_instead, own = True, str(self.rank)
            try:
                speaker = "1" if self.launcher is None else self.launcher.compare_set("speaks", "", own).decode()
            except RuntimeError:  # the launcher is gone too
                speaker = "1"
            if speaker == own:
                print(f"longtail: {GONE}", file=sys.stderr, flush=True)

    def _next_key(self) -> str:
        self._said += 1
        return f"said/{self._said}"

    def _read(self, key: str) -> Any:
        self._wait(lambda: bool(self.store.check([key])))
        return json.loads(self.store.get(key))

    def _wait(self, ready: Callable[[], bool], patient: bool = False) -> None:
        pause, stopped_at = 0.001, None
        while not ready():
            if self.store.check([_FAILED]):
                raise failure_of(json.loads(self.store.get(_FAILED)))
            if not patient and self.stopped():
                stopped_at = stopped_at or time.monotonic()
                if time.monotonic() - stopped_at > _FAREWELL_SECONDS:
                    self._lost = True
                    raise RankFailed(GONE)
            time.sleep(pause)
            pause = min(2 * pause, 0.1)

    def _sleep_until(self, ready: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end and not ready():
                time.sleep(0.02)
        except RuntimeError:  # the store is gone
            return

    def watch(self) -> None:
        """End this process if another failed and this one waits for it where it cannot look."""
        try:
            while not self._over.wait(_LOOK_SECONDS):
                if self.store.check([_FAILED]):
                    break
            if self._over.wait(_GRACE_SECONDS):
                return
            failure = failure_of(json.loads(self.store.get(_FAILED)))
            if self.is_main:
                print(f"longtail: {failure}", file=sys.stderr, flush=True)
                self.store.set(_TOLD, "1")
            else:
                self._sleep_until(lambda: self.store.check([_TOLD]), _FAREWELL_SECONDS)
        except RuntimeError:  # the store is gone, and so is the job
            if self._over.is_set():
                return
            self._say_instead()
            os._exit(1)
        os._exit(failure.exit_code)

    def farewell(self) -> None:
        """Leave: the first process has said its last word before any other ends, which the launcher answers by killing.

        Runs when the interpreter ends.
        """
        self._over.set()
        try:
            if self.is_main:
                self.store.set(_TOLD, "1")
                # The store ends with this process.
                seconds = _GRACE_SECONDS if self._lost else _FAREWELL_SECONDS  # who is gone says no farewell
                self._sleep_until(lambda: int(self.store.add(_LEFT, 0)) == self.world - 1, seconds)
            else:
                self._sleep_until(lambda: self.store.check([_TOLD]), _FAREWELL_SECONDS)
                self.store.add(_LEFT, 1)
            if not self.store.check([_FAILED]):
                dist.destroy_process_group()
        except RuntimeError:
            return


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def processes_here() -> int:
    """Return how many processes of the job share this machine, its cores and its memory."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
