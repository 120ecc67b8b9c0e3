"""``longtail evaluate``: the figures of a finished run, on its test set or on other data, at a prior."""

from __future__ import annotations

from pathlib import Path

from longtail.config import TrainConfig
from longtail.data import FeatureSet
from longtail.data.sources import is_features
from longtail.deployment.priors import find_prior
from longtail.deployment.result import Result
from longtail.deployment.run_records import check_has_model, find_run, load_classifier
from longtail.deployment.under_prior import evaluate_under_prior, print_figures, print_under_prior
from longtail.errors import UserError
from longtail.files import as_json, check_output, write_output
from longtail.models import Classifier, with_crops
from longtail.options import make_config, parse_values
from longtail.reporting import fold_summary, summary, warnings, write_report
from longtail.training.calibration import read_temperature, with_validation
from longtail.training.checkpoint import CheckpointFolder
from longtail.training.devices import pick_device
from longtail.training.evaluation import evaluate_classifier, write_evaluation
from longtail.training.folds import fold_folders, pool_folds
from longtail.training.gallery import write_gallery
from longtail.training.kept_encoder import check_same_encoder
from longtail.training.progress import ProgressReporter
from longtail.training.run_data import read_other_data, read_run_data
from longtail.training.run_folder import read_config
from longtail.training.shortlists import with_shortlists
from longtail.training.stages import check_config
from longtail.training.zero_shot import with_zero_shot


def evaluate(
    run: str | Path,
    data: str | Path | None = None,
    *,
    root: str | Path | None = None,
    on_bad_image: str = "error",
    unknown_labels: str = "error",
    path_column: str | None = None,
    label_column: str | None = None,
    prior: str | None = None,
    crops: int = 1,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    quiet: bool = False,
) -> Result:
    """Evaluate a finished run again.

    Args:
        run: the run's folder; with data also one that holds its model alone, or hf-hub:owner/name.
        data: labelled images with the same classes: their test set or, where they are not split, all of them; default:
            the test set of the run, whose ``evaluation.json``, ``per_class.csv`` and ``report.html`` are then written
            anew. Other data writes nothing.
        root: folder that paths in ``data`` are relative to.
        on_bad_image: ``"error"`` or ``"skip"``, for files of ``data`` that cannot be read.
        unknown_labels: ``"error"`` or ``"skip"``, for images of ``data`` of classes that the model does not know.
        path_column: column of ``data``, a table, that holds the paths or the images; default: as for the training.
        label_column: column of ``data``, a table, that holds the labels; default: as for the training.
        prior: figures where classes come at other rates: uniform, train, or a table with the columns class,prior. The
            predictions are shifted for it (see ``Classifier.predict``); the run's own files stay as they are.
        crops: look at 5 crops of every image, or 10 with their mirror images, and average; default: its centre alone.
            The run's own files stay as they are.
        out: also write the figures to this .json file.
        overwrite: replace the file at out.
        device: where to compute.
        quiet: print nothing.

    Raises:
        UserError: no run, an unreadable model, other classes, a prior that is none, or out is taken.
    """
    path, say = find_run(run), ProgressReporter(quiet)
    target = None if out is None else check_output(Path(out), overwrite, (".json",))
    named = {"path_column": path_column, "label_column": label_column}
    columns = {option: name for option, name in named.items() if name is not None}
    if data is None and (root is not None or on_bad_image != "error" or unknown_labels != "error" or columns):
        raise UserError(
            "--root, --on_bad_image, --unknown_labels, --path_column and --label_column are for other data; name it: "
            "longtail evaluate RUN DATA."
        )
    alone = data is not None and not (path / "config.yaml").exists() and (path / "model.json").exists()
    config = TrainConfig() if alone else make_config(parse_values(read_config(path), f"{path / 'config.yaml'}"))
    if config.folds is not None and config.source.fold is None:
        if data is not None or prior is not None or crops > 1:
            raise UserError(
                f"{path} holds the folds of a run; evaluate one of them on other data, at another prior or by crops, "
                f"such as {path}/fold-0."
            )
        for folder in fold_folders(path, config):
            evaluate(folder, device=device, quiet=True)
        pooled = pool_folds(path, config)
        write_evaluation(path, pooled)
        write_report(path)
        say.say(fold_summary(pooled.figures))
        for line in warnings(pooled.figures):
            say.say(line)
        if target is not None:
            write_output(target, as_json(pooled.figures))
        return Result(path, pooled.figures)
    check_has_model(path)
    # A run on features is one on images too, where it keeps the encoder.
    classifier = Classifier.load(path) if data is None else load_classifier(path, is_features(str(data)))
    classifier = with_crops(classifier, crops)
    expected = None if prior is None else find_prior(prior, classifier)
    state = CheckpointFolder(path / "resume").load_meta()
    if state is not None:
        check_config(path, state)
    where, workers = pick_device(device), config.loading.workers
    if data is None:
        splits = read_run_data(path, config, state, say, classifier.framing if crops > 1 else None)
        test = splits.test
    else:
        test = read_other_data(path, config, classifier, str(data), root, on_bad_image, unknown_labels, columns, say)
    if isinstance(test, FeatureSet):
        check_same_encoder(path, config.data if data is None else str(data), test.origin)
    evaluated = evaluate_classifier(classifier, test, where, config.group_edges, workers, path)
    evaluated = with_validation(path, evaluated, classifier.logit_prior)
    if expected is not None:
        as_it_is, temperature = evaluated.figures, read_temperature(path)
        evaluated = evaluate_under_prior(evaluated, classifier, expected, str(prior), temperature, config.group_edges)
        print_under_prior(say, as_it_is, evaluated.figures)
    else:
        evaluated = with_shortlists(path, evaluated, classifier.logit_prior)
        if data is None and crops == 1:
            evaluated = with_zero_shot(path, evaluated)
            if not isinstance(test, FeatureSet):
                write_gallery(path, classifier, evaluated, splits.train, test)
            write_evaluation(path, evaluated, keep_logits=config.folds is not None)
            write_report(path)
        say.say(summary(evaluated.figures))
        for line in warnings(evaluated.figures):
            say.say(line)
        print_figures(say, evaluated.figures)
    if target is not None:
        write_output(target, as_json(evaluated.figures))
        say.say(f"{target}")
    return Result(path, evaluated.figures)
