"""From a segmenter and images with masks to figures and files."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtail.data.streaming import default_workers
from longtail.errors import UserError
from longtail.exchange import summed
from longtail.files import load_tensors, save_tensors, write_bytes, write_json
from longtail.metrics import GROUPS
from longtail.ranks import Ranks
from longtail.segmentation.data.mask_set import IGNORE, MaskFiles
from longtail.segmentation.data.whole import whole_pairs
from longtail.segmentation.metrics import (
    PixelReliability,
    bootstrap_miou,
    boundary_f_scores,
    boundary_tolerance,
    confusion_of,
    frequency_weighted_iou,
    group_iou,
    groups_by_images,
    groups_by_pixels,
    iou_of,
    mean_iou,
    pixel_accuracy,
    precision_of,
    rarest_classes,
    recall_of,
    regions_of,
)
from longtail.segmentation.models import Segmenter, TestView, largest_at_size
from longtail.segmentation_options import SegmentationOptions

_BATCH_PIXELS, _BATCH_VALUES = 2**20, 2**26
"""Pixels, and pixels times classes, that go through the model at once: some small images, or one large one."""
_FEW_IMAGES = 30
_MOST_CONFUSED = 200
"""Classes up to which the confusion of all of them is written: a matrix of 160 kB."""
PER_IMAGE = "per_image"


@dataclass(frozen=True)
class DenseEvaluation:
    """What a segmenter did on a test set.

    Attributes:
        figures: the content of ``evaluation.json``.
        rows: those of ``per_class.csv``.
        per_image: int64 ``[N, 3, C]``: pixels of each class that are right, predicted and true in each image.
        confusion: int64 ``[C, C]``, pixels by true class (rows) and predicted class.
    """

    figures: dict[str, Any]
    rows: list[dict[str, Any]]
    per_image: Tensor
    confusion: Tensor


def predictions_of(
    segmenter: Segmenter,
    files: MaskFiles,
    device: torch.device,
    workers: int | None,
    view: TestView,
    ranks: Ranks | None = None,
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Yield (index, predictions int64, confidence, labels), each ``[H, W]`` on the CPU, of every image in order.

    Images of one size that follow each other go through the model together. Where images are brought to a size, the
    probabilities are brought back (bilinear) to that of the mask, which is the truth as it was drawn. Of several
    ``ranks`` each takes every so many-th image.

    Raises:
        UserError: a file cannot be read, or the model's output for one is not finite.
    """
    segmenter = segmenter.to(device)
    workers = default_workers(device) if workers is None else workers
    held: list[tuple[int, Tensor, Tensor]] = []

    def looked_at() -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        probabilities = segmenter.predict(torch.stack([image for _, image, _ in held]).to(device), view=view)
        for (index, _, labels), found in zip(held, probabilities, strict=True):
            confidence, predictions = largest_at_size(found, (labels.shape[0], labels.shape[1]))
            if not bool((confidence >= 0).all()):  # neither NaN nor the -1 that no number was larger than
                raise UserError(
                    f"the model's output for {files.image_path(index)} is not finite: its training diverged; train "
                    "again with a lower --optimiser.lr."
                )
            yield index, predictions.cpu(), confidence.cpu(), labels
        held.clear()

    first, step = (0, 1) if ranks is None else (ranks.rank, ranks.world)
    for index, image, labels in whole_pairs(files, workers, whole_masks=True, first=first, step=step):
        size = (len(held) + 1) * image[0].numel()
        full = bool(held) and (size > _BATCH_PIXELS or size * segmenter.num_classes > _BATCH_VALUES)
        if full or (held and held[0][1].shape != image.shape):
            yield from looked_at()
        held.append((index, image.clone(), labels.clone()))  # out of memory shared with a process
    if held:
        yield from looked_at()


