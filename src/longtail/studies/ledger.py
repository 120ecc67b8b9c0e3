"""A study's folder: which cells are finished, by which code, and who is writing.

study.json            its name and the code whose finished cells were accepted
cells/NAME/           a run's folder
cells/NAME.json       what became of it, written when it begins and when it ends
results.json, study.md, study.html
"""

from __future__ import annotations

import fcntl
import hashlib
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Self

import longtail
from longtail.errors import UserError
from longtail.files import read_json, write_json

Status = Literal["begun", "done", "failed"]
CODE_CHOICES = ("keep", "anew")
WAIT = 10.0
"""Seconds to wait for a folder that another process holds."""
_ROOMS_THAT_TRAIN = (
    *("errors.py", "files.py", "config.py", "option_groups.py", "options.py", "api.py"),
    *("losses", "metrics", "data", "models", "memory", "methods", "training"),
)
"""What a run's figures follow from; pages, deployment and the studies themselves do not move them."""


def code_version() -> str:
    """Return 12 hexadecimal digits of the source that trains and evaluates."""
    source, digest = Path(longtail.__file__).parent, hashlib.sha256()
    for place in _ROOMS_THAT_TRAIN:
        path = source / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(source)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Entry:
    """What is known of a cell.

    Attributes:
        status: ``begun`` (and perhaps stopped), ``done`` or ``failed``.
        code: version that trained it.
        seconds: of all attempts; those of a process that was killed are lost.
        error: the sentence that it failed with.
        trace: where in the code, if it was no mistake of the user's.
        taken: stages that came ready-made, by name, and the cell that trained them.
    """

    status: Status
    code: str
    seconds: float = 0.0
    error: str = ""
    trace: str = ""
    taken: dict[str, str] = field(default_factory=dict)


class Ledger:
    """Opens a study's folder for one process.

    Args:
        path: the folder, made if need be.
        study: name of the study.

    Raises:
        UserError: it holds another study or other files, it cannot be written, or another process is writing it.
    """

    def __init__(self, path: Path, study: str) -> None:
        self.path, self.cells, self.code = path, path / "cells", code_version()
        self._study, self._record = study, path / "study.json"
        if path.is_dir() and not self._record.exists():
            foreign = sorted(entry.name for entry in path.iterdir() if entry.name != ".lock")
            if foreign:
                raise UserError(f"{path} is not empty and holds no study (it has {foreign[0]}); choose another --out.")
        held = read_json(self._record) if self._record.exists() else {"study": study, "kept": []}
        if not isinstance(held, dict) or held.get("study") != study:
            raise UserError(f"{path} holds the study {dict(held).get('study')}; choose another --out.")
        self._kept = [str(code) for code in held.get("kept", [])]
        try:
            self.cells.mkdir(parents=True, exist_ok=True)
            self._lock = open(path / ".lock", "a")  # noqa: SIM115 - held open for as long as the study runs
        except OSError as error:
            raise UserError(f"--out {path} cannot be written: {error.strerror}.") from None
        if not self._take_lock():
            self._lock.close()
            raise UserError(f"another process is at work on {path}; wait for it or choose another --out.")
        self._write()

    def _take_lock(self) -> bool:
        """Return whether the folder is ours; workers of a study that was killed get some seconds to stop."""
        until = time.monotonic() + WAIT
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= until:
                    return False
                time.sleep(0.1)

    @property
    def lock(self) -> int:
        """The open file that holds the folder; processes that inherit it hold the folder too."""
        return self._lock.fileno()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _write(self) -> None:
        write_json(self._record, {"study": self._study, "kept": self._kept})

    def entry(self, cell: str) -> Entry | None:
        """Return what is known of the cell with that folder, None if it was never begun."""
        path = self.cells / f"{cell}.json"
        if not path.exists():
            return None
        record = read_json(path)
        try:
            return Entry(**record)
        except TypeError:
            raise UserError(f"{path} is no record of a cell; remove it to train the cell anew.") from None

    def write(self, cell: str, entry: Entry) -> None:
        """Replace what is known of a cell."""
        write_json(self.cells / f"{cell}.json", asdict(entry))

    def folder(self, cell: str) -> Path:
        """Return the run's folder."""
        return self.cells / cell

    def done(self, cell: str) -> bool:
        """Return whether the cell is finished, and by code that counts."""
        entry = self.entry(cell)
        return entry is not None and entry.status == "done" and self.counts(entry)

    def counts(self, entry: Entry) -> bool:
        """Return whether a cell was trained by this code, or by one whose cells were asked to be kept."""
        return entry.code in (self.code, *self._kept)

    def settle_code(self, cells: list[str], choice: str | None) -> None:
        """Decide on finished cells that other code trained: ``keep`` them, train them ``anew``, or ask.

        Raises:
            UserError: there are some and no choice was made.
        """
        if choice == "anew" and self._kept:
            self._kept = []
            self._write()
        entries = {cell: self.entry(cell) for cell in cells}
        others = {
            cell: entry.code
            for cell, entry in entries.items()
            if entry is not None and entry.status == "done" and not self.counts(entry)
        }
        if not others:
            return
        if choice is None:
            raise UserError(
                f"{len(others)} finished cells in {self.path} were trained by other code "
                f"({', '.join(sorted(set(others.values())))}; this is {self.code}), which is not mixed unasked: add "
                "--code keep to keep them, --code anew to train them again, or choose another --out."
            )
        if choice == "keep":
            self._kept = sorted({*self._kept, *others.values()})
            self._write()
