"""Batches of image files for the training: the counterpart of ``loading.py`` where images are decoded as they come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from longtail.data.image_set import ImageFiles
from longtail.data.loading import Batch, by_rounds, keep_freed_memory
from longtail.data.samplers import EpochDraws, Sampler
from longtail.data.shares import WHOLE, Share
from longtail.data.streaming import CHUNK, Frames, frame_files, needed_side, stream
from longtail.data.views import View
from longtail.errors import UserError


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
        for some, their_keys in zip(torch.split(frames, CHUNK), torch.split(keys, CHUNK), strict=True):
            some.copy_(self.views[name].augment(some, their_keys, self.seed, epoch, name))
        return frames


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
        one, wanted = {view: known[view]}, ids.cpu()
        side = needed_side(self.files.framing, known)
        with ThreadPoolExecutor(max(self.workers, 1)) as pool:

            def made(at: Tensor, epoch: int) -> Tensor:
                parts = torch.split(wanted[at], CHUNK)
                frames = pool.map(lambda part: frame_files(self.files, part, one, side, self.seed, epoch)[view], parts)
                whole, there = torch.cat(list(frames)).to(device), wanted[at].to(device)
                return one[view].normalise(one[view].augment(whole, there, self.seed, epoch, view))

            return by_rounds(rounds, made)

    def close(self) -> None:
        """End the workers."""
        # Ending the generator ends the loader's iterator, and that its processes.
        self._steps, self._next = None, None
