"""Several processes that train one model together: who is who, and how they wait for each other and end together.

They are started by ``torchrun`` (or ``accelerate launch``), which sets RANK, WORLD_SIZE and LOCAL_RANK. What is said
rarely (a decision of the first process, a failure) goes through torch's key-value store, where nothing can hang for
good: whoever waits there looks whether another process has failed. A thread does so for those that wait elsewhere.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from longtail.errors import UserError, printable

_FAILED, _TOLD, _LEFT = "failed", "told", "left"
_TIMEOUT, _COMING = timedelta(minutes=30), timedelta(minutes=10)
_LOOK_SECONDS, _GRACE_SECONDS, _FAREWELL_SECONDS = 0.25, 2.0, 10.0
_LOST = re.compile(r"gloo(?!\.cpp)|nccl|connection (closed|reset|refused)|timed out|broken pipe|socket", re.IGNORECASE)


class RankFailed(RuntimeError):
    """Another process of the job failed: the message says which and why, as a sentence."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(printable(message))
        self.exit_code = exit_code


class Ended(RuntimeError):
    """The launcher told this process to end, where nothing waits for that."""

    exit_code = 128 + signal.SIGTERM


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

    def barrier(self) -> None:
        """Wait until every process is here."""
        if not self.alone:
            key = self._next_key()
            self.store.add(key, 1)
            self._wait(lambda: int(self.store.add(key, 0)) >= self.world)

    def share(self, value: Any) -> Any:
        """Return the first process's ``value`` (JSON-ready) in every process."""
        if self.alone:
            return value
        key = self._next_key()
        if self.is_main:
            self.store.set(key, json.dumps(value))
        return self._read(key)

    def collect(self, value: Any) -> list[Any]:
        """Return every process's ``value`` (JSON-ready), in order."""
        if self.alone:
            return [value]
        key = self._next_key()
        self.store.set(f"{key}/{self.rank}", json.dumps(value))
        return [self._read(f"{key}/{rank}") for rank in range(self.world)]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the first process do the block alone, so that the others find what it fetched or found out."""
        if self.is_main:
            yield
            self.barrier()
        else:
            self.barrier()
            yield

    def check_same(self, facts: Mapping[str, Any], remedy: str) -> None:
        """Raise :class:`UserError`, in every process, if one knows other facts (JSON-ready) than the first."""
        first, *others = self.collect(dict(facts))
        for number, other in enumerate(others, start=1):
            for name in [*first, *sorted(other.keys() - first.keys())]:
                if other.get(name) != first.get(name):
                    raise UserError(
                        f"process {number} of {self.world} has another {name} than process 0 "
                        f"({_short(other.get(name))}, not {_short(first.get(name))}); {remedy}."
                    )

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
            raise Ended(_ENDED)

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
        lost = isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None
        self._lost = lost or isinstance(error, Ended)
        code, text = (1, _GONE) if lost else _sentence(error)
        mine = json.dumps({"rank": self.rank, "code": code, "text": text, "lost": lost})
        try:
            record = json.loads(self.store.compare_set(_FAILED, "", mine))
        except RuntimeError:  # the store is gone with the first process
            self._say_instead()
            record = json.loads(mine)
        return _failure(record) if lost else None

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
                print(f"longtail: {_GONE}", file=sys.stderr, flush=True)

    def _next_key(self) -> str:
        self._said += 1
        return f"said/{self._said}"

    def _read(self, key: str) -> Any:
        self._wait(lambda: bool(self.store.check([key])))
        return json.loads(self.store.get(key))

    def _wait(self, ready: Callable[[], bool]) -> None:
        pause, stopped_at = 0.001, None
        while not ready():
            if self.store.check([_FAILED]):
                raise _failure(json.loads(self.store.get(_FAILED)))
            if self.stopped():
                stopped_at = stopped_at or time.monotonic()
                if time.monotonic() - stopped_at > _FAREWELL_SECONDS:
                    self._lost = True
                    raise RankFailed(_GONE)
            time.sleep(pause)
            pause = min(2 * pause, 0.1)

    def _sleep_until(self, ready: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end and not ready():
                time.sleep(0.02)
        except RuntimeError:  # the store is gone
            return

    def _watch(self) -> None:
        """End this process if another failed and this one waits for it where it cannot look."""
        try:
            while not self._over.wait(_LOOK_SECONDS):
                if self.store.check([_FAILED]):
                    break
            if self._over.wait(_GRACE_SECONDS):
                return
            failure = _failure(json.loads(self.store.get(_FAILED)))
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

    def _farewell(self) -> None:
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


_GONE = (
    "a process of this job is gone (killed, out of memory, or its machine); what was saved is kept: torchrun's "
    "--max-restarts goes on by itself, and so does the same command with --resume."
)
_ENDED = (
    "the launcher ended this job: it was told to, or another process is gone; what was saved is kept: the same command "
    "with --resume goes on."
)
_connected: Ranks | None = None


def connect(device: str) -> Ranks:
    """Return this process's place among those that ``torchrun`` started, connected with them; alone without it.

    The first call connects; what it returns is returned again later.

    Args:
        device: option of that name. Each process takes the accelerator of its number on its machine.

    Raises:
        UserError: the port is taken, the others do not come, or there are more processes than devices.
    """
    global _connected
    if _connected is not None:
        return _connected
    world, restarts = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    launched = os.environ.get("TORCHELASTIC_RUN_ID", "none" if world > 1 else "")
    job = f"{launched} {os.getppid()}" if launched else ""
    if world <= 1:
        return Ranks(restarts=restarts, job=job)
    rank, local = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
    backend = _backend(device, local)
    try:
        launcher, store = _stores(rank)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise _no_connection(error) from None
    ranks = Ranks(rank, world, local, restarts, job, launcher=launcher)
    ranks.store = dist.distributed_c10d.PrefixStore("longtail", store)
    threading.Thread(target=ranks._watch, name="other ranks", daemon=True).start()
    atexit.register(ranks._farewell)
    _connected = ranks
    return ranks


def _stores(rank: int) -> tuple[Any, Any]:
    """Return the launcher's store (None if there is none), and one that the first process of this start holds.

    The launcher's outlives the first process, and keeps what a start before it wrote. The port of the other is told
    through it, where that of a start before may still stand: nobody answers there.

    Raises:
        RuntimeError: torch's, if the others do not come.
    """
    store, _, _ = next(rendezvous("env://", timeout=_COMING))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None, store  # the first process holds it already
    host = os.environ["MASTER_ADDR"]
    if rank == 0:
        own = dist.TCPStore(host, 0, is_master=True, timeout=_TIMEOUT, wait_for_workers=False)  # type: ignore[attr-defined]
        store.set("longtail", str(own.port))
        return _of_start(store, own.port), own
    end = time.monotonic() + _COMING.total_seconds()
    while True:
        port = int(store.get("longtail"))
        try:
            own = dist.TCPStore(host, port, timeout=timedelta(seconds=5), wait_for_workers=False)  # type: ignore[attr-defined]
            return _of_start(store, port), own
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def _of_start(launcher: Any, port: int) -> Any:
    """Return the launcher's store with keys of this start alone, whose own store is at ``port``."""
    return dist.distributed_c10d.PrefixStore(f"longtail/{port}", launcher)


