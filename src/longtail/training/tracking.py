"""Every epoch's figures, also in TensorBoard or Weights & Biases, through accelerate's trackers.

What is sent are the lines of ``metrics.jsonl``; ``tracking.json`` remembers how far, so that a resumed run goes on with
the same curve. A tracker that fails is named once, and the training goes on without it.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from longtail.config import TrainConfig, flatten
from longtail.errors import UserError
from longtail.files import read_json, write_json
from longtail.training.progress import ProgressReporter


def check_tracking(to: str) -> None:
    """Raise :class:`UserError` if packages that ``--tracking.to`` needs are not installed."""
    needed = () if to == "none" else ("accelerate", to)
    missing = [package for package in needed if find_spec(package) is None]
    if missing:
        raise UserError(
            f"--tracking.to {to} needs {' and '.join(missing)}; install the extra (pip install 'longtail[tracking]'), "
            "or leave the option out."
        )


class Tracking:
    """Sends what a run's ``metrics.jsonl`` holds and its tracker lacks.

    Args:
        config: the run's options; ``tracking`` says where to.
        folder: of the run.
        progress: who is told if something fails.
    """

    def __init__(self, config: TrainConfig, folder: Path, progress: ProgressReporter) -> None:
        self._to, self._config, self._folder, self._progress = config.tracking.to, config, folder, progress
        self._tracker: Any = None
        self._file = folder / "tracking.json"
        self._states: dict[str, Any] = read_json(self._file) if self._file.exists() else {}
        fresh = {"id": uuid.uuid4().hex[:12], "sent": 0, "finished": False}
        self._state: dict[str, Any] = fresh | self._states.get(self._to, {})
        self._over = self._to == "none" or bool(self._state["finished"])
        self._read, self._stage, self._before, self._step = 0, "", 0, 0

    def update(self) -> None:
        """Send the epochs that are in ``metrics.jsonl`` and were not sent."""
        if not self._over:
            self._attempt(self._send_epochs)

    def finish(self, evaluation: Mapping[str, Any]) -> None:
        """Send the final figures (``evaluation.json``) and close the tracker."""
        if not self._over:
            self._attempt(lambda: self._send_final(evaluation))
        self.close()

    def close(self) -> None:
        """Close the tracker."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            self._attempt(tracker.finish)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever it is, it must not cost the run
            self._over = True
            lines = [*str(error).strip().splitlines(), type(error).__name__]
            self._progress.say(
                f"--tracking.to {self._to} failed ({lines[0][:200]}); the run goes on without it, and nothing is lost: "
                "metrics.jsonl has every figure."
            )

    def _started(self) -> Any:
        """Return the tracker, started."""
        if self._tracker is None:
            from accelerate.state import PartialState

            self._progress.note(f"starting {self._to}")
            PartialState()  # accelerate's trackers ask it whether this process is the one that writes
            start = _start_tensorboard if self._to == "tensorboard" else _start_wandb
            self._tracker, self._state["sent"] = start(self._config, self._folder, self._state, self._progress)
            self._remember()
        return self._tracker

    def _send_epochs(self) -> None:
        tracker = self._started()
        for step, record in self._fresh_records():
            if step > self._state["sent"]:
                values = {f"{self._stage}/{k}": v for k, v in record.items() if k not in ("stage", "step")}
                tracker.log(values, step=step)
                self._remember(sent=step)

    def _send_final(self, evaluation: Mapping[str, Any]) -> None:
        # A step of its own: what a killed process may have written after the last epoch is then told apart.
        self._started().log({f"final/{name}": value for name, value in numbers(evaluation)}, step=self._step + 1)
        self._remember(finished=True)

    def _fresh_records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the epochs written since the last time, each with its optimiser step counted over the whole run."""
        with open(self._folder / "metrics.jsonl", "rb") as file:
            file.seek(self._read)
            lines = file.readlines()
            self._read = file.tell()
        for record in map(json.loads, lines):
            if "step" not in record:  # a skipped step
                continue
            if record["stage"] != self._stage:
                self._stage, self._before = record["stage"], self._step
            self._step = self._before + record["step"]
            yield self._step, record

    def _remember(self, **changes: Any) -> None:
        self._state |= changes
        write_json(self._file, {**self._states, self._to: self._state})


def numbers(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of nested figures, named ``groups/many/accuracy``; lists and texts are left out."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


def _start_tensorboard(
    config: TrainConfig, folder: Path, state: Mapping[str, Any], progress: ProgressReporter
) -> tuple[Any, int]:
    """Return TensorBoard's tracker and the last step that it has."""
    from accelerate.tracking import TensorBoardTracker

    sent = int(state["sent"])
    # A killed process may have written more than it remembered: TensorBoard drops what lies beyond.
    beyond = {"purge_step": sent + 1} if (folder / "tensorboard").exists() else {}
    tracker = TensorBoardTracker("tensorboard", logging_dir=folder, **beyond)
    tracker.start()
    return tracker, sent


def _start_wandb(
    config: TrainConfig, folder: Path, state: Mapping[str, Any], progress: ProgressReporter
) -> tuple[Any, int]:
    """Return the tracker of Weights & Biases and the last step that its run has; offline where it must be."""
    import wandb
    from accelerate.tracking import WandBTracker

    arguments: dict[str, Any] = {
        "id": state["id"],
        "name": folder.name,
        "dir": str(folder),
        "resume": "allow",
        # Its copy of the terminal's text would hold every redrawing of the panel; what matters is said below.
        "settings": wandb.Settings(console="off", silent=True, init_timeout=30),
    }
    wandb.setup(wandb.Settings(silent=True))
    chosen = "WANDB_MODE" in os.environ
    reason = "" if chosen or wandb.login(prompt=False, verify=False) else "nobody is logged in (wandb login)"
    tracker = WandBTracker(config.tracking.project, **arguments, **({"mode": "offline"} if reason else {}))
    try:
        tracker.start()
    except Exception as error:
        if chosen or reason:
            raise
        wandb.teardown()  # the failed start still holds the run's name
        reason = f"its server cannot be reached ({type(error).__name__})"
        tracker = WandBTracker(config.tracking.project, **arguments, mode="offline")
        tracker.start()
    tracker.store_init_configuration(flatten(config))
    if tracker.run.offline:
        # An offline run cannot be appended to: each process writes the whole curve, and the last one counts.
        progress.say(
            f"wandb works offline{': ' + reason if reason else ''}; send the run later with: wandb sync "
            f"{Path(tracker.run.dir).parent}"
        )
    else:
        progress.say(f"wandb: {tracker.run.url}")
    return tracker, int(tracker.run.starting_step) - 1
