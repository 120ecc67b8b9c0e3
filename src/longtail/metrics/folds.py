"""Figures over folds: each image tested by a model that had not seen it, and how much the figures scatter."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from longtail.metrics.groups import GROUPS
from longtail.metrics.intervals import LEVEL, mean_interval

FOLD_FIGURES = ("top1", "balanced_accuracy", *GROUPS, "worst_class", "ece")


def fold_figures(evaluations: Sequence[dict[str, Any]], folds: int, repeats: int) -> dict[str, Any]:
    """Return what the evaluations of all folds say together, ready for JSON.

    The folds of one repeat share most of their training images, and the repeats share all images. So their figures
    are not independent: `sd` and `interval` say how much they move with the split and with the chance in training,
    and understate how much they would move with new data (Bengio & Grandvalet, JMLR 2004: no unbiased estimate of
    that variance exists).

    Args:
        evaluations: of `evaluate_predictions`, one a fold: all folds of the first repeat, then of the second, ...
        folds: number of folds of a repeat.
        repeats: how often the folds were dealt.

    Returns:
        {"folds", "repeats", "test_images": [one a fold], "figures"}. For each of `FOLD_FIGURES`, `figures` holds
        `mean` and `sd` (n - 1) over the folds that have the figure, `values` (one a fold, None where it is not
        defined), `undefined` (the number of those), `repeat_means` (over the folds of each repeat), and `interval`:
        [low, high] of the Student-t interval at `LEVEL` of the mean of the repeats, cut to 0..1, None with fewer than
        two.
        "worst_class" also has `test_images`: those of each fold's worst class, None where not recorded. `mean` is None
        without a value, `sd` with fewer than two.

    Raises:
        ValueError: if there are not `folds` x `repeats` evaluations, or one lacks a figure.
    """
    if folds < 2 or repeats < 1 or len(evaluations) != folds * repeats:
        raise ValueError(f"{repeats} x {folds} folds need as many evaluations, got {len(evaluations)}.")
    figures = {name: _scatter([figure_value(e, name) for e in evaluations], folds) for name in FOLD_FIGURES}
    figures["worst_class"]["test_images"] = [e["worst_class"].get("test_images") for e in evaluations]
    return {
        "folds": folds,
        "repeats": repeats,
        "level": LEVEL,
        "test_images": [e["test_images"] for e in evaluations],
        "figures": figures,
    }


def figure_value(evaluation: dict[str, Any], name: str) -> float | None:
    """Return a figure of an evaluation: of a group or the worst class its accuracy; None where it is not defined.

    Raises ValueError if the evaluation lacks it.
    """
    try:
        if name in GROUPS:
            value = evaluation["groups"][name]["accuracy"]
        else:
            value = evaluation["worst_class"]["accuracy"] if name == "worst_class" else evaluation[name]
    except KeyError as missing:
        raise ValueError(f"an evaluation lacks {missing}.") from None
    return None if value is None else float(value)


def _scatter(values: list[float | None], folds: int) -> dict[str, Any]:
    """Return mean, scatter and interval of one figure; ``values`` one a fold, repeat after repeat."""
    known = [value for value in values if value is not None]
    by_repeat = [[v for v in values[at : at + folds] if v is not None] for at in range(0, len(values), folds)]
    means = [fmean(of_repeat) for of_repeat in by_repeat if of_repeat]
    _, low, high = mean_interval(means) if means else (None, None, None)
    return {
        "mean": fmean(known) if known else None,
        "sd": stdev(known) if len(known) > 1 else None,
        "values": values,
        "undefined": len(values) - len(known),
        "repeat_means": means,
        "interval": None if low is None or high is None else [max(0.0, low), min(1.0, high)],
    }
