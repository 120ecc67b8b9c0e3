"""Small training sets with masks, decoded once and kept in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from longtail.data.memory import SHARE, available_bytes
from longtail.errors import UserError
from longtail.segmentation.data.mask_set import MaskFiles
from longtail.segmentation.data.whole import whole_pairs

_BYTES = 5
"""Of a pixel: three colours and a label of 16 bits."""


def resident_bytes(files: MaskFiles) -> int:
    """Return how many bytes the decoded images and masks take."""
    return _BYTES * int(_sizes(files).prod(dim=1).sum())


def fits_in_memory(files: MaskFiles) -> bool:
    """Return whether the decoded images and masks take at most ``memory.SHARE`` of the memory that can be had.

    True where the system does not say how much there is.
    """
    available = available_bytes()
    return available is None or resident_bytes(files) <= SHARE * available


def _sizes(files: MaskFiles) -> Tensor:
    """Return height and width of each image as it is read, int64 ``[N, 2]``."""
    return files.sizes if files.size is None else torch.tensor(files.size).expand(len(files), 2)


class ResidentPairs:
    """Every image with its mask in two blocks of memory, which worker processes share without a file or copy an image.

    Args:
        files: what is decoded.
        workers: processes that decode; 0 = none.

    Raises:
        UserError: a file cannot be read, or has another size than when it was looked at.
    """

    def __init__(self, files: MaskFiles, workers: int = 0) -> None:
        self._sizes: list[tuple[int, int]] = [(height, width) for height, width in _sizes(files).tolist()]
        lengths = torch.tensor([height * width for height, width in self._sizes])
        self._starts: list[int] = (lengths.cumsum(0) - lengths).tolist()
        total = int(lengths.sum())
        self._pixels = torch.empty(total, 3, dtype=torch.uint8)
        self._labels = torch.empty(total, dtype=torch.int16)
        for index, image, labels in whole_pairs(files, workers):
            if tuple(labels.shape) != self._sizes[index]:
                height, width = self._sizes[index]
                raise UserError(
                    f"{files.image_path(index)} is {labels.shape[0]} x {labels.shape[1]} and was {height} x {width} "
                    "when the data were looked at: leave the files as they are during training and start again."
                )
            pixels, truth = self[index]
            pixels.copy_(image)
            truth.copy_(labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the image, uint8 ``[3, H, W]``, and labels, int16 ``[H, W]``, at ``index``: views of what is kept."""
        (height, width), start = self._sizes[index], self._starts[index]
        place = slice(start, start + height * width)
        pixels = self._pixels[place].view(height, width, 3).permute(2, 0, 1)
        return pixels, self._labels[place].view(height, width)
