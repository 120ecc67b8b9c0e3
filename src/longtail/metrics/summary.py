"""Everything that is said about a model on a test set: one record, and one row a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longtail.metrics.accuracy import (
    HARMONIC_FLOOR,
    balanced_accuracy,
    class_hits,
    harmonic_mean,
    macro_f1,
    worst_class,
)
from longtail.metrics.calibration import (
    class_calibration_error,
    expected_calibration_error,
    reliability,
)
from longtail.metrics.confusion import called_one_class, confused_pairs, group_confusion, pair_counts
from longtail.metrics.groups import GROUP_EDGES, GROUPS, group_accuracy, group_index
from longtail.metrics.information import information_bits, label_entropy_bits
from longtail.metrics.inputs import checked_class_vector, checked_logits
from longtail.metrics.intervals import LEVEL, RESAMPLES, bootstrap_intervals, wilson_interval
from longtail.metrics.per_image import PerImage, summarise_logits


def evaluate_predictions(
    logits: Tensor,
    labels: Tensor,
    class_counts: Tensor,
    logit_prior: Tensor,
    edges: tuple[int, int] = GROUP_EDGES,
    seed: int = 0,
) -> dict[str, Any]:
    """Return every figure of a model on a test set, ready for JSON: fractions in 0..1, None for undefined.

    Every figure but `mutual_information_bits` takes the logits as they are; of equal logits the first wins.

    Args:
        logits: [N, C], finite.
        labels: [N] class indices.
        class_counts: [C] training images of each class.
        logit_prior: [C] class prior that softmax(logits) implies.
        edges: (many above, few below), in training images.
        seed: of the bootstrap.

    Returns:
        `test_images`, `classes` (C), `tested_classes`, `top1`, `top5` (None if C <= 5), `balanced_accuracy`,
        `groups`, `group_edges`, `worst_class` ({"class", "accuracy"}), `harmonic_mean`,
        `harmonic_mean_floor`, `macro_f1`, `ece`, `class_ece`, `mutual_information_bits` (None if a class
        with test images has `logit_prior` 0), `label_entropy_bits`, `intervals` ({"level", "method", "top1",
        "balanced_accuracy", "many", "medium", "few"}: [low, high] or None), `reliability` (15 bins),
        `confused_pairs` (the 50 most frequent, see there), `group_confusion` (see there) and `one_class` (see
        `called_one_class`).

    Raises:
        ValueError: for an empty test set, labels out of range, shapes that differ or a logit not finite.
    """
    checked_logits(logits, labels)
    checked_class_vector(logit_prior, logits.shape[1], "logit_prior")
    return figures_of(summarise_logits([logits], labels, logit_prior), class_counts, edges, seed)


def figures_of(
    seen: PerImage, class_counts: Tensor, edges: tuple[int, int] = GROUP_EDGES, seed: int = 0
) -> dict[str, Any]:
    """Return every figure of what was `seen` of a test set; arguments and record as in `evaluate_predictions`."""
    labels, predictions, confidence, num_classes = seen.labels, seen.predictions, seen.confidence, seen.num_classes
    class_counts = checked_class_vector(class_counts, num_classes, "class_counts")
    right = predictions == labels
    correct, total = class_hits(predictions, labels, num_classes)
    recall = correct.double() / total.double()
    worst, worst_recall = worst_class(recall)
    bounds = bootstrap_intervals(correct, total, class_counts, edges, seed=seed)
    return {
        "test_images": len(labels),
        "classes": num_classes,
        "tested_classes": int((total > 0).sum()),
        "top1": int(right.sum()) / len(labels),
        "top5": int((seen.rank < 5).sum()) / len(labels) if num_classes > 5 else None,
        "balanced_accuracy": balanced_accuracy(recall),
        "groups": group_accuracy(recall, class_counts, edges),
        "group_edges": list(edges),
        "worst_class": {"class": worst, "accuracy": worst_recall},
        "harmonic_mean": harmonic_mean(recall, HARMONIC_FLOOR),
        "harmonic_mean_floor": HARMONIC_FLOOR,
        "macro_f1": macro_f1(predictions, labels, num_classes),
        "ece": expected_calibration_error(confidence, right),
        "class_ece": class_calibration_error(confidence, right, labels, num_classes),
        "mutual_information_bits": (
            None if seen.log_likelihood is None else information_bits(seen.log_likelihood, labels, num_classes)
        ),
        "label_entropy_bits": label_entropy_bits(labels, num_classes),
        "intervals": {
            "level": LEVEL,
            "method": f"percentile bootstrap within each class, {RESAMPLES} resamples, seed {seed}",
            **{name: None if pair is None else list(pair) for name, pair in bounds.items()},
        },
        "reliability": reliability(confidence, right),
        "confused_pairs": confused_pairs(predictions, labels, num_classes),
        "group_confusion": group_confusion(predictions, labels, class_counts, edges),
        "one_class": called_one_class(predictions, labels, num_classes),
    }


def _most_confused(predictions: Tensor, labels: Tensor, num_classes: int) -> dict[int, tuple[int, int]]:
    """Return {true class: (its most frequent wrong prediction, how often)}; of equals, the first class."""
    confused: dict[int, tuple[int, int]] = {}
    true, predicted, counts = pair_counts(predictions, labels, num_classes)
    for label, prediction, count in zip(true.tolist(), predicted.tolist(), counts.tolist(), strict=True):
        if count > confused.get(label, (0, 0))[1]:
            confused[label] = (prediction, count)
    return confused


def per_class_table(
    logits: Tensor,
    labels: Tensor,
    class_counts: Tensor,
    class_names: Sequence[str],
    edges: tuple[int, int] = GROUP_EDGES,
) -> list[dict[str, Any]]:
    """Return one row a class, in class order.

    Args:
        logits: [N, C], finite.
        labels: [N] class indices.
        class_counts: [C] training images of each class.
        class_names: C names.
        edges: (many above, few below), in training images.

    Returns:
        Rows of `class` (index), `name`, `train_images`, `group`, `test_images`, `correct`, `accuracy`,
        `low` and `high` (95 % Wilson interval of the accuracy; 0 and 1 without test images),
        `mean_confidence` (of the predictions on the class's images), `most_confused_with` (name of the most
        frequent wrong prediction, "" if there is none) and `confused_count`. `accuracy` and
        `mean_confidence` are None for a class without test images.

    Raises:
        ValueError: as in `evaluate_predictions`, or if there are not C names.
    """
    checked_logits(logits, labels)
    uniform = torch.ones(logits.shape[1])
    return class_rows(summarise_logits([logits], labels, uniform), class_counts, class_names, edges)


def class_rows(
    seen: PerImage, class_counts: Tensor, class_names: Sequence[str], edges: tuple[int, int] = GROUP_EDGES
) -> list[dict[str, Any]]:
    """Return one row a class of what was `seen` of a test set; arguments and rows as in `per_class_table`."""
    labels, predictions, num_classes = seen.labels, seen.predictions, seen.num_classes
    if len(class_names) != num_classes:
        raise ValueError(f"there are {len(class_names)} class names for {num_classes} classes.")
    train_images = checked_class_vector(class_counts, num_classes, "class_counts").long().tolist()
    hits, images = class_hits(predictions, labels, num_classes)
    confidence_sums = torch.bincount(labels, weights=seen.confidence, minlength=num_classes).tolist()
    groups = group_index(class_counts, edges).tolist()
    confused = _most_confused(predictions, labels, num_classes)
    rows: list[dict[str, Any]] = []
    for index, (correct, total) in enumerate(zip(hits.tolist(), images.tolist(), strict=True)):
        low, high = wilson_interval(correct, total)
        other, count = confused.get(index, (-1, 0))
        rows.append(
            {
                "class": index,
                "name": class_names[index],
                "train_images": train_images[index],
                "group": GROUPS[groups[index]],
                "test_images": total,
                "correct": correct,
                "accuracy": correct / total if total else None,
                "low": low,
                "high": high,
                "mean_confidence": confidence_sums[index] / total if total else None,
                "most_confused_with": class_names[other] if count else "",
                "confused_count": count,
            }
        )
    return rows
