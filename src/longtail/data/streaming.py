"""From image files to batches: every file decoded once for all views, by worker processes, ahead of the training.

What a batch holds is a function of (seed, epoch, step) alone, so that the number of workers changes nothing.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from longtail.data.decode import BadImage, crop, fit, read_image, reduced_side
from longtail.data.image_set import Framing, ImageFiles
from longtail.data.loading import keep_freed_memory
from longtail.data.slow_reads import SlowReads
from longtail.data.tar_members import shown
from longtail.data.views import View
from longtail.errors import UserError
from longtail.ranks import processes_here

CHUNK = 16
"""Images that are held decoded at a time: enough to share the cost of drawing, few enough for large photographs."""

_READS = SlowReads()
"""What this process has learnt of the storage."""

Frames = dict[str, Tensor]
"""View name to uint8 ``[B, 3, H, W]``, framed but not yet augmented or normalised."""


def default_workers(device: torch.device | None) -> int:
    """Return how many workers decode: all cores but one beside an accelerator, half of them beside a busy CPU.

    Processes that train together on this machine share its cores. Where nothing else is to be done (no device), all.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device is None:
        return cores
    cores //= processes_here()
    return max(1, min(cores - 1, 32) if device.type != "cpu" else cores // 2)


def needed_side(framing: Framing, views: Mapping[str, View]) -> int | None:
    """Return how long the shorter side of a decoded file must be for every one of ``views``, or None for all of it.

    The smallest crop of them decides, so a view is made of the same pixels whichever of them is asked for.
    """
    areas = [view.crop[0] for view in views.values() if view.crop is not None]
    return reduced_side(framing, min(areas, default=None))


def frame_files(
    files: ImageFiles,
    ids: Tensor,
    views: Mapping[str, View],
    side: int | None,
    seed: int = 0,
    epoch: int = 0,
    keys: Tensor | None = None,
) -> Frames:
    """Return the frames of every view of the files at ``ids [B]``, each file decoded once.

    A view without a random crop, and the empty name where ``views`` is empty, is framed as a test image is. ``side``
    is that of :func:`needed_side`; ``keys [B]`` are what the crops are keyed by, if not the ids.

    Raises:
        UserError: a file cannot be read; the message names it.
    """
    framing = files.framing
    area = {name: view.crop for name, view in views.items()} or {"": None}
    # Planes are what augmentation reads fastest; what goes to a model as it is keeps the order of channels_last.
    order = torch.contiguous_format if views else torch.channels_last
    shape = len(ids), 3, *framing.size
    frames = {name: torch.empty(shape, dtype=torch.uint8, memory_format=order) for name in area}
    pixels = {name: made.permute(0, 2, 3, 1).numpy() for name, made in frames.items()}
    done, keys = 0, ids if keys is None else keys
    for part, part_keys in zip(torch.split(ids, CHUNK), torch.split(keys, CHUNK), strict=True):
        images = _READS.all(lambda index: _read(files, index, side), part.tolist())
        widths, heights = torch.tensor([image.size for image in images]).unbind(1)
        for name, crop_range in area.items():
            places = pixels[name][done : done + len(part)]
            if crop_range is None:
                for image, place in zip(images, places, strict=True):
                    fit(image, framing, place)
            else:
                boxes = views[name].boxes(heights, widths, part_keys, seed, epoch, name).tolist()
                for image, box, place in zip(images, boxes, places, strict=True):
                    crop(image, box, framing, place)
        done += len(part)
    return frames


def _read(files: ImageFiles, index: int, side: int | None) -> Any:
    try:
        return read_image(files.path(index), side)
    except BadImage as error:
        raise UserError(
            f"{shown(files.path(index))} cannot be read any more ({error.reason}); restore it and go on with --resume."
        ) from None


class _TestBatches(Dataset[Any]):
    """Item (start, end): frames of the files from start to end without anything random, or the reason for none."""

    def __init__(self, files: ImageFiles) -> None:
        self.files, self.side = files, needed_side(files.framing, {})

    def __getitem__(self, place: tuple[int, int]) -> Tensor | str:
        try:
            return frame_files(self.files, torch.arange(*place), {}, self.side)[""]
        except UserError as error:
            return str(error)


def _start_worker(_: int) -> None:
    # Ctrl-C reaches the whole process group; only the training may answer it. A worker ends when it is told to.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    keep_freed_memory()


def stream(
    items: Dataset[Any],
    places: Iterable[tuple[int, int]],
    workers: int,
    prefetch: int = 4,
    pin: bool = False,
    advice: str = "go on with --resume and fewer --loading.workers, or with 0",
) -> Iterator[Any]:
    """Yield ``items[place]`` of every place in order, made ahead by ``workers`` processes (0 = none).

    Raises:
        UserError: an item is a sentence (which is then the error's), or a process died: ``advice`` says what to do.
    """
    loader = DataLoader(
        items,
        batch_size=None,
        sampler=places,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # nothing here draws from it, but the caller's must not move
    )
    try:
        for item in loader:
            if isinstance(item, str):
                raise UserError(item)
            yield item
    except RuntimeError as error:
        if not re.search("DataLoader worker.*(exited unexpectedly|is killed by signal)", str(error)):
            raise
        raise UserError(
            f"a process that decodes images died ({str(error).splitlines()[0]}); it may be short of memory or of "
            f"shared memory: {advice}."
        ) from None


def plain_frames(
    files: ImageFiles, batch_size: int, workers: int, prefetch: int = 4, pin: bool = False
) -> Iterator[Tensor]:
    """Yield the files in order as uint8 ``[up to batch_size, 3, H, W]``, with nothing random.

    With ``pin`` they lie where an accelerator copies them from fastest.

    Raises:
        UserError: a file cannot be read.
    """
    places = [(start, min(start + batch_size, len(files))) for start in range(0, len(files), batch_size)]
    return plain_places(files, places, workers, prefetch, pin)


def plain_places(
    files: ImageFiles, places: Sequence[tuple[int, int]], workers: int, prefetch: int = 4, pin: bool = False
) -> Iterator[Tensor]:
    """Yield the files from start to end of every place, as :func:`plain_frames` does."""
    return stream(_TestBatches(files), places, min(workers, len(places)), prefetch, pin)


class _ViewBatches(Dataset[Any]):
    """Item (start, end): augmented frames of every view of the files from start to end, or the reason for none."""

    def __init__(self, files: ImageFiles, views: Mapping[str, View], seed: int) -> None:
        self.files, self.views, self.seed = files, views, seed
        self.side = needed_side(files.framing, views)

    def __getitem__(self, place: tuple[int, int]) -> Frames | str:
        ids = torch.arange(*place)
        try:
            frames = frame_files(self.files, ids, self.views, self.side, self.seed)
        except UserError as error:
            return str(error)
        return {name: self.views[name].augment(made, ids, self.seed, 0, name) for name, made in frames.items()}


def view_frames(
    files: ImageFiles, views: Mapping[str, View], batch_size: int, workers: int, seed: int, start: int = 0
) -> Iterator[Frames]:
    """Yield every view of the files in order from ``start`` on, augmented but not normalised, each file decoded once.

    What a view is made of follows from (seed, the file's position, the view's name).

    Raises:
        UserError: a file cannot be read.
    """
    places = [(first, min(first + batch_size, len(files))) for first in range(start, len(files), batch_size)]
    return stream(_ViewBatches(files, views, seed), places, min(workers, len(places)), advice="use fewer workers")
