"""From image files to what a run works on: pixels in memory or files with a framing, and statistics to normalise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from longtail.data.arrays import pixel_statistics
from longtail.data.image_set import DataSplits, Framing, ImageFiles, ImageSet, LabelledImages
from longtail.data.keyed import keyed_permutation
from longtail.data.streaming import plain_frames
from longtail.errors import UserError

_SAMPLE = 2000
"""Training images that the statistics of streamed files are taken from."""

Progress = Callable[[int, int], None]


def decode_all(files: ImageFiles, workers: int, progress: Progress | None = None) -> ImageSet:
    """Return the files as pixels in memory, brought to ``files.framing``.

    Raises:
        UserError: a file cannot be read, or the pixels do not fit into memory.
    """
    height, width = files.framing.size
    try:
        images = torch.empty(len(files), 3, height, width, dtype=torch.uint8)
    except RuntimeError:
        size = len(files) * 3 * height * width / 2**30
        raise UserError(
            f"the {len(files)} images take {size:.0f} GiB at {height} x {width}, which do not fit into memory; add "
            "--loading.resident false."
        ) from None
    done = 0
    for frames in plain_frames(files, batch_size=64, workers=workers):
        images[done : done + len(frames)] = frames
        done += len(frames)
        if progress is not None:
            progress(done, len(files))
    return ImageSet(images, files.labels, files.class_names, files.framing, files.paths)


def frame_splits(
    splits: DataSplits,
    framing: Framing,
    *,
    resident: bool,
    workers: int,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    progress: Progress | None = None,
) -> DataSplits:
    """Return ``splits`` ready to train on; arrays stay as they are.

    Args:
        splits: training, validation and test set.
        framing: of image files.
        resident: decode every file now and keep the pixels; else files are decoded for every batch.
        workers: processes that decode.
        mean, std: on 0..1; None = those of ``splits`` or, if it has none, of the training pixels (of 2000 images drawn
            from them where files are streamed).
        progress: called with (files decoded, of how many).
    """

    def framed(images: LabelledImages) -> LabelledImages:
        if not isinstance(images, ImageFiles):
            return images
        files = replace(images, framed=framing)
        return decode_all(files, workers, progress) if resident and len(files) else files

    train, test = framed(splits.train), framed(splits.test)
    validation = None if splits.validation is None else framed(splits.validation)
    if (mean is None or std is None) and not splits.mean and len(train):
        found = pixel_statistics(_pixels(train, workers))
    else:
        found = (splits.mean, splits.std)
    return replace(splits, train=train, test=test, validation=validation, mean=mean or found[0], std=std or found[1])


def _pixels(images: LabelledImages, workers: int) -> torch.Tensor:
    if isinstance(images, ImageSet):
        return images.images
    assert isinstance(images, ImageFiles)
    sample = images.subset(keyed_permutation(0, "statistics", size=len(images))[:_SAMPLE])
    return torch.cat(list(plain_frames(sample, batch_size=64, workers=workers)))
