"""A run's folder: who may write it, what it was started with, what lies in it."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import torch
import yaml

import longtail
from longtail.config import TrainConfig, flatten
from longtail.data.keyed import derive_seed
from longtail.errors import UserError
from longtail.files import read_json, write_bytes, write_json
from longtail.ranks import Ranks

_FILES = (
    "resume model.safetensors model.json metrics.jsonl evaluation.json per_class.csv report.html "
    "gallery.json predictions.safetensors predictions.json validation.safetensors validation.json calibration.json "
    "per_image.safetensors per_image.json zero_shot.json text_heads.safetensors text_heads.json encoder.safetensors "
    "encoder.json export data.json environment.json teacher representation tensorboard wandb tracking.json config.yaml "
    ".lock"
).split()
"""In the order of deletion: ``config.yaml`` last, so that a run half deleted still counts as one."""
_MOST_SKIPPED = 1000
_LEFTOVER = re.compile(rf"\.({'|'.join(map(re.escape, _FILES))})\.\d+\.tmp$")
_FOLD = re.compile(r"fold-\d+$")
_MAY_CHANGE = ("out", "device", "capture", "loading.workers", "loading.prefetch")
"""Options that a resumed run may be given anew: they change where it runs and who is told, not what it computes."""
_MAY_CHANGE_GROUPS = ("checkpoint.", "tracking.")


class RunFolder:
    """Opens ``path`` for one process.

    Args:
        path: the run's folder.
        resume: it may hold a run, which goes on.
        overwrite: it may hold a run, which is deleted.

    Raises:
        UserError: it holds a run and neither is set, it holds other files, it cannot be written, or another process
            is writing it.
    """

    def __init__(self, path: Path, *, resume: bool = False, overwrite: bool = False) -> None:
        self.path = path
        if resume and overwrite:
            raise UserError("--resume and --overwrite exclude each other.")
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._had_lock = (path / ".lock").exists()
            self._lock = open(path / ".lock", "a")  # noqa: SIM115 - held open for as long as the run lives
        except OSError as error:
            raise UserError(f"--out {path} cannot be written: {error.strerror}.") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UserError(f"another process is writing {path}; wait for it or choose another --out.") from None
        try:
            self._claim(resume, overwrite)
        except UserError:
            self.close()
            raise

    def _claim(self, resume: bool, overwrite: bool) -> None:
        try:
            check_free(self.path, resume, overwrite)
        except UserError:
            if not self._had_lock and not self.holds_run:
                self.path.joinpath(".lock").unlink(missing_ok=True)
            raise
        stages = (self.path / "teacher", self.path / "representation")
        folders = (self.path, *(stage for stage in stages if stage.is_dir()))
        # Of a killed process; the lock says that none is alive.
        for leftover in [path for folder in folders for path in folder.iterdir()]:
            if _LEFTOVER.match(leftover.name):
                leftover.unlink(missing_ok=True)
        if overwrite and self.holds_run:
            for name in [*sorted(p.name for p in self.path.iterdir() if _FOLD.match(p.name)), *_FILES]:
                entry = self.path / name
                if entry.is_dir():
                    shutil.rmtree(entry)
                elif name != ".lock":
                    entry.unlink(missing_ok=True)

    @property
    def holds_run(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "config.yaml").exists()

    @property
    def is_begun(self) -> bool:
        """Whether all that a run begins with is written: ``data.json`` is the last of it."""
        return self.holds_run and (self.path / "data.json").exists()

    def write_config(self, config: TrainConfig) -> None:
        """Write the resolved options."""
        write_bytes(self.path / "config.yaml", yaml.safe_dump(asdict(config), sort_keys=False).encode())

    def begin(self, config: TrainConfig, record: Callable[[], None], ranks: Ranks) -> None:
        """Write what a run begins with, unless it is there, and note who trains; all processes wait for that.

        Args:
            config: resolved options.
            record: writes what else belongs to the run, ``data.json`` last.
            ranks: who trains.
        """
        if not self.is_begun:
            if not self.holds_run:
                self.write_config(config)
            record()
        self.note_job(config.seed, ranks)
        ranks.barrier()

    def note_job(self, seed: int, ranks: Ranks) -> None:
        """Note in ``environment.json`` which job trains here from now on, by how many processes, and their seeds.

        From its seed a process draws what layers of the encoder draw (dropout): all else follows from the batch.
        Nothing is noted of a process that no launcher started.
        """
        if not ranks.job:
            return
        seeds = [derive_seed(seed, "rank", rank) for rank in range(ranks.world)]
        path = self.path / "environment.json"
        record = read_json(path) if path.exists() else {}
        record["ranks"] = {"job": ranks.job, "world": ranks.world, "seeds": seeds, "restarts": ranks.restarts}
        write_json(path, record)

    def note_seconds(self, stage: str, seconds: float, device: torch.device) -> None:
        """Add wall-clock seconds to a stage's account, beside what it ran on (not part of what is reproduced)."""
        path = self.path / "environment.json"
        spent = read_environment(path)["seconds"]
        before = spent.get(stage)
        spent[stage] = round(seconds + (before if isinstance(before, int | float) else 0.0), 1)
        ranks = read_json(path).get("ranks") if path.exists() else None
        more = {} if ranks is None else {"ranks": ranks}
        write_json(path, {**environment(device), **more, "seconds": spent})

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.close()


