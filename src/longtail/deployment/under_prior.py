"""Figures of a finished model where classes come at other rates: shifted after the fact, nothing is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from longtail.errors import UserError
from longtail.metrics import GROUPS, MeanInterval, class_hits
from longtail.metrics.at_prior import accuracy_at_prior, finite_shift
from longtail.metrics.inputs import row_blocks
from longtail.metrics.paired import paired_by_image
from longtail.models import Classifier
from longtail.reporting.in_words import classes_tested
from longtail.reporting.terminal import print_table
from longtail.training.evaluation import Evaluation, summarise
from longtail.training.progress import ProgressReporter

_NAMES = {
    "top1": "top-1",
    "balanced_accuracy": "balanced",
    **{group: group for group in GROUPS},
    "at_prior": "at that prior",
}


def evaluate_under_prior(
    evaluation: Evaluation,
    classifier: Classifier,
    prior: Tensor,
    named: str,
    temperature: float | None,
    edges: Sequence[int],
) -> Evaluation:
    """Return an evaluation of the same test images with predictions shifted to ``prior [C]``; its logits are not.

    To the logits (divided by ``temperature`` where one was fitted) log(prior) - log(logit_prior) is added. The test
    images stay as they are, so top-1 is that of their own mix of classes; the figure that belongs to the prior is
    ``prior["accuracy"]``, each class's accuracy weighed by its prior. ``figures["prior"]`` holds it, what it is without
    the shift, and the shift's paired differences.

    Args:
        evaluation: of the model as it is.
        classifier: the model.
        prior: float64 ``[C]`` with sum 1.
        named: how the user named the prior.
        temperature: see ``calibration.json``; None = 1.
        edges: group edges of the run.

    Raises:
        UserError: no class has both test images and a positive prior.
    """
    tested = torch.bincount(evaluation.labels, minlength=len(prior)) > 0
    if not bool((tested & (prior > 0)).any()):
        raise UserError(
            f"--prior {named}: no class with a positive prior has a test image; name a prior that gives a "
            "tested class a positive weight."
        )
    shift = finite_shift(classifier.prior_shift(prior))
    shifted = (block / (temperature or 1.0) + shift for _, block in row_blocks(evaluation.logits))
    counts, labels = classifier.class_counts.cpu(), evaluation.labels
    names = classifier.class_names
    result = summarise(evaluation.logits, labels, counts, prior, names, edges, parts=shifted)
    before, after = evaluation.predictions, result.predictions
    differences = paired_by_image(after == labels, before == labels, labels, counts, (edges[0], edges[1]))
    expected, as_it_was = (accuracy_at_prior(*class_hits(p, labels, len(names)), prior) for p in (after, before))
    record: dict[str, Any] = {
        "named": named,
        "prior": prior.tolist(),
        "temperature": temperature,
        "accuracy": expected[0]._asdict(),
        "accuracy_without_shift": as_it_was[0]._asdict(),
        "prior_with_test_images": expected[1],
        "differences": {k: None if v is None else v._asdict() for k, v in differences.items()},
    }
    chosen = {key: evaluation.figures[key] for key in ("selection", "selected") if key in evaluation.figures}
    return replace(result, figures=result.figures | chosen | {"prior": record})


def print_figures(say: ProgressReporter, figures: dict[str, Any]) -> None:
    """Print headline figures and those of each group with their intervals and numbers of classes."""
    rows = []
    for key in ("top1", "balanced_accuracy", *GROUPS):
        value = figures["groups"][key]["accuracy"] if key in GROUPS else figures[key]
        of = classes_tested(figures["groups"][key] if key in GROUPS else figures)
        rows.append([_NAMES[key], of, _cell(value, figures["intervals"].get(key))])
    print_table(say, f"{figures['test_images']} test images", ["figure", "classes tested", "per cent [95 %]"], rows)


def print_under_prior(say: ProgressReporter, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Print figures without and with the shift side by side, and what they mean."""
    record = after["prior"]
    rows = []
    for key in ("top1", "balanced_accuracy", *GROUPS):
        values = [f["groups"][key]["accuracy"] if key in GROUPS else f[key] for f in (before, after)]
        cells = [_cell(value, f["intervals"].get(key)) for value, f in zip(values, (before, after), strict=True)]
        change = record["differences"][key]
        rows.append([_NAMES[key], *cells, "-" if change is None else _shown(MeanInterval(**change), "+")])
    expected = [MeanInterval(**record[key]) for key in ("accuracy_without_shift", "accuracy")]
    gained = f"{100 * (expected[1].mean - expected[0].mean):+.1f}"
    rows.append([_NAMES["at_prior"], *(_shown(value) for value in expected), gained])
    title = f"{after['test_images']} test images; per cent [95 %]"
    print_table(say, title, ["figure", "as it is", f"prior {record['named']}", "difference"], rows)
    divided = "" if record["temperature"] is None else f", divided by the temperature {record['temperature']:.4g},"
    say.say(
        f"prior {record['named']}: log(prior) - log(the prior that the model's softmax implies) is added to the "
        f"logits{divided} so the predictions change; the model and the test images do not."
    )
    say.say(
        "at that prior: each class's accuracy weighed by its prior, what to expect where classes come at these rates; "
        "the other figures are of the test images as they are."
    )
    missing = 1 - record["prior_with_test_images"]
    if missing > 5e-4:
        say.say(f"{100 * missing:.1f} % of the prior lies on classes without test images, which are left out.")


def _cell(value: float | None, bounds: Sequence[float] | None) -> str:
    return "-" if value is None else _shown(MeanInterval(value, *(bounds or (None, None))))


def _shown(value: MeanInterval, sign: str = "") -> str:
    text = f"{100 * value.mean:{sign}.1f}"
    if value.low is None or value.high is None:
        return text
    return f"{text} [{100 * value.low:{sign}.1f}, {100 * value.high:{sign}.1f}]"
