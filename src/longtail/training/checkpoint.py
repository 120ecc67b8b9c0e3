"""The state of a run on disk, for ``--resume``: whole or not there, checked when read, never unpickled."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longtail.errors import UserError
from longtail.files import load_meta, load_tensors, save_tensors, sync_folder

_NAME = re.compile(r"state-\d+-\d{9}$")


def optimiser_state(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimiser's state into tensors and JSON-ready numbers, both keyed ``index.name``."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, values in optimiser.state_dict()["state"].items():
        for name, value in values.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{index}.{name}"] = value
    return tensors, numbers


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Put back what :func:`optimiser_state` took; groups and learning rates are those of ``optimiser``."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *numbers.items()]:
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    for parameter, values in optimiser.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # Files keep no memory layout, and a fused optimiser walks parameter and state alike through memory.
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def load_module(module: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Load ``tensors`` into ``module``; names or shapes that differ are a ``UserError`` naming the first of them."""
    own = module.state_dict()
    differing = [
        name
        for name in sorted(own.keys() | tensors.keys())
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape
    ]
    if differing:
        raise UserError(
            f"{what} does not fit this run's options: {', '.join(differing[:3])} differ; "
            "it was written with other options or another version."
        )
    module.load_state_dict(tensors)


class CheckpointFolder:
    """``resume/`` of a run: one complete state at a time, the newest.

    A state is a folder written under a temporary name and renamed when every byte is on the disk, so a process killed
    at any moment leaves the previous state or the new one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, stage: int, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Write the state at ``step`` of stage number ``stage``, then drop older ones."""
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"state-{stage}-{step:09d}"
        if final.exists():  # the same step of the same run has the same bytes
            return
        fresh = self.folder / f".{final.name}.{os.getpid()}.tmp"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        save_tensors(fresh, "state", tensors, {"stage": stage, "step": step, **meta})
        os.replace(fresh, final)
        sync_folder(self.folder)
        for old in self.folder.iterdir():
            if old != final:
                shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> Path | None:
        """Return the folder of the newest complete state, or None."""
        if not self.folder.is_dir():
            return None
        return max(
            (path for path in self.folder.iterdir() if _NAME.match(path.name)),
            key=lambda path: [int(part) for part in path.name.split("-")[1:]],
            default=None,
        )

    def load_meta(self) -> dict[str, Any] | None:
        """Read what the newest state says of itself, without its tensors; None if there is no state."""
        newest = self.newest()
        return None if newest is None else load_meta(newest, "state")

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read the newest state: ``(tensors, meta)``, or None if there is none.

        Raises:
            UserError: it was cut off, changed, or written by another version.
        """
        newest = self.newest()
        if newest is None:
            return None
        tensors, meta = load_tensors(newest, "state")
        missing = {"stage", "step"} - meta.keys()
        if missing:
            raise UserError(f"{newest / 'state.json'} lacks {', '.join(sorted(missing))}; it was changed.")
        return tensors, meta


class NoCheckpoints(CheckpointFolder):
    """The states of a run as a process sees them that writes none: another one does."""

    def save(self, stage: int, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Nothing."""


class NoLog:
    """Where figures go in a process that writes none."""

    length = 0

    def write(self, record: dict[str, Any]) -> None:
        """Nothing."""


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries whose name starts with ``prefix.``, without it."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries with ``prefix.`` before each name."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


class MetricsLog:
    """``metrics.jsonl``: a line an epoch; on resume cut back to what the checkpoint had seen.

    ``follow`` is called when it was cut and after each line.
    """

    def __init__(self, path: Path, length: int = 0, follow: Callable[[], None] | None = None) -> None:
        self.path, self._follow = path, follow
        path.touch()
        with open(path, "r+b") as file:
            file.truncate(min(length, path.stat().st_size))
        if follow is not None:
            follow()

    @property
    def length(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size

    def write(self, record: dict[str, Any]) -> None:
        """Append one record and force it to the disk, so that a later checkpoint may count on it."""
        with open(self.path, "ab") as file:
            file.write((json.dumps(record, allow_nan=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
        if self._follow is not None:
            self._follow()
