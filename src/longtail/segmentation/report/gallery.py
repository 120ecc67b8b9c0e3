"""``gallery.json`` of a run on masks: the rarest classes in the test images that say most of them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image, Resampling
from torch import Tensor

from longtail.files import write_json
from longtail.segmentation.data.mask_set import IGNORE, MaskFiles
from longtail.segmentation.data.reading import read_pair
from longtail.segmentation.metrics import rarest_classes
from longtail.segmentation.overlays import class_overlay, error_map, hex_colour, picture

if TYPE_CHECKING:
    from longtail.segmentation.evaluation import DenseEvaluation
    from longtail.segmentation.models import Segmenter, TestView

MOST_CLASSES = 6
SIDE = 480
"""Longest side of a picture in pixels."""

MOST_BYTES = 3_000_000
"""Of all pictures together, before base64 makes them a third longer."""

MOST, MISSED = "most", "missed"
"""Why an image is shown: it holds most of the class, or most of what was missed of it."""

_KINDS = ("image", "truth", "prediction", "error")
_LOSSLESS = 64
"""Up to this side a picture is kept as it is, to the pixel: the page enlarges it."""
_IN_LEGEND = 8


def write_dense_gallery(
    folder: Path, segmenter: Segmenter, evaluation: DenseEvaluation, test: MaskFiles, view: TestView | None = None
) -> None:
    """Write ``gallery.json`` into the run folder ``folder``; the same run gives the same bytes.

    For each of the rarest classes that the test images hold: the image with most of its pixels, and the one with most
    of its pixels missed, as image, truth, prediction and map of errors.

    Args:
        folder: of the finished run.
        segmenter: that the run delivers; it computes where it lies.
        evaluation: of ``segmenter`` on ``test``; its counts choose the images.
        test: the images of ``evaluation``.
        view: how they were looked at when tested.

    Raises:
        UserError: an image or mask can no longer be read.
    """
    per_image = evaluation.per_image
    chosen = {
        label: choose_images(per_image, label)
        for label in rarest_classes(segmenter.class_counts.cpu(), per_image[:, 2].sum(0).cpu(), MOST_CLASSES)
    }
    most_bytes = MOST_BYTES // max(1, len(_KINDS) * sum(len(images) for images in chosen.values()))
    entries: dict[tuple[int, int], dict[str, Any]] = {}
    palette = segmenter.palette.cpu()
    for index in sorted({index for images in chosen.values() for index in images}):
        image, truth = read_pair(test, index)
        predicted = predict_labels(segmenter, image, view)
        for label in (label for label, images in chosen.items() if index in images):
            drawn = (
                image,
                class_overlay(image, truth, palette),
                class_overlay(image, torch.where(truth == IGNORE, IGNORE, predicted), palette),
                error_map(image, truth, predicted, label),
            )
            hit, called, true = (int(count) for count in per_image[index, :, label])
            entries[label, index] = {
                "image": index,
                "file": test.images[index],
                "found": hit,
                "true": true,
                "predicted": called,
                "shown": _shown(truth, predicted, label),
                "pictures": {
                    kind: small_picture(pixels, most_bytes) for kind, pixels in zip(_KINDS, drawn, strict=True)
                },
            }
    classes = [
        {
            "class": label,
            "images": int((per_image[:, 2, label] > 0).sum()),
            "entries": [{"why": why, **entries[label, index]} for index, why in images.items()],
        }
        for label, images in chosen.items()
    ]
    record = {"task": "segmentation", "palette": [hex_colour(colour) for colour in palette], "classes": classes}
    write_json(folder / "gallery.json", record)


def choose_images(per_image: Tensor, label: int) -> dict[int, list[str]]:
    """Return the images (by position) to show of class ``label``, and why each is; the first of equals.

    ``per_image`` holds pixels that are right, predicted and true, int64 ``[N, 3, C]``.
    """
    true, hit = per_image[:, 2, label].cpu(), per_image[:, 0, label].cpu()
    missed = true - hit
    chosen = {int(true.argmax()): [MOST]}
    if int(missed.max()) > 0:
        chosen.setdefault(int(missed.argmax()), []).append(MISSED)
    return chosen


def predict_labels(segmenter: Segmenter, image: Tensor, view: TestView | None) -> Tensor:
    """Return the classes of an image (uint8 ``[3, H, W]``) as the test took them: int64 ``[H, W]``, on the CPU."""
    logits: Tensor = segmenter.logits(image[None].to(segmenter.mean.device), view)
    return logits[0].argmax(0).cpu()


def small_picture(pixels: Tensor, most_bytes: int) -> str:
    """Return ``pixels`` (uint8 ``[3, H, W]``) as a ``data:`` URI, no side longer than ``SIDE``.

    A picture that would take more than ``most_bytes`` is compressed harder, then made smaller.
    """
    image = picture(pixels)
    if max(image.size) <= _LOSSLESS:
        return _address(image, "png")[0]
    for side, quality in ((SIDE, 85), (SIDE, 70), (SIDE, 50), (SIDE // 2, 60), (SIDE // 4, 50)):
        small = image.copy()
        small.thumbnail((side, side), Resampling.BICUBIC)
        address, size = _address(small, "jpeg", quality=quality)
        if size <= most_bytes:
            break
    return address


def _address(image: Image, kind: str, **options: int) -> tuple[str, int]:
    """Return a picture as a ``data:`` URI, and its bytes before base64."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}", file.tell()


def _shown(truth: Tensor, predicted: Tensor, label: int) -> list[int]:
    """Return the classes that the pictures' legend names: ``label``, then those with most pixels."""
    counts = torch.bincount(truth[truth != IGNORE].long(), minlength=label + 1)
    more = torch.bincount(predicted[truth != IGNORE].long(), minlength=len(counts))
    counts = more + torch.nn.functional.pad(counts, (0, len(more) - len(counts)))
    order = [c for c in counts.argsort(descending=True, stable=True).tolist() if counts[c] > 0 and c != label]
    return [label, *order[: _IN_LEGEND - 1]]