def _backend(device: str, local: int) -> str:
    """Return what torch connects with: gloo for what lies on the host, and the device's own."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if device.partition(":")[0] == "cpu" or found is None:
        return "gloo"
    if ":" in device:
        raise UserError(f"--device {device} is one device, but several processes train; leave the number out.")
    count = torch.accelerator.device_count()
    if local >= count:
        raise UserError(
            f"process {local} of this machine has no device: there are {count}; start at most {count} "
            "(--nproc-per-node), or give --device cpu."
        )
    torch.accelerator.set_device_index(local)
    return f"cpu:gloo,{found.type}:{dist.get_default_backend_for_device(found)}"


def _no_connection(error: Exception) -> UserError:
    address = f"{os.environ.get('MASTER_ADDR', 'no MASTER_ADDR')}:{os.environ.get('MASTER_PORT', 'no MASTER_PORT')}"
    text = str(error).lower()
    if "in use" in text or "eaddrinuse" in text:
        return UserError(f"the port of {address} is in use; give another (torchrun --master-port, or MASTER_PORT).")
    reason = str(error).splitlines()[0].rstrip(".")
    return UserError(f"the processes do not find each other at {address} ({reason}); start them with torchrun.")


def _failure(record: Mapping[str, Any]) -> RankFailed:
    if record["lost"]:
        return RankFailed(record["text"], record["code"])
    return RankFailed(f"process {record['rank']}: {record['text']}", record["code"])


def _sentence(error: BaseException) -> tuple[int, str]:
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


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
