"""Whole images with their masks, in order and with nothing random: for testing, and to keep them in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from longtail.data.streaming import stream
from longtail.errors import UserError
from longtail.segmentation.data.mask_set import MaskFiles
from longtail.segmentation.data.reading import read_pair


class _Pairs(Dataset[Any]):
    """Item (index, any): the pair at that index, or the sentence that says why there is none."""

    def __init__(self, files: MaskFiles, whole_masks: bool) -> None:
        self.files, self.whole_masks = files, whole_masks

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Tensor] | str:
        try:
            return read_pair(self.files, place[0], self.whole_masks)
        except UserError as error:
            return str(error)


def whole_pairs(
    files: MaskFiles, workers: int = 0, prefetch: int = 4, whole_masks: bool = False, first: int = 0, step: int = 1
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (index, image uint8 ``[3, H, W]``, labels int16 ``[H, W]``) of every file, in order.

    Or of every ``step``-th from ``first`` on.

    Sizes may differ from image to image; with ``whole_masks`` masks stay at their own size, whatever ``files.size`` is.
    With ``workers`` (0 = none) processes decode, each ``prefetch`` images ahead; an image then lies in memory shared
    with its process: who keeps many of them must copy them.

    Raises:
        UserError: a file cannot be read.
    """
    indices = range(first, len(files), step)
    places = [(index, index + 1) for index in indices]
    pairs = stream(_Pairs(files, whole_masks), places, min(workers, len(places)), prefetch, advice="use fewer workers")
    for index, (image, labels) in zip(indices, pairs, strict=True):
        yield index, image, labels
