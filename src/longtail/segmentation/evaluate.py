"""``longtail evaluate`` for a run on masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longtail.config import replace_options
from longtail.data.streaming import default_workers
from longtail.deployment.run_records import check_has_model, find_run
from longtail.errors import UserError
from longtail.files import as_json, check_output, read_json, write_output
from longtail.options import make_config, parse_values
from longtail.segmentation.data.sources import load_masks
from longtail.segmentation.evaluation import (
    dense_summary,
    dense_warnings,
    evaluate_segmenter,
    write_dense_evaluation,
)
from longtail.segmentation.models import Segmenter
from longtail.segmentation.report import write_dense_gallery, write_dense_report
from longtail.segmentation.result import DenseResult
from longtail.segmentation.run import read_masks, test_view, with_view
from longtail.training.checkpoint import CheckpointFolder
from longtail.training.devices import pick_device
from longtail.training.progress import ProgressReporter
from longtail.training.run_folder import read_config
from longtail.training.stages import check_config


def evaluate_masks(
    run: str | Path,
    data: str | Path | None = None,
    *,
    window: Sequence[int] | None = None,
    stride: float | None = None,
    scales: Sequence[float] | None = None,
    mirror: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    quiet: bool = False,
) -> DenseResult:
    """Evaluate a finished run on masks again.

    Args:
        run: the run's folder.
        data: other images with masks of the same classes: their test set or, where they are not split, all of them;
            default: the test set of the run. Only without data and with its own settings are the run's
            ``evaluation.json``, ``per_class.csv`` and ``report.html`` written anew.
        window: height and width of a sliding window in pixels; default: as the run was tested.
        stride: share of the window that the next one is moved by.
        scales: sizes that are averaged, relative to the image, such as 0.75,1,1.25.
        mirror: average with the mirror image.
        out: also write the figures to this .json file.
        overwrite: replace the file at out.
        device: where to compute.
        quiet: print nothing.

    Raises:
        UserError: no run, an unreadable model, other classes, or out is taken.
    """
    path, say = find_run(run), ProgressReporter(quiet)
    target = None if out is None else check_output(Path(out), overwrite, (".json",))
    check_has_model(path)
    config = make_config(parse_values(read_config(path), f"{path / 'config.yaml'}"))
    as_trained = config.segmentation
    config = with_view(config, window, stride, scales, mirror)
    own = config.segmentation
    state = CheckpointFolder(path / "resume").load_meta()
    if state is not None:
        check_config(path, state)
    segmenter = Segmenter.load(path)
    if data is None:
        test = read_masks(config, say).test
        known = (state or {}).get("identity", {}).get("test")
        if known is not None and test.fingerprint() != known:
            raise UserError(
                f"the test set of {config.data} is not what the run in {path} was started with; restore it, or give "
                f"images with masks to evaluate on: longtail evaluate {path} DATA."
            )
    else:
        other = replace_options(config, {"data": str(data), "val_fraction": 0.0, "source.test": None})
        test = load_masks(
            other.data,
            root=None,
            source=other.source,
            options=other.segmentation,
            val_fraction=0.0,
            on_bad=other.on_bad_image,
            workers=default_workers(None),
            test_only=True,
        ).test
    if test.class_names != segmenter.class_names:
        raise UserError(
            f"the data's {test.num_classes} classes are not the {segmenter.num_classes} classes of the model; evaluate "
            "on masks with the same classes in the same order."
        )
    view = test_view(config)
    known_images = read_json(path / "data.json").get("train_images") if (path / "data.json").exists() else None
    evaluated = evaluate_segmenter(
        segmenter, test, pick_device(device), own, config.loading.workers, view, known_images
    )
    if data is None and own == as_trained:
        evaluated.figures["selection"] = _selection(path)
        write_dense_gallery(path, segmenter, evaluated, test, view)
        write_dense_evaluation(path, evaluated)
        write_dense_report(path)
    say.say(dense_summary(evaluated.figures))
    for line in dense_warnings(evaluated.figures):
        say.say(line)
    if target is not None:
        write_output(target, as_json(evaluated.figures))
        say.say(f"{target}")
    return DenseResult(path, evaluated.figures)


def _selection(path: Path) -> object:
    """Return which epoch the run's weights are of, as its evaluation says."""
    file = path / "evaluation.json"
    return read_json(file).get("selection", "last") if file.exists() else "last"
