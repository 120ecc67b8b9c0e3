"""What a run folder says of its model, as far as it is there: another machine may have the model alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtail.data.sources import is_named
from longtail.errors import UserError
from longtail.files import load_meta
from longtail.hub import HUB, fetch_model
from longtail.models import Classifier
from longtail.reporting.run_record import ClassRow, DataRecord, read_classes, read_data, read_evaluation
from longtail.training.calibration import read_calibration, read_temperature
from longtail.training.kept_encoder import with_encoder
from longtail.training.run_folder import read_config, read_environment


@dataclass(frozen=True)
class RunRecords:
    """What lies in a run folder; None where a file is not there."""

    config: dict[str, Any] | None
    evaluation: dict[str, Any] | None
    classes: list[ClassRow]
    data: DataRecord | None
    environment: dict[str, dict[str, Any]]
    calibration: dict[str, Any] | None

    @property
    def data_named(self) -> bool:
        """Whether the data is a named data set, here or on the hub, not a folder or file of the user's."""
        name = str((self.config or {}).get("data") or "")
        return is_named(name)


def read_records(run: Path) -> RunRecords:
    """Return what lies in ``run``; a record that is cut off or of another form is a UserError."""
    evaluation = read_evaluation(run / "evaluation.json") if (run / "evaluation.json").exists() else None
    table_file = run / "per_class.csv"
    return RunRecords(
        config=read_config(run) if (run / "config.yaml").exists() else None,
        evaluation=evaluation,
        classes=read_classes(table_file, evaluation["classes"]) if evaluation and table_file.exists() else [],
        data=read_data(run / "data.json"),
        environment=read_environment(run / "environment.json"),
        calibration=read_calibration(run),
    )


def find_run(run: str | Path) -> Path:
    """Return the folder of a run, or of the model ``hf-hub:owner/name[@revision]``, which is then fetched.

    Raises:
        UserError: the hub does not give it.
    """
    return fetch_model(str(run)) if str(run).startswith(HUB) else Path(run)


def is_dense(run: Path) -> bool:
    """Return whether a run folder, or a folder with its model alone, is one of segmentation; False where none is.

    What cannot be read is none either: whoever goes on with it says so.
    """
    try:
        if (run / "config.yaml").is_file():
            return read_config(run).get("task") == "segmentation"
        spec = load_meta(run, "model").get("spec") if (run / "model.json").is_file() else None
    except UserError:
        return False
    return isinstance(spec, dict) and spec.get("task") == "segmentation"


def load_classifier(folder: Path, features: bool = False) -> Classifier:
    """Return the classifier of the run in ``folder``, in eval mode on the CPU, with the temperature fitted there.

    One that was trained on features is given the encoder that made them, where the run keeps it, and then takes images;
    unless ``features`` says that it is features that it will be given.

    Raises:
        UserError: the folder holds no finished run, or a file in it is cut off or changed.
    """
    if not (folder / "model.json").exists() and (folder / "fold-0" / "model.json").exists():
        raise UserError(f"{folder} holds the folds of a run; name one of them, such as {folder / 'fold-0'}.")
    check_has_model(folder)
    classifier = Classifier.load(folder)
    classifier.temperature = read_temperature(folder)
    return with_encoder(classifier, folder) if classifier.takes_features and features is False else classifier


def check_has_model(folder: Path) -> None:
    """Raise :class:`UserError` if there is no model in ``folder``, or none yet."""
    if (folder / "model.json").exists():
        return
    if (folder / "config.yaml").exists():
        raise UserError(f"the run in {folder} has no model yet; go on with longtail train --out {folder} --resume.")
    what = "it has no model.json" if folder.exists() else "there is no such folder"
    raise UserError(f"{folder} is not a run folder: {what}.")
