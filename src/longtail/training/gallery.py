"""``gallery.json``: mistakes on rare classes as small pictures, each beside the training images it is most like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtail.data import LabelledImages
from longtail.data.thumbnails import pixels_of, thumbnail
from longtail.errors import UserError
from longtail.files import write_json
from longtail.metrics import GROUPS, group_index
from longtail.models import Classifier
from longtail.training.evaluation import Evaluation
from longtail.training.neighbours import nearest, read_keys

MOST_MISTAKES = 24
MOST_OF_A_CLASS = 3
NEIGHBOURS = 3


def write_gallery(
    folder: Path, classifier: Classifier, evaluation: Evaluation, train: LabelledImages, test: LabelledImages
) -> None:
    """Write ``gallery.json`` into the run folder ``folder``; the same run gives the same bytes.

    Args:
        folder: of the finished run.
        classifier: that the run delivers.
        evaluation: its logits on ``test``.
        train: the images that it was trained on, in that order; empty if they are not what they were.
        test: the images of ``evaluation``.
    """
    predictions, confidence = evaluation.predictions, evaluation.confidence
    many, few = evaluation.figures["group_edges"]
    group = group_index(classifier.class_counts.cpu(), (many, few))
    labels = evaluation.labels
    # The rarest group that is tested at all; on balanced data that may be "many".
    rarest = int(group[labels].max())
    in_group = group[labels] == rarest
    wrong = in_group & (predictions != labels)
    chosen = choose_mistakes(wrong, labels, confidence, classifier.class_counts.cpu())
    pixels = pixels_of(test, chosen)
    neighbours, why_none = _neighbours(folder, classifier, pixels, train)
    names = classifier.class_names
    entries = [
        {
            **_picture(test, index, pixels[position]),
            "true": names[int(labels[index])],
            "predicted": names[int(predictions[index])],
            "confidence": round(float(confidence[index]), 4),
            "nearest": neighbours[position],
        }
        for position, index in enumerate(chosen.tolist())
    ]
    record = {
        "group": GROUPS[rarest],
        "images": int(in_group.sum()),
        "mistakes": int(wrong.sum()),
        "most_of_a_class": MOST_OF_A_CLASS,
        "no_neighbours": why_none,
        "entries": entries,
    }
    write_json(folder / "gallery.json", record)


def choose_mistakes(wrong: Tensor, labels: Tensor, confidence: Tensor, class_counts: Tensor) -> Tensor:
    """Return the positions ``[M]`` (int64) of the mistakes to show.

    Those of the rarest classes first, of each class the most confident ones: a mistake that the model is sure of is
    the one that tells of a wrong label or of classes that look alike.

    Args:
        wrong: which images may be shown, bool ``[N]``.
        labels: ``[N]``.
        confidence: of the predictions, ``[N]``.
        class_counts: training images of each class, ``[C]``.
    """
    rows = wrong.nonzero().squeeze(1).tolist()
    rows.sort(key=lambda row: (int(class_counts[labels[row]]), int(labels[row]), -float(confidence[row]), row))
    shown: list[int] = []
    of_class: dict[int, int] = {}
    for row in rows:
        label = int(labels[row])
        of_class[label] = of_class.get(label, 0) + 1
        if of_class[label] <= MOST_OF_A_CLASS and len(shown) < MOST_MISTAKES:
            shown.append(row)
    return torch.tensor(shown, dtype=torch.int64)


def _picture(images: LabelledImages, index: int, pixels: Tensor) -> dict[str, Any]:
    """Return which image it is, and its thumbnail; ``file`` is its path as listed, None for arrays."""
    file = None if images.paths is None else images.paths[index]
    return {"image": index, "file": file, "thumbnail": thumbnail(pixels)}


def _neighbours(
    folder: Path, classifier: Classifier, pixels: Tensor, train: LabelledImages
) -> tuple[list[list[dict[str, Any]]], str | None]:
    """Return the nearest training images of each image in ``pixels``, and why there are none, if so."""
    none: list[list[dict[str, Any]]] = [[] for _ in pixels]
    if not len(pixels):
        return none, None
    if not len(train):
        return none, "The training images are not known to be those that the run was trained on."
    try:
        keys = read_keys(folder, classifier)
    except UserError as error:  # nor for a state that was deleted or cut off
        return none, str(error)
    if isinstance(keys, str):
        return none, keys
    found = nearest(keys, classifier, pixels, NEIGHBOURS)
    ids = torch.tensor(sorted({index for row in found for index, _ in row}), dtype=torch.int64)
    try:
        shown = pixels_of(train, ids)
    except UserError as error:  # a report must not fail for a training image that was deleted since
        return none, str(error)
    place = {index: position for position, index in enumerate(ids.tolist())}
    names = train.class_names
    return [
        [
            {
                **_picture(train, index, shown[place[index]]),
                "class": names[int(train.labels[index])],
                "similarity": round(similarity, 3),
            }
            for index, similarity in row
        ]
        for row in found
    ], None
