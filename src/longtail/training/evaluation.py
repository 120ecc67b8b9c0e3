"""From a classifier and labelled images to figures and files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtail.data import FeatureSet, ImageFiles, ImageSet, LabelledImages
from longtail.data.streaming import default_workers, plain_frames
from longtail.errors import UserError
from longtail.files import load_tensors, save_tensors, write_bytes, write_json
from longtail.metrics import GROUP_EDGES, balanced_accuracy, class_recall
from longtail.metrics.per_image import PerImage, summarise_logits
from longtail.metrics.summary import class_rows, figures_of
from longtail.models import Classifier
from longtail.training.logit_store import logit_store

_BATCH = 64
_RESIDENT_BATCH = 1024
PREDICTIONS = "predictions"
_LOWEST = -60000.0  # float16 has no number below -65504
MOST_BYTES = 2**28
"""Logits that take more are not kept: 256 MiB, which 8000 images of 8000 classes just fill."""


@dataclass(frozen=True)
class Evaluation:
    """What a model did on a test set.

    Attributes:
        figures: the content of ``evaluation.json``.
        rows: those of ``per_class.csv``.
        logits: float32 ``[N, C]``; many of them lie in a file, so read them a block of rows at a time.
        labels: int64 ``[N]``.
        predictions: int64 ``[N]``, the class of the highest logit.
        confidence: float64 ``[N]``, its softmax probability.
        files: paths of the images as listed; None if they were arrays.
    """

    figures: dict[str, Any]
    rows: list[dict[str, Any]]
    logits: Tensor
    labels: Tensor
    predictions: Tensor
    confidence: Tensor
    files: list[str] | None = None


def collect_logits(
    classifier: Classifier,
    images: LabelledImages,
    device: torch.device,
    workers: int | None = None,
    scratch: Path | None = None,
    compact: bool = False,
) -> Tensor:
    """Return logits ``[N, C]`` (float32, CPU) of every image, undisturbed by augmentation.

    Files that are not framed yet are brought to the size that the classifier was trained at; ``workers`` processes
    decode them. Logits of more than 1 GiB lie in a file without a name in ``scratch`` (see ``logit_store``).

    With ``compact``, logits that would take more than 256 MiB are float16 below each row's largest, which is 0:
    half the memory, and a softmax is the same but for 0.4 % of each probability above e^-8.
    """
    parts = _batches(classifier, images, device, workers)
    if compact and 4 * len(images) * classifier.num_classes > MOST_BYTES:
        kept = torch.empty(len(images), classifier.num_classes, dtype=torch.float16)
        parts = ((part - part.amax(1, keepdim=True)).clamp(min=_LOWEST) for part in parts)
    else:
        kept = logit_store(len(images), classifier.num_classes, scratch)
    for _ in _stored(parts, kept):
        pass
    return kept


def _stored(parts: Iterator[Tensor], into: Tensor) -> Iterator[Tensor]:
    """Yield the parts of the logits, each once it is written to its rows of ``into [N, C]``."""
    done = 0
    for part in parts:
        into[done : done + len(part)] = part
        done += len(part)
        yield part


def _batches(
    classifier: Classifier, images: LabelledImages, device: torch.device, workers: int | None
) -> Iterator[Tensor]:
    if classifier.class_names != images.class_names:
        raise UserError(
            f"the data's {images.num_classes} classes are not the {classifier.num_classes} classes of the model; "
            "evaluate on data with the same classes in the same order."
        )
    # Refused here and now, not when the first part is asked for: hence no generator itself, but returning one.
    classifier = classifier.to(device)
    if isinstance(images, ImageSet):
        return (classifier.logits(part) for part in torch.split(images.images, _RESIDENT_BATCH))
    if isinstance(images, FeatureSet):
        return (classifier.logits(part[:, 0].float()) for part in torch.split(images.features, _RESIDENT_BATCH))
    if not isinstance(images, ImageFiles):
        raise ValueError(f"there is no way to read {type(images).__name__}")
    workers = default_workers(device) if workers is None else workers
    pin = device.type != "cpu"
    return (classifier.logits(frames) for frames in plain_frames(images, _BATCH, workers, pin=pin))


def evaluate_classifier(
    classifier: Classifier,
    images: LabelledImages,
    device: torch.device,
    edges: Sequence[int] = GROUP_EDGES,
    workers: int | None = None,
    scratch: Path | None = None,
) -> Evaluation:
    """Evaluate on ``images``; groups are by the model's training counts, with the edges (many above, few below).

    Logits of more than 1 GiB lie in a file without a name in ``scratch`` (see ``logit_store``).
    """
    logits = logit_store(len(images), classifier.num_classes, scratch)
    parts = _stored(_batches(classifier, images, device, workers), logits)
    seen = summarise_logits(parts, images.labels, classifier.logit_prior.cpu())
    summary = _evaluation(seen, logits, classifier.class_counts.cpu(), images.class_names, edges)
    paths = images.paths
    return summary if paths is None else replace(summary, files=[paths[index] for index in range(len(paths))])


def summarise(
    logits: Tensor,
    labels: Tensor,
    class_counts: Tensor,
    logit_prior: Tensor,
    class_names: Sequence[str],
    edges: Sequence[int] = GROUP_EDGES,
    parts: Iterable[Tensor] | None = None,
) -> Evaluation:
    """Return every figure of ``logits [N, C]`` for ``labels [N]``; of ``parts`` of ``[N, C]`` instead, if given."""
    seen = summarise_logits([logits] if parts is None else parts, labels, logit_prior)
    return _evaluation(seen, logits, class_counts, class_names, edges)


def _evaluation(
    seen: PerImage, logits: Tensor, class_counts: Tensor, class_names: Sequence[str], edges: Sequence[int]
) -> Evaluation:
    many, few = edges
    figures = figures_of(seen, class_counts, (many, few))
    figures["selection"] = "last"
    figures["class_names"] = list(class_names)
    figures["class_counts"] = class_counts.tolist()
    worst = figures["worst_class"]["class"]
    figures["worst_class_name"] = class_names[worst]
    figures["worst_class"]["test_images"] = int((seen.labels == worst).sum())
    rows = class_rows(seen, class_counts, class_names, (many, few))
    return Evaluation(figures, rows, logits, seen.labels, seen.predictions, seen.confidence)


def quick_look(
    classifier: Classifier, images: LabelledImages, device: torch.device, workers: int | None = None, of: str = "test"
) -> dict[str, float]:
    """Return top-1 and balanced accuracy on a set named ``of``, for a curve; nothing may be selected by the test's."""
    predictions = torch.cat([logits.argmax(1) for logits in _batches(classifier, images, device, workers)])
    recall = class_recall(predictions, images.labels, images.num_classes)
    return {
        f"{of}_top1": float((predictions == images.labels).double().mean()),
        f"{of}_balanced_accuracy": float(balanced_accuracy(recall)),
    }


