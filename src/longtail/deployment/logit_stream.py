"""From images of any kind to logits, batch by batch: files are decoded by processes while the model works."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longtail.data.readable import readable_frames
from longtail.data.tar_members import shown
from longtail.deployment.image_inputs import ArrayImages, Source
from longtail.models import Classifier

_LUMA = (19595, 38470, 7471)  # of 2^16, as Pillow turns RGB into gray


@dataclass(frozen=True)
class ScoredBatch:
    """Some images and what the model says of them.

    Attributes:
        names: B names, in order.
        logits: ``[G, C]`` on the CPU, of those G that can be read, in order.
        errors: position among the B, and reason, of the others.
    """

    names: list[str]
    logits: Tensor
    errors: dict[int, str]


def score_images(
    classifier: Classifier, sources: Sequence[Source], batch_size: int, workers: int
) -> Iterator[ScoredBatch]:
    """Yield the logits of every image, in order.

    Args:
        classifier: on the device that computes.
        sources: see :func:`longtail.deployment.image_inputs.find_images`.
        batch_size: images at a time.
        workers: processes that decode files; 0 = this one.
    """
    for source in sources:
        if isinstance(source, ArrayImages):
            for start in range(0, len(source), batch_size):
                part = source.images[start : start + batch_size]
                names = [f"{source.file}[{index}]" for index in range(start, start + len(part))]
                yield ScoredBatch(names, classifier.logits(part, batch_size), {})
            continue
        done = 0
        for frames, errors in readable_frames(source, classifier.framing, batch_size, workers):
            names = [shown(path) for path in source[done : done + len(frames) + len(errors)]]
            done += len(names)
            if classifier.spec["in_channels"] == 1:
                frames = to_gray(frames)
            yield ScoredBatch(names, classifier.logits(frames, batch_size), errors)


def to_gray(frames: Tensor) -> Tensor:
    """Return uint8 ``[B, 1, H, W]`` of RGB frames ``[B, 3, H, W]``; gray pixels keep their value."""
    weights = torch.tensor(_LUMA, dtype=torch.int32).view(1, 3, 1, 1)
    return ((frames.int() * weights).sum(1, keepdim=True) + (1 << 15)).div(1 << 16, rounding_mode="floor").byte()
