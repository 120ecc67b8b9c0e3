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
from longtail.data.streaming import default_workers, plain_places
from longtail.errors import UserError
from longtail.files import load_tensors, save_tensors, write_bytes, write_json
from longtail.metrics import GROUP_EDGES, balanced_accuracy, class_recall
from longtail.metrics.per_image import PerImage, summarise_logits
from longtail.metrics.summary import class_rows, figures_of
from longtail.models import Classifier
from longtail.ranks import Ranks
from longtail.training.logit_store import logit_store
from longtail.training.shared_logits import logits_in_turn

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
    ranks: Ranks | None = None,
) -> Tensor:
    """Return logits ``[N, C]`` (float32, CPU) of every image, undisturbed by augmentation.

    Files that are not framed yet are brought to the size that the classifier was trained at; ``workers`` processes
    decode them. Logits of more than 1 GiB lie in a file without a name in ``scratch`` (see ``logit_store``).

    With ``compact``, logits that would take more than 256 MiB are float16 below each row's largest, which is 0:
    half the memory, and a softmax is the same but for 0.4 % of each probability above e^-8.

    Of several ``ranks`` each computes a share; the first calls this, the others :func:`help_evaluate`.
    """
    parts = _batches(classifier, images, device, workers, ranks)
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


def help_evaluate(
    classifier: Classifier, images: LabelledImages, device: torch.device, workers: int | None, ranks: Ranks
) -> None:
    """Compute this process's share of the logits that the first process collects at the same time."""
    for _ in _batches(classifier, images, device, workers, ranks):
        pass


def _batches(
    classifier: Classifier,
    images: LabelledImages,
    device: torch.device,
    workers: int | None,
    ranks: Ranks | None = None,
) -> Iterator[Tensor]:
    if classifier.class_names != images.class_names:
        raise UserError(
            f"the data's {images.num_classes} classes are not the {classifier.num_classes} classes of the model; "
            "evaluate on data with the same classes in the same order."
        )
    # Refused here and now, not when the first part is asked for: hence no generator itself, but returning one.
    classifier = classifier.to(device)
    batch = _BATCH if isinstance(images, ImageFiles) else _RESIDENT_BATCH
    starts = range(0, len(images), batch)
    own = starts if ranks is None else starts[ranks.rank :: ranks.world]
    parts = (
        classifier.logits(part)
        for part in _inputs(
            images,
            [(s, min(s + batch, len(images))) for s in own],
            default_workers(device) if workers is None else workers,
            device.type != "cpu",
        )
    )
    if ranks is None or ranks.alone:
        return parts
    sizes = [min(batch, len(images) - start) for start in starts]
    return logits_in_turn(parts, sizes, classifier.num_classes, ranks, device)


def _inputs(images: LabelledImages, places: Sequence[tuple[int, int]], workers: int, pin: bool) -> Iterator[Tensor]:
    """Yield what the classifier takes of the images from start to end of every place."""
    if isinstance(images, ImageSet):
        return (images.images[start:end] for start, end in places)
    if isinstance(images, FeatureSet):
        return (images.features[start:end, 0].float() for start, end in places)
    if not isinstance(images, ImageFiles):
        raise ValueError(f"there is no way to read {type(images).__name__}")
    return plain_places(images, places, workers, pin=pin)


def evaluate_classifier(
    classifier: Classifier,
    images: LabelledImages,
    device: torch.device,
    edges: Sequence[int] = GROUP_EDGES,
    workers: int | None = None,
    scratch: Path | None = None,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Evaluate on ``images``; groups are by the model's training counts, with the edges (many above, few below).

    Logits of more than 1 GiB lie in a file without a name in ``scratch`` (see ``logit_store``).
    Of several ``ranks`` each computes a share; the first calls this, the others :func:`help_evaluate`.
    """
    logits = logit_store(len(images), classifier.num_classes, scratch)
    parts = _stored(_batches(classifier, images, device, workers, ranks), logits)
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
    classifier: Classifier,
    images: LabelledImages,
    device: torch.device,
    workers: int | None = None,
    of: str = "test",
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """Return top-1 and balanced accuracy on a set named ``of``, for a curve; nothing may be selected by the test's.

    Of several ``ranks`` each computes a share, and all call this and get the figures.
    """
    parts = [logits.argmax(1) for logits in _batches(classifier, images, device, workers, ranks)]
    if ranks is not None and not ranks.alone:
        # Others than the first have seen their own share only: what it found is told to all.
        figures: dict[str, float] = ranks.share(_looked(torch.cat(parts), images, of) if ranks.is_main else None)
        return figures
    return _looked(torch.cat(parts), images, of)


def _looked(predictions: Tensor, images: LabelledImages, of: str) -> dict[str, float]:
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
