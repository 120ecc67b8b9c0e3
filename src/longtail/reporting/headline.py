"""The figures of a report in the order in which they are read: headline, the rest, what was chosen after training."""

from __future__ import annotations

from typing import Any

from longtail.reporting.in_words import bits_note, classes_tested
from longtail.reporting.run_record import ClassRow
from longtail.reporting.svg import number


def group_sizes(edges: list[int]) -> dict[str, str]:
    """Return what many, medium and few mean, in words for "... training images"."""
    many, few = edges
    return {"many": f"more than {many}", "medium": f"{few} to {many}", "few": f"fewer than {few}"}


def headline(evaluation: dict[str, Any], teacher: dict[str, Any] | None, rows: list[ClassRow]) -> list[dict[str, Any]]:
    """Return the figures that come first: what, value, interval, what it is about, the teacher's, before training."""
    before = evaluation.get("zero_shot") or {"groups": {}}
    overall = [
        ("top1", "Top-1", "share of all test images right"),
        ("balanced_accuracy", "Balanced", "balanced accuracy: every class weighs the same"),
    ]
    cards = [
        {"label": label, "value": evaluation[key], "note": note, "teacher": teacher[key] if teacher else None}
        | {"interval": evaluation["intervals"].get(key), "missing": "", "group": "", "zero_shot": before.get(key)}
        for key, label, note in overall
    ]
    for group, size in group_sizes(evaluation["group_edges"]).items():
        images = sum(row.test_images for row in rows if row.group == group)
        figures = evaluation["groups"][group]
        count = figures["classes"]
        cards.append(
            {
                "label": group.capitalize(),
                "value": figures["accuracy"],
                "interval": evaluation["intervals"].get(group),
                "missing": "no such class" if not count else "no test image",
                "note": f"{classes_tested(figures)} {'class' if count == 1 else 'classes'} with {size} training images"
                + (f"; {number(images)} test images" if images else ""),
                "teacher": teacher["groups"][group]["accuracy"] if teacher else None,
                "group": group,
                "zero_shot": before["groups"].get(group, {}).get("accuracy"),
            }
        )
    return cards


def all_figures(evaluation: dict[str, Any], teacher: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the figures beside the headline: name, what it means, values of this run and of the teacher."""
    floor = number(evaluation.get("harmonic_mean_floor", 0.0))
    entropy = evaluation.get("label_entropy_bits")
    of_entropy = "" if entropy is None else f", of {entropy:.2f} bits in the test labels"
    below = bits_note(figures.get("mutual_information_bits") for figures in (evaluation, teacher or {}))
    kinds = [
        ("top5", "Top-5", "right class among the five first", "percent"),
        ("harmonic_mean", "Harmonic mean", f"of class accuracies, each at least {floor}", "percent"),
        ("macro_f1", "Macro F1", "mean over classes", "percent"),
        ("ece", "Calibration error", "mean gap between confidence and accuracy; lower is better", "percent"),
        ("class_ece", "Calibration error by class", "the same within each class; lower is better", "percent"),
        ("mutual_information_bits", "Label information", f"lower bound{of_entropy}{below and '; ' + below}", "bits"),
    ]
    return [
        {"label": label, "note": note, "unit": unit, "value": evaluation.get(key)}
        | {"teacher": teacher.get(key) if teacher else None}
        for key, label, note, unit in kinds
    ]
