"""From a classifier and labelled images to figures and files."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtail.data import ImageSet
from longtail.errors import UserError
from longtail.files import write_bytes, write_json
from longtail.metrics import balanced_accuracy, class_recall, evaluate_predictions, per_class_table
from longtail.models import Classifier


def collect_logits(classifier: Classifier, images: ImageSet, device: torch.device) -> Tensor:
    """Return logits ``[N, C]`` (float32, CPU) of every image, undisturbed by augmentation."""
    if classifier.class_names != images.class_names:
        raise UserError(
            f"the data's {images.num_classes} classes are not the {classifier.num_classes} classes of the model; "
            "evaluate on data with the same classes in the same order."
        )
    return classifier.to(device).logits(images.images)


def evaluate_classifier(
    classifier: Classifier, images: ImageSet, device: torch.device
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return ``(evaluation, per-class rows)`` on ``images``; groups are by the model's training counts."""
    logits = collect_logits(classifier, images, device)
    counts, prior = classifier.class_counts.cpu(), classifier.logit_prior.cpu()
    evaluation = evaluate_predictions(logits, images.labels, counts, prior)
    evaluation["selection"] = "last"
    evaluation["class_names"] = list(images.class_names)
    evaluation["class_counts"] = counts.tolist()
    evaluation["worst_class_name"] = images.class_names[evaluation["worst_class"]["class"]]
    return evaluation, per_class_table(logits, images.labels, counts, images.class_names)


def quick_look(classifier: Classifier, images: ImageSet, device: torch.device) -> dict[str, float]:
    """Return test top-1 and balanced accuracy, for a curve; nothing may be selected by them."""
    predictions = collect_logits(classifier, images, device).argmax(1)
    recall = class_recall(predictions, images.labels, images.num_classes)
    return {
        "test_top1": float((predictions == images.labels).double().mean()),
        "test_balanced_accuracy": float(balanced_accuracy(recall)),
    }


def write_evaluation(folder: Path, evaluation: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write ``per_class.csv`` and ``evaluation.json`` into ``folder``; the latter last, as the mark of completion."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(folder / "per_class.csv", text.getvalue().encode())
    write_json(folder / "evaluation.json", evaluation)
