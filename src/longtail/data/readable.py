"""Image files of which some may be broken: decoded batch by batch, the broken ones told instead of being fatal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from longtail.data.decode import BadImage, fit, read_image, reduced_side
from longtail.data.image_set import Framing
from longtail.data.path_table import PathTable
from longtail.data.streaming import stream

Readable = tuple[Tensor, dict[int, str]]
"""Frames uint8 ``[good, 3, H, W]`` of a batch's files that can be read; position in the batch and reason of others."""


def readable_frames(
    paths: Sequence[str], framing: Framing, batch_size: int, workers: int, prefetch: int = 4
) -> Iterator[Readable]:
    """Yield the files in order, up to ``batch_size`` at a time, with nothing random.

    Args:
        paths: of the files; the endings play no part.
        framing: what the images are brought to.
        batch_size: files an item.
        workers: processes that decode; 0 = the caller's.
        prefetch: batches that each worker prepares ahead.

    Raises:
        UserError: a worker died.
    """
    places = [(start, min(start + batch_size, len(paths))) for start in range(0, len(paths), batch_size)]
    advice = "try again with fewer --workers, or with 0"
    return stream(_Files(paths, framing), places, min(workers, len(places)), prefetch, advice=advice)


class _Files(Dataset[Any]):
    """Item (start, end): what can be read of the files from start to end."""

    def __init__(self, paths: Sequence[str], framing: Framing) -> None:
        self.paths, self.framing, self.side = PathTable(paths), framing, reduced_side(framing)

    def __getitem__(self, place: tuple[int, int]) -> Readable:
        frames: list[np.ndarray[Any, Any]] = []
        errors: dict[int, str] = {}
        for position, index in enumerate(range(*place)):
            try:
                frames.append(fit(read_image(self.paths[index], self.side), self.framing))
            except BadImage as error:
                errors[position] = error.reason
        if not frames:
            return torch.empty(0, 3, *self.framing.size, dtype=torch.uint8), errors
        return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2), errors
