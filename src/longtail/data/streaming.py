"""From image files to batches: every file decoded once for all views, by worker processes, ahead of the training.

What a batch holds is a function of (seed, epoch, step) alone, so that the number of workers changes nothing.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from longtail.data.decode import BadImage, crop, fit, read_image, reduced_side
from longtail.data.image_set import Framing, ImageFiles
from longtail.data.loading import Batch, keep_freed_memory
from longtail.data.samplers import EpochDraws, Sampler
from longtail.data.shares import WHOLE, Share
from longtail.data.slow_reads import SlowReads
from longtail.data.tar_members import shown
from longtail.data.views import View
from longtail.errors import UserError

_CHUNK = 16
"""Images that are held decoded at a time: enough to share the cost of drawing, few enough for large photographs."""

_READS = SlowReads()
"""What this process has learnt of the storage."""

Frames = dict[str, Tensor]
"""View name to uint8 ``[B, 3, H, W]``, framed but not yet augmented or normalised."""


def default_workers(device: torch.device | None) -> int:
    """Return how many workers decode: all cores but one beside an accelerator, half of them beside a busy CPU.

    Where nothing else is to be done (no device), all cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device is None:
        return cores
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
    for part, part_keys in zip(torch.split(ids, _CHUNK), torch.split(keys, _CHUNK), strict=True):
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


class _TrainingSteps(Dataset[Any]):
    """Item (epoch, step): ids of that batch, keys and frames of this process's share of it, or a sentence that says why
    there are none.
    """

    def __init__(
        self,
        files: ImageFiles,
        views: Mapping[str, View],
        batch_size: int,
        seed: int,
        augment: bool,
        sampler: Sampler,
        share: Share,
    ) -> None:
        self.files, self.views, self.batch_size, self.seed, self.augment = files, views, batch_size, seed, augment
        self.share = share
        self.side = needed_side(files.framing, views)
        self.sampler = sampler
        self._draws: tuple[int, EpochDraws] | None = None

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Tensor, Frames] | str:
        epoch, step = place
        if self._draws is None or self._draws[0] != epoch:
            self._draws = epoch, self.sampler.draws(self.seed, epoch)
        drawn = self._draws[1][step * self.batch_size : (step + 1) * self.batch_size]
        own, keys = (self.share.of(values, self.batch_size) for values in (drawn.ids, drawn.keys))
        try:
            frames = frame_files(self.files, own, self.views, self.side, self.seed, epoch, keys)
        except UserError as error:
            return str(error)
        if self.augment:
            frames = {name: self._augmented(name, f, keys, epoch) for name, f in frames.items()}
        return drawn.ids, keys, frames

    def _augmented(self, name: str, frames: Tensor, keys: Tensor, epoch: int) -> Tensor:
        # A few images at a time stay in the processor's cache: a quarter faster than the whole batch at 224 pixels.
        for some, their_keys in zip(torch.split(frames, _CHUNK), torch.split(keys, _CHUNK), strict=True):
            some.copy_(self.views[name].augment(some, their_keys, self.seed, epoch, name))
        return frames


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


