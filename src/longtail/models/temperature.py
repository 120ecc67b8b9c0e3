"""What a run's logits are divided by, as it lies beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longtail.errors import UserError
from longtail.files import read_json

CALIBRATION = "calibration.json"


def read_calibration(folder: Path) -> dict[str, Any] | None:
    """Return a run's ``calibration.json``, None if it was trained without validation images.

    Raises:
        UserError: the file was cut off or changed.
    """
    path = folder / CALIBRATION
    if not path.exists():
        return None
    record = read_json(path)
    numbers = [record.get(key, 1.0) for key in ("temperature", "tau")] if isinstance(record, dict) else []
    sound = all(isinstance(value, int | float) and 0 <= value < float("inf") for value in numbers)
    if not numbers or not sound or not record.get("temperature"):
        raise UserError(f"{path} holds no temperature above 0; it was cut off or changed.")
    return dict(record)


def read_temperature(folder: Path) -> float | None:
    """Return what the logits of the run in ``folder`` are divided by, None if nothing was fitted.

    A temperature of exactly 1 says that the validation images could not tell: too few, or all classified rightly.

    Raises:
        UserError: as :func:`read_calibration`.
    """
    record = read_calibration(folder)
    return None if record is None or record["temperature"] == 1 else float(record["temperature"])
