"""The headline figures of an evaluation as one line for the terminal."""

from __future__ import annotations

from typing import Any

from longtail.reporting.in_words import classes_tested


def summary(evaluation: dict[str, Any]) -> str:
    """Return the headline figures as one line, in per cent."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    bounds = evaluation["intervals"]["balanced_accuracy"]
    interval = f" [{percent(bounds[0])}, {percent(bounds[1])}]" if bounds else ""
    groups = "  ".join(
        f"{name} {percent(group['accuracy'])} ({classes_tested(group)})" for name, group in evaluation["groups"].items()
    )
    worst = evaluation["worst_class"]
    return (
        f"test: top-1 {percent(evaluation['top1'])} %  balanced {percent(evaluation['balanced_accuracy'])} %"
        f"{interval}  {groups}  worst {evaluation['worst_class_name']} {percent(worst['accuracy'])} "
        f"(of {worst['test_images']} test images)"
    )


def fold_summary(evaluation: dict[str, Any]) -> str:
    """Return the figures over folds as one line, in per cent: mean and standard deviation."""
    record = evaluation["folds"]

    def over(name: str) -> str:
        figure = record["figures"][name]
        if figure["mean"] is None:
            return "-"
        spread = "" if figure["sd"] is None else f" ± {100 * figure['sd']:.1f}"
        return f"{100 * figure['mean']:.1f}{spread}"

    names = {"top1": "top-1", "balanced_accuracy": "balanced", "many": "many", "medium": "medium", "few": "few"}
    shown = "  ".join(f"{label} {over(name)}" for name, label in names.items())
    runs = record["folds"] * record["repeats"]
    return (
        f"over {runs} folds (mean ± standard deviation): {shown}; pooled: {summary(evaluation).removeprefix('test: ')}"
    )