class StreamingLoader:
    """Batches of image files, the counterpart of :class:`longtail.data.loading.ResidentLoader`.

    Args:
        files: the training set, with its framing.
        views: view name to augmentation.
        batch_size: images a step.
        seed: of the order and of every augmentation.
        device: where batches go. Beside an accelerator the workers decode and crop, and the device does the rest.
        epochs: of the training; nothing is decoded ahead beyond its end.
        workers: processes that decode; 0 = the training decodes itself.
        prefetch: batches that each worker prepares ahead.
        fetched: views that no batch holds, but that ``fetch`` may be asked for.
        sampler: what an epoch draws; None = each image once.
        share: of every batch, what this process decodes; labels and ids are those of the whole batch all the same.
    """

    def __init__(
        self,
        files: ImageFiles,
        views: dict[str, View],
        batch_size: int,
        seed: int,
        device: torch.device,
        epochs: int,
        workers: int = 0,
        prefetch: int = 4,
        fetched: dict[str, View] | None = None,
        sampler: Sampler | None = None,
        share: Share = WHOLE,
    ) -> None:
        if not 1 <= batch_size <= len(files):
            raise ValueError(f"batch_size {batch_size} does not fit a training set of {len(files)} images")
        self.files, self.views, self.batch_size, self.seed, self.epochs = files, views, batch_size, seed, epochs
        self._fetched, self.share = fetched or {}, share
        self._sampler = sampler or Sampler("instance", files.labels)
        self.labels = files.labels.to(device)
        self.workers, self.prefetch = workers, prefetch
        self.steps_per_epoch = len(files) // batch_size
        self._on_device = device.type != "cpu"
        keep_freed_memory()
        self._steps: Iterator[Any] | None = None
        self._next: tuple[int, int] | None = None

    def load(self, epoch: int, step: int) -> Batch:
        """Return batch ``step`` (0-based) of ``epoch``, with every view; fastest in order."""
        if self._steps is None or self._next != (epoch, step):
            self.close()
            items = _TrainingSteps(
                self.files, self.views, self.batch_size, self.seed, not self._on_device, self._sampler, self.share
            )
            self._steps = stream(items, self._places(epoch, step), self.workers, self.prefetch, self._on_device)
        ids, keys, frames = next(self._steps)
        self._next = (epoch, step + 1) if step + 1 < self.steps_per_epoch else (epoch + 1, 0)
        device = self.labels.device
        ids, keys = ids.to(device, non_blocking=True), keys.to(device, non_blocking=True)
        return Batch({n: self._finish(n, f, keys, epoch) for n, f in frames.items()}, self.labels[ids], ids)

    def _places(self, epoch: int, step: int) -> list[tuple[int, int]]:
        rest = [(epoch, later) for later in range(step, self.steps_per_epoch)]
        whole = range(epoch + 1, max(self.epochs, epoch + 1))
        return rest + [(later, number) for later in whole for number in range(self.steps_per_epoch)]

    def _finish(self, name: str, frames: Tensor, keys: Tensor, epoch: int) -> Tensor:
        view, frames = self.views[name], frames.to(keys.device, non_blocking=True)
        if self._on_device:
            frames = view.augment(frames, keys, self.seed, epoch, name)
        return view.normalise(frames)

    def fetch(self, view: str, ids: Tensor, rounds: Tensor) -> Tensor:
        """Return a view of the images at ``ids [M]`` outside any epoch, float32 ``[M, C, H, W]``.

        ``rounds [M]`` numbers the fresh views of one image; they are keyed as epochs before the first (-1, -2, ...).
        """
        device = self.labels.device
        known = self.views | self._fetched
        one, wanted, numbers = {view: known[view]}, ids.cpu(), rounds.cpu()
        side = needed_side(self.files.framing, known)
        out: Tensor | None = None
        with ThreadPoolExecutor(max(self.workers, 1)) as pool:
            for number in sorted(set(numbers.tolist())):
                at, epoch = (numbers == number).nonzero().squeeze(1), -1 - int(number)
                parts = torch.split(wanted[at], _CHUNK)
                frames = pool.map(lambda p, e=epoch: frame_files(self.files, p, one, side, self.seed, e)[view], parts)
                whole, there = torch.cat(list(frames)).to(device), wanted[at].to(device)
                made = one[view].normalise(one[view].augment(whole, there, self.seed, epoch, view))
                out = made.new_empty(len(ids), *made.shape[1:]) if out is None else out
                out[at.to(device)] = made
        if out is None:
            raise ValueError("fetch needs at least one id")
        return out

    def close(self) -> None:
        """End the workers."""
        # Ending the generator ends the loader's iterator, and that its processes.
        self._steps, self._next = None, None
