"""From images with masks to batches: each image decoded and cropped once for all views, ahead of the training.

What a batch holds is a function of (seed, epoch, step) alone: the number of workers, where a run goes on, and whether
the decoded images are kept in memory change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from longtail.data.batch_augment import normalise
from longtail.data.loading import keep_freed_memory
from longtail.data.samplers import epoch_order
from longtail.data.shares import WHOLE, Share
from longtail.data.streaming import stream
from longtail.data.views import images_at_a_time
from longtail.errors import UserError
from longtail.segmentation.data.augment import check_dense_recipe, recolour
from longtail.segmentation.data.batch import DenseBatch
from longtail.segmentation.data.geometry import Geometry, class_rarity, cut, draw_crops
from longtail.segmentation.data.mask_set import MaskFiles
from longtail.segmentation.data.reading import read_pair
from longtail.segmentation.data.resident import ResidentPairs, fits_in_memory

__all__ = ["MaskLoader", "fits_in_memory"]

PairSource = Callable[[int], tuple[Tensor, Tensor]]
"""The image, uint8 ``[3, H, W]``, and the labels, int16 ``[H, W]``, at an index."""


class Crops(NamedTuple):
    """Crops of some images: uint8 ``[B, 3, h, w]``, and of their masks: int16 ``[B, h, w]``."""

    images: Tensor
    labels: Tensor


class _Cropper:
    """Cuts the crops of an epoch's images out of them.

    Args:
        files: the training set.
        read: where pixels and labels come from.
        geometry: of the crops.
        fill: three levels of what lies outside an image.
        seed: of every draw.
    """

    def __init__(
        self, files: MaskFiles, read: PairSource, geometry: Geometry, fill: tuple[int, ...], seed: int
    ) -> None:
        self.read, self.geometry, self.fill, self.seed = read, geometry, fill, seed
        self.pixels, self.rarity = files.pixels, class_rarity(files.class_counts)

    def __call__(self, ids: Tensor, epoch: int) -> Crops:
        """Return the crops that ``epoch`` shows of the images at ``ids [B]``.

        Raises:
            UserError: a file cannot be read.
        """
        size = self.geometry.crop
        images = torch.empty(len(ids), 3, *size, dtype=torch.uint8)
        truth = torch.empty(len(ids), *size, dtype=torch.int16)
        draws = draw_crops(self.geometry, ids, self.pixels[ids], self.rarity, self.seed, epoch)
        for index, draw, place, labels_place in zip(ids.tolist(), draws, images, truth, strict=True):
            image, labels = self.read(index)
            pixels, its_labels = cut(image, labels, draw.lay(self.geometry, labels), size, self.fill)
            place.permute(1, 2, 0).numpy()[...] = pixels
            labels_place.copy_(its_labels)
        return Crops(images, truth)


class _Files:
    """Pairs decoded anew each time; what can no longer be read says how the training goes on."""

    def __init__(self, files: MaskFiles) -> None:
        self.files = files

    def __call__(self, index: int) -> tuple[Tensor, Tensor]:
        try:
            return read_pair(self.files, index)
        except UserError as error:
            raise UserError(f"{str(error).rstrip('.')}; restore it and go on with --resume.") from None


class _TrainingSteps(Dataset[Any]):
    """Item (epoch, step): ids of that batch, labels and views of its share, or the sentence that says why not."""

    def __init__(
        self, cropper: _Cropper, size: int, batch_size: int, recipes: dict[str, str], share: Share = WHOLE
    ) -> None:
        self.cropper, self.size, self.batch_size, self.recipes, self.share = cropper, size, batch_size, recipes, share
        self._order: tuple[int, Tensor] | None = None

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Tensor, dict[str, Tensor]] | str:
        epoch, step = place
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, epoch_order(self.size, self.cropper.seed, epoch)
        ids = self._order[1][step * self.batch_size : (step + 1) * self.batch_size]
        own, seed = self.share.of(ids, self.batch_size), self.cropper.seed
        try:
            crops = self.cropper(own, epoch)
        except UserError as error:
            return str(error)
        views = {name: _coloured(crops.images, recipe, own, seed, epoch, name) for name, recipe in self.recipes.items()}
        return ids, crops.labels, views


def _coloured(images: Tensor, recipe: str, ids: Tensor, seed: int, epoch: int, stream_name: str) -> Tensor:
    """Return :func:`recolour` of all images, on a processor a few at a time, which stay in its cache."""
    length = images_at_a_time(images.shape[1:], images.device)
    if recipe == "none" or len(images) <= length:
        return recolour(images, recipe, ids, seed, epoch, stream_name)
    parts = zip(torch.split(images, length), torch.split(ids, length), strict=True)
    return torch.cat([recolour(some, recipe, theirs, seed, epoch, stream_name) for some, theirs in parts])


class MaskLoader:
    """Batches of crops with their masks; an image is shown once an epoch, the last incomplete batch is dropped.

    Args:
        files: the training set.
        views: view name to recipe (see ``augment.py``). All views of an image show one crop of it.
        batch_size: images a step; one larger than the data must be made smaller by the caller.
        seed: of the order, of the crops and of every recipe.
        device: where batches go. Beside an accelerator the workers decode and crop, and the device does the rest.
        epochs: of the training; nothing is decoded ahead beyond its end.
        geometry: how images become crops.
        mean, std: three values each on 0..1, which normalise; what lies outside an image has the mean colour, which a
            recipe changes with the rest of the crop.
        workers: processes that decode and crop; 0 = the training does it itself.
        prefetch: batches that each worker prepares ahead.
        fetched: views that no batch holds, but that ``fetch`` may be asked for.
        resident: decode every file now and keep the pixels (see ``fits_in_memory``), or decode anew for every batch.
        share: of every batch, whose views and labels this process makes; ids and keys are those of all of it.

    Attributes:
        labels: int64 ``[N, C]``, pixels of each class in each image, on the device.
        makes_labels: those of a batch come with its views, so that a process that makes a share of these has no others.
        steps_per_epoch: batches an epoch.

    Raises:
        UserError: a recipe is unknown, or (``resident``) a file cannot be read.
        ValueError: the batch size is none that the data allow.
    """

    def __init__(
        self,
        files: MaskFiles,
        views: dict[str, str],
        batch_size: int,
        seed: int,
        device: torch.device,
        epochs: int,
        *,
        geometry: Geometry,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        workers: int = 0,
        prefetch: int = 4,
        fetched: dict[str, str] | None = None,
        resident: bool = False,
        share: Share = WHOLE,
    ) -> None:
        if not 1 <= batch_size <= len(files):
            raise ValueError(f"batch_size {batch_size} does not fit a training set of {len(files)} images")
        self._fetched = views | (fetched or {})
        for name, recipe in self._fetched.items():
            check_dense_recipe(recipe, name)
        self.files, self.views, self.batch_size, self.seed, self.epochs = files, views, batch_size, seed, epochs
        self.mean, self.std, self.workers, self.prefetch = mean, std, workers, prefetch
        self.labels = files.pixels.to(device)
        self.steps_per_epoch = len(files) // batch_size
        self._on_device, self._share = device.type != "cpu", share
        keep_freed_memory()
        read: PairSource = ResidentPairs(files, workers).__getitem__ if resident else _Files(files)
        self._cropper = _Cropper(files, read, geometry, tuple(round(255 * value) for value in mean), seed)
        self._steps: Iterator[Any] | None = None
        self._next: tuple[int, int] | None = None

    makes_labels = True

    def load(self, epoch: int, step: int) -> DenseBatch:
        """Return batch ``step`` (0-based) of ``epoch``, with every view; fastest in order.

        Raises:
            UserError: a file cannot be read any more; the message names it.
        """
        if self._steps is None or self._next != (epoch, step):
            self.close()
            # Beside an accelerator one copy of the crops is sent there, and each view is made of it.
            recipes = {"": "none"} if self._on_device else self.views
            items = _TrainingSteps(self._cropper, len(self.files), self.batch_size, recipes, self._share)
            self._steps = stream(items, self._places(epoch, step), self.workers, self.prefetch, self._on_device)
        ids, labels, views = next(self._steps)
        self._next = (epoch, step + 1) if step + 1 < self.steps_per_epoch else (epoch + 1, 0)
        device = self.labels.device
        ids, labels = ids.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        if self._on_device:
            crops = views[""].to(device, non_blocking=True)
            own = self._share.of(ids, self.batch_size)
            views = {n: _coloured(crops, recipe, own, self.seed, epoch, n) for n, recipe in self.views.items()}
        return self._batch(views, labels, ids, ids + epoch * len(self.files))

    def _places(self, epoch: int, step: int) -> list[tuple[int, int]]:
        rest = [(epoch, later) for later in range(step, self.steps_per_epoch)]
        whole = range(epoch + 1, max(self.epochs, epoch + 1))
        return rest + [(later, number) for later in whole for number in range(self.steps_per_epoch)]

    def _batch(self, views: dict[str, Tensor], labels: Tensor, ids: Tensor, keys: Tensor) -> DenseBatch:
        made = {name: normalise(images, self.mean, self.std) for name, images in views.items()}
        return DenseBatch(made, labels.to(torch.int64), ids, keys)

    def fetch(self, view: str, ids: Tensor, rounds: Tensor) -> DenseBatch:
        """Return a view of the images at ``ids [M]`` outside any epoch, with the masks of its crops.

        ``rounds [M]`` numbers the fresh crops of one image; they are keyed as epochs before the first (-1, -2, ...), so
        that keys are below 0. All views of one image and round show the same crop.

        Raises:
            UserError: a file cannot be read any more.
        """
        if not len(ids):
            raise ValueError("fetch needs at least one id")
        wanted, epochs, device = ids.cpu(), -1 - rounds.cpu(), self.labels.device
        size = self._cropper.geometry.crop
        images = torch.empty(len(wanted), 3, *size, dtype=torch.uint8, device=device)
        labels = torch.empty(len(wanted), *size, dtype=torch.int16, device=device)
        with ThreadPoolExecutor(max(self.workers, 1)) as pool:
            for epoch in sorted(set(epochs.tolist())):
                at = (epochs == epoch).nonzero().squeeze(1)
                there, on_device = wanted[at], at.to(device)
                crops = list(pool.map(lambda part, e=epoch: self._cropper(part, e), torch.split(there, 4)))
                pixels = torch.cat([part.images for part in crops]).to(device)
                recipe = self._fetched[view]
                images[on_device] = _coloured(pixels, recipe, there.to(device), self.seed, epoch, view)
                labels[on_device] = torch.cat([part.labels for part in crops]).to(device)
        keys = wanted + epochs * len(self.files)
        return self._batch({view: images}, labels, wanted.to(device), keys.to(device))

    def close(self) -> None:
        """End the workers."""
        # Ending the generator ends the loader's iterator, and that its processes.
        self._steps, self._next = None, None