class WatchedFolder(RunFolder):
    """A run's folder as a process sees it that trains along but writes nothing: the first one does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, config: TrainConfig, record: Callable[[], None], ranks: Ranks) -> None:
        """Wait until the first process has written it."""
        ranks.barrier()

    def note_seconds(self, stage: str, seconds: float, device: torch.device) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def check_free(path: Path, resume: bool, overwrite: bool) -> None:
    """Raise :class:`UserError` unless a run may be written to ``path``.

    It may hold a run only if that was asked to go on or to go away, and nothing else.
    """
    try:
        above = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "File exists" if above == path else f"{above} is not a folder")
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"Permission denied in {above}")
        found = sorted(p.name for p in path.iterdir()) if above == path else []
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror}.") from None
    # Without a config.yaml nothing there is ours but the lock: folders of the same names may be the user's.
    foreign = [name for name in found if name != ".lock" and not _LEFTOVER.match(name)]
    if foreign and "config.yaml" not in foreign:
        raise UserError(f"{path} is not empty and holds no run (it has {foreign[0]}); choose another --out.")
    if "config.yaml" in found and not (resume or overwrite):
        raise UserError(
            f"{path} already holds a run; add --resume to go on with it, --overwrite to start anew, or choose another "
            "--out."
        )


def write_data_record(path: Path, splits: Any, notes: Sequence[str] = (), train: str = "") -> None:
    """Write ``data.json``: what was read, how it was split, what was left out and why.

    ``splits`` are a ``DataSplits``, or the ``MaskSplits`` of segmentation, which have the same words.
    ``train`` is the fingerprint of the training images before they were framed: see ``trained_on_other``.
    """
    record = {
        "name": splits.name,
        "train_images": len(splits.train),
        "test_images": len(splits.test),
        "test_split": splits.test_split,
        "validation_images": 0 if splits.validation is None else len(splits.validation),
        "validation_split": splits.validation_split,
        "train_fingerprint": train,
        "notes": [*splits.notes, *notes],
        "skipped_count": len(splits.skipped),
        "skipped": [{"file": file, "reason": reason} for file, reason in splits.skipped[:_MOST_SKIPPED]],
    }
    write_json(path / "data.json", record)


def trained_on_other(run: Path, train: str) -> bool:
    """Return whether the run in ``run`` (or the stage of one) may have seen other images than those of ``train``."""
    records = [folder / "data.json" for folder in (run, run.parent) if (folder / "data.json").exists()]
    return not records or not train or read_json(records[0]).get("train_fingerprint") != train


def read_config(path: Path) -> dict[str, Any]:
    """Return the nested options in a run's ``config.yaml``.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    file = path / "config.yaml"
    if not file.is_file():
        what = "it has no config.yaml" if path.exists() else "there is no such folder"
        raise UserError(f"{path} is not a run folder: {what}.")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{file} cannot be read as options; it was cut off or changed.")
    return values


def config_digest(path: Path) -> str:
    """Return the SHA-256 of a run's ``config.yaml``, which is written once: a state belongs to these options."""
    file = path / "config.yaml"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""


def read_environment(path: Path) -> dict[str, dict[str, Any]]:
    """Return ``versions``, ``hardware`` and ``seconds`` of an ``environment.json``, each {} if not recorded."""
    record = read_json(path) if path.exists() else {}
    parts = ("versions", "hardware", "seconds")
    known = record if isinstance(record, dict) else {}
    return {part: known[part] if isinstance(known.get(part), dict) else {} for part in parts}


def may_change(option: str) -> bool:
    """Return whether a resumed run may be given ``option`` (dotted) anew."""
    return option in _MAY_CHANGE or option.startswith(_MAY_CHANGE_GROUPS)


def check_same_options(saved: TrainConfig, given: dict[str, Any], path: Path) -> None:
    """Raise if an option given for a resumed run differs from what it was started with."""
    have = flatten(saved)
    for key, value in given.items():
        # What "auto", "hub" and "fastest" named when the run was started stays; so does a bare tag.
        named = value == "auto" and key in ("pretrained", "teacher.pretrained", "device", "precision")
        named = named or (key == "precision" and value == "fastest")
        if key.endswith("pretrained") and have[key] != "none":
            named = named or value == "hub" or str(have[key]).endswith(f".{value}")
        if not may_change(key) and value is not None and not named and have.get(key) != value:
            raise UserError(
                f"--{key} {value} differs from the {have.get(key)} that the run in {path} was started with; leave it "
                "out to resume, or choose another --out."
            )


def environment(device: torch.device) -> dict[str, Any]:
    """Return versions and hardware, JSON-ready."""
    name = (
        "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    )
    return {
        "versions": {
            "longtail": longtail.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
        },
        "hardware": {
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": name,
        },
    }


def processor_name() -> str:
    """Return the processor's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
