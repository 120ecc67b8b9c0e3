"""What the command line does, for Python: train, evaluate, load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtail.config import TrainConfig, get_option, replace_options
from longtail.data import load_data
from longtail.data.counts import imbalance_factor
from longtail.errors import UserError
from longtail.methods import get_method
from longtail.models import Classifier
from longtail.options import make_config, parse_values, read_recipe
from longtail.reporting import write_report
from longtail.training.checkpoint import CheckpointFolder
from longtail.training.defaults import describe, pick_device, resolve
from longtail.training.evaluation import evaluate_classifier, write_evaluation
from longtail.training.progress import ProgressReporter
from longtail.training.run_folder import RunFolder, check_same_options, read_config
from longtail.training.stages import check_config, run_stages

_CHOOSE_DATA = ("data", "method", "imbalance", "source.profile", "source.root")


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        folder: of the run; ``report.html`` lies in it.
        evaluation: the figures of ``evaluation.json``, fractions in 0..1.
    """

    folder: Path
    evaluation: dict[str, Any]

    @property
    def report(self) -> Path:
        """Path of the report."""
        return self.folder / "report.html"

    def load(self) -> Classifier:
        """Return the trained classifier, in eval mode on the CPU."""
        return Classifier.load(self.folder)


def train(
    data: str | Path | None = None,
    *,
    recipe: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Result:
    """Train, evaluate and report.

    Args:
        data: a name (``digits-lt``, ``cifar100-lt``, ...) or a path; may be left out where the recipe, or the run that
            is resumed, says it.
        recipe: name of a recipe, or path of a YAML file; ``options`` go before it.
        resume: go on with the run in ``out`` (or start it, if there is none yet).
        overwrite: delete the run in ``out`` first.
        quiet: print nothing.
        options: as on the command line (:class:`longtail.config.TrainConfig`): ``epochs=20``, and groups as mappings,
            ``loss={"temperature": 0.07}``.

    Raises:
        UserError: one sentence that says what to mend; nothing that was there is lost.
        Interrupted, Diverged: the state is written; ``resume=True`` goes on.
    """
    given = read_recipe(recipe) if recipe else {}
    given |= parse_values(options, "train")
    if data is not None:
        given["data"] = str(data)
    say = ProgressReporter(quiet)
    if not given.get("data") and not (resume and given.get("out")):
        raise UserError("no data given: name a data set (such as digits-lt) or a path.")
    config = make_config(given)
    out = Path(config.out or default_folder(config))
    if resume and (out / "config.yaml").exists():
        config = _saved_config(out, given)
    elif not config.data:
        raise UserError(f"{out} holds no run to resume; name the data to start one.")
    get_method(config.method)
    splits = load_data(config.data, imbalance=config.imbalance, profile=config.source.profile, root=config.source.root)
    config, notes = resolve(config, splits)
    if resume and (out / "config.yaml").exists():
        # Compared as resolved: a batch larger than the data, say, is the same smaller one again.
        asked, _ = resolve(replace_options(config, given), splits)
        check_same_options(config, {key: get_option(asked, key) for key in given}, out)
    else:
        get_method(config.method).check(config, splits.train)
    for note in notes:
        say.say(note)
    counts = splits.train.class_counts
    say.say(
        f"{splits.name}: {len(splits.train)} training images, {splits.train.num_classes} classes of "
        f"{int(counts.max())} down to {int(counts.min())} (imbalance {imbalance_factor(counts):.0f}), "
        f"{len(splits.test)} test images"
    )
    say.say(f"{config.method}, chosen from the data: {describe(config, set(given))}")
    teacher = config.teacher.run
    if overwrite and teacher is not None and Path(teacher).resolve().is_relative_to(out.resolve()):
        raise UserError(f"--overwrite would delete the teacher {teacher}, which lies in {out}; choose another --out.")
    config = replace_options(config, {"out": str(out)})
    folder = RunFolder(out, resume=resume, overwrite=overwrite)
    try:
        if not folder.holds_run:
            folder.write_config(config)
        evaluation = run_stages(config, splits, folder, say)
        write_report(folder.path)
    finally:
        folder.close()
    say.say(summary(evaluation))
    result = Result(folder.path, evaluation)
    say.say(f"report: {result.report}")
    return result


def evaluate(run: str | Path, data: str | Path | None = None, *, device: str = "auto", quiet: bool = False) -> Result:
    """Evaluate a finished run again.

    Args:
        run: the run's folder.
        data: labelled images with the same classes; default: the test set of the run, whose ``evaluation.json``,
            ``per_class.csv`` and ``report.html`` are then written anew. Other data writes nothing.
        device: where to compute.
        quiet: print nothing.

    Raises:
        UserError: no run, an unreadable model, other classes.
    """
    path = Path(run)
    config = make_config(parse_values(read_config(path), f"{path / 'config.yaml'}"))
    classifier = Classifier.load(path)
    state = CheckpointFolder(path / "resume").load_meta()
    if state is not None:
        check_config(path, state)
    source = config.source
    splits = (
        load_data(str(data))
        if data is not None
        else load_data(config.data, imbalance=config.imbalance, profile=source.profile, root=source.root)
    )
    evaluation, rows = evaluate_classifier(classifier, splits.test, pick_device(device))
    if data is None:
        write_evaluation(path, evaluation, rows)
        write_report(path)
    ProgressReporter(quiet).say(summary(evaluation))
    return Result(path, evaluation)


def load(path: str | Path) -> Classifier:
    """Return the classifier of a run folder, in eval mode on the CPU; nothing is unpickled.

    Raises:
        UserError: a file is missing, cut off or changed.
    """
    return Classifier.load(path)


def default_folder(config: TrainConfig) -> str:
    """Return ``runs/DATA-METHOD-seedN``."""
    return f"runs/{Path(config.data).stem}-{config.method}-seed{config.seed}"


def summary(evaluation: dict[str, Any]) -> str:
    """Return the headline figures as one line, in per cent."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    bounds = evaluation["intervals"]["balanced_accuracy"]
    interval = f" [{percent(bounds[0])}, {percent(bounds[1])}]" if bounds else ""
    groups = "  ".join(
        f"{name} {percent(group['accuracy'])} ({group['classes']})" for name, group in evaluation["groups"].items()
    )
    return (
        f"test: top-1 {percent(evaluation['top1'])} %  balanced {percent(evaluation['balanced_accuracy'])} %"
        f"{interval}  {groups}  worst {evaluation['worst_class_name']} "
        f"{percent(evaluation['worst_class']['accuracy'])}"
    )


def _saved_config(out: Path, given: dict[str, Any]) -> TrainConfig:
    saved = make_config(parse_values(read_config(out), f"{out / 'config.yaml'}"))
    check_same_options(saved, {key: value for key, value in given.items() if key in _CHOOSE_DATA}, out)
    moved: dict[str, Any] = {key: given[key] for key in ("out", "device") if key in given}
    moved |= {key: value for key, value in given.items() if key.startswith("checkpoint.")}
    return replace_options(saved, moved)