def evaluate_segmenter(
    segmenter: Segmenter,
    files: MaskFiles,
    device: torch.device,
    options: SegmentationOptions,
    workers: int | None = None,
    view: TestView | None = None,
    train_images: int | None = None,
    ranks: Ranks | None = None,
) -> DenseEvaluation:
    """Return what a segmenter does on images with masks.

    Args:
        segmenter: its ``class_counts`` and ``image_counts`` are the training pixels and images of each class.
        files: the test set, of the same classes.
        device: where to compute.
        options: edges of the groups.
        workers: processes that decode.
        view: how whole images are looked at; None = once, as they are.
        train_images: all training images; None = as many as hold the most frequent class.
        ranks: who looks at the images; each takes a share, and all get the figures. None = this process alone.

    Raises:
        UserError: there is no pixel to test on, a file cannot be read, or the model's output is not finite.
    """
    view = view or TestView()
    classes, tests = segmenter.num_classes, len(files)
    per_image = torch.zeros(tests, 3, classes, dtype=torch.int64)
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    outlines = torch.zeros(2, classes, dtype=torch.float64)  # sum of scores, images
    reliability, tolerances = PixelReliability(), torch.zeros(tests, dtype=torch.int64)
    by_class = [PixelReliability() for _ in range(classes)]
    for index, predictions, confidence, labels in predictions_of(segmenter, files, device, workers, view, ranks):
        one = confusion_of(predictions, labels, classes)
        confusion += one
        per_image[index] = regions_of(one)
        tolerances[index] = tolerance = boundary_tolerance(*labels.shape)
        scores = boundary_f_scores(predictions, labels, classes, tolerance)
        outlines += torch.stack([scores.nan_to_num(), (~scores.isnan()).double()])
        reliability.see(confidence, predictions, labels)
        # Gathered for every class: which are the rarest of the test is known only after the last mask.
        for label in torch.unique(labels[labels != IGNORE]).tolist():
            own = labels == label
            by_class[label].see(confidence[own], predictions[own], labels[own])
    if ranks is not None and not ranks.alone:  # every image was seen by one process
        every = torch.stack([each.sums for each in (reliability, *by_class)])
        for part in (confusion, per_image, tolerances, outlines, every):
            summed(part)
        for each, sums in zip((reliability, *by_class), every, strict=True):
            each.sums = sums
    regions = regions_of(confusion)
    if not int(regions[2].sum()):
        raise UserError(
            "no pixel of the test masks has a class: all are ignored; check the masks and --segmentation.ignore."
        )
    counts, images = segmenter.class_counts.cpu(), segmenter.image_counts.cpu()
    iou, recall, precision = iou_of(regions), recall_of(regions), precision_of(regions)
    boundary = torch.where(outlines[1] > 0, outlines[0] / outlines[1].clamp(min=1), torch.nan)
    by_pixels = groups_by_pixels(counts, options.pixel_edges)
    by_images = groups_by_images(images, train_images or int(images.max()), options.image_edges)
    rarest = rarest_classes(counts, regions[2])
    names, test_images = list(segmenter.class_names), (per_image[:, 2] > 0).sum(0)
    seen = [label for label in range(classes) if int(regions[2, label])]
    worst = min(seen, key=lambda label: float(iou[label]))
    figures: dict[str, Any] = {
        "task": "segmentation",
        "miou": float(mean_iou(regions)),
        "miou_interval": bootstrap_miou(per_image),
        "iou": _numbers(iou),
        "class_names": names,
        "class_counts": counts.tolist(),
        "image_counts": images.tolist(),
        "test_pixels": regions[2].tolist(),
        "groups_by_pixels": group_iou(iou, by_pixels),
        "groups_by_images": group_iou(iou, by_images),
        "pixel_edges": list(options.pixel_edges),
        "image_edges": list(options.image_edges),
        "rarest_four": {
            "classes": [names[label] for label in rarest],
            "miou": float(mean_iou(regions, torch.tensor(rarest))),
            "interval": bootstrap_miou(per_image, rarest),
            "ece": _pooled([by_class[label] for label in rarest]).error(),
        },
        "fw_iou": frequency_weighted_iou(regions),
        "pixel_accuracy": pixel_accuracy(regions),
        "balanced_accuracy": float(recall.nanmean()),
        "boundary_f": float(boundary.nanmean()),
        "boundary_tolerance": int(tolerances.sort().values[tests // 2]),
        "ece": reliability.error(),
        "calibration": reliability.table(),
        "worst_class": {"name": names[worst], "iou": float(iou[worst])},
        "test_images": tests,
        "inference": _inference(view, files.size),
        "selection": "last",
    }
    if classes <= _MOST_CONFUSED:
        figures["confusion"] = confusion.tolist()
    rows = [
        {
            "name": names[label],
            "train_pixels": int(counts[label]),
            "train_pixel_share": int(counts[label]) / max(int(counts.sum()), 1),
            "train_images": int(images[label]),
            "group_by_pixels": by_pixels[label],
            "group_by_images": by_images[label],
            "test_pixels": int(regions[2, label]),
            "test_images": int(test_images[label]),
            "iou": _number(iou[label]),
            "recall": _number(recall[label]),
            "precision": _number(precision[label]),
            "boundary_f": _number(boundary[label]),
        }
        for label in range(classes)
    ]
    return DenseEvaluation(figures, rows, per_image, confusion)


def quick_look(
    segmenter: Segmenter,
    files: MaskFiles,
    device: torch.device,
    workers: int | None = None,
    of: str = "test",
    view: TestView | None = None,
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """Return figures for the training curve, named after ``of`` (test or val): mean IoU and mean class recall.

    Every image goes through the model once, whole: as long as an evaluation without scales or windows. Of several
    ``ranks`` each looks at a share, and all call this and get the figures.
    """
    confusion = torch.zeros(segmenter.num_classes, segmenter.num_classes, dtype=torch.int64)
    for _, predictions, _, labels in predictions_of(segmenter, files, device, workers, view or TestView(), ranks):
        confusion += confusion_of(predictions, labels, segmenter.num_classes)
    if ranks is not None and not ranks.alone:
        summed(confusion)
    regions = regions_of(confusion)
    found = {"miou": mean_iou(regions), "balanced_accuracy": recall_of(regions).nanmean()}
    return {f"{of}_{name}": 0.0 if value.isnan() else float(value) for name, value in found.items()}


def write_dense_evaluation(folder: Path, evaluation: DenseEvaluation) -> None:
    """Write ``evaluation.json``, ``per_class.csv`` and ``per_image.safetensors`` + ``.json`` into ``folder``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(evaluation.rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(evaluation.rows)
    write_bytes(folder / "per_class.csv", text.getvalue().encode())
    save_tensors(
        folder, PER_IMAGE, {"regions": evaluation.per_image}, {"class_names": evaluation.figures["class_names"]}
    )
    write_json(folder / "evaluation.json", evaluation.figures)


def read_per_image(folder: Path) -> Tensor:
    """Return the ``per_image [N, 3, C]`` that :func:`write_dense_evaluation` wrote into ``folder``.

    Raises:
        UserError: it is missing, cut off or changed.
    """
    return load_tensors(folder, PER_IMAGE)[0]["regions"]


def dense_summary(figures: dict[str, Any]) -> str:
    """Return the figures in a line."""
    interval, groups = figures["miou_interval"], figures["groups_by_pixels"]
    span = "" if interval["low"] is None else f" ({100 * interval['low']:.1f} to {100 * interval['high']:.1f})"
    parts = [f"{group} {_percent(groups[group]['iou'])}" for group in GROUPS if groups[group]["classes"]]
    rare = figures["rarest_four"]
    return (
        f"mean IoU {_percent(figures['miou'])} %{span}; by pixels: {', '.join(parts)}; "
        f"rarest ({', '.join(rare['classes'])}) {_percent(rare['miou'])}; pixel accuracy "
        f"{_percent(figures['pixel_accuracy'])}, boundary F {_percent(figures['boundary_f'])}, "
        f"calibration error {_percent(figures['ece'])}"
    )


def dense_warnings(figures: dict[str, Any]) -> list[str]:
    """Return sentences on what the figures cannot say, or what is badly wrong."""
    names, pixels = figures["class_names"], figures["test_pixels"]
    found = []
    absent = [name for name, count in zip(names, pixels, strict=True) if not count]
    if absent:
        found.append(f"no test mask holds {_listed(absent)}: nothing is known of how well that is found.")
    missed = [name for name, iou, count in zip(names, figures["iou"], pixels, strict=True) if count and not iou]
    if missed:
        found.append(f"not one pixel of {_listed(missed)} is found in the test images.")
    if figures["test_images"] < _FEW_IMAGES:
        found.append(f"the test has {figures['test_images']} images: its figures may be far off, as the interval says.")
    return found


def _inference(view: TestView, size: tuple[int, int] | None) -> str:
    brought = "" if size is None else f", images brought to {size[0]} x {size[1]}, masks at their own size"
    return view.describe() + brought


def _pooled(parts: list[PixelReliability]) -> PixelReliability:
    """Return the reliability of the pixels of all parts together."""
    whole = PixelReliability()
    for part in parts:
        whole.sums += part.sums
    return whole


def _listed(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _number(value: Tensor) -> float | None:
    number = float(value)
    return None if math.isnan(number) else number


def _numbers(values: Tensor) -> list[float | None]:
    return [_number(value) for value in values]