def save_predictions(folder: Path, evaluation: Evaluation, keep_logits: bool) -> None:
    """Keep a test set's predicted classes, labels and file names, to compare runs; its logits too, to pool folds."""
    tensors = {"predicted": evaluation.predictions.int(), "labels": evaluation.labels}
    if keep_logits:
        tensors["logits"] = evaluation.logits
    save_tensors(folder, PREDICTIONS, tensors, {} if evaluation.files is None else {"files": evaluation.files})


def load_predictions(folder: Path, stem: str = PREDICTIONS) -> tuple[Tensor, Tensor]:
    """Return ``(logits [N, C], labels [N])`` of the test set, or, with stem ``"validation"``, of the validation set."""
    tensors, _ = load_tensors(folder, stem)
    return tensors["logits"], tensors["labels"]


def write_evaluation(folder: Path, evaluation: Evaluation, keep_logits: bool = False) -> None:
    """Write ``per_class.csv``, predictions and ``evaluation.json`` into ``folder``; the last marks completion.

    Logits of more than 256 MiB are left out unless ``keep_logits``; predicted classes and labels are always there.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(evaluation.rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(evaluation.rows)
    write_bytes(folder / "per_class.csv", text.getvalue().encode())
    save_predictions(folder, evaluation, keep_logits or evaluation.logits.nbytes <= MOST_BYTES)
    write_json(folder / "evaluation.json", evaluation.figures)
