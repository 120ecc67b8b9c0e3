"""From an :class:`ImageSet` to batches: resident arrays, each batch a function of (seed, epoch, step) alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from longtail.data.image_set import ImageSet
from longtail.data.samplers import EpochDraws, Sampler
from longtail.data.shares import WHOLE, Share
from longtail.data.views import View, images_at_a_time

_SHARE = 0.5
"""Of a device's free memory that images may take: the model, its activations and the optimiser need the rest."""


@dataclass
class Batch:
    """One step's samples.

    Attributes:
        views: view name to float32 ``[B, C, H, W]``, normalised; where several processes train together, this one's
            rows alone.
        labels: int64 ``[B]``, of the whole batch.
        ids: int64 ``[B]``, positions in the training set.
    """

    views: dict[str, Tensor]
    labels: Tensor
    ids: Tensor


def free_memory(device: torch.device) -> int | None:
    """Return the bytes free on an accelerator; None for the CPU, where images lie already, or where none can tell."""
    if device.type == "cpu":
        return None
    try:
        return int(torch.accelerator.get_memory_info(device)[0])
    except (AttributeError, NotImplementedError, RuntimeError):
        return None


def image_home(needed: int, free: int | None, device: torch.device) -> tuple[torch.device, str | None]:
    """Return where images of ``needed`` bytes should live, and what to tell the user if that is not the device.

    ``free`` are the bytes free on the device, None if unknown or of no account. They must hold the images twice.
    """
    if free is None or needed <= _SHARE * free:
        return device, None
    size, room = needed / 2**30, free / 2**30
    return torch.device("cpu"), (
        f"the training images take {size:.1f} GiB and {device} has {room:.1f} GiB free, so they stay in the host's "
        "memory and every batch is sent over."
    )


def keep_freed_memory() -> None:
    """Make the C library keep up to 62 MiB of what is freed, where it is glibc; elsewhere nothing changes.

    By default it gives large blocks back to the system, and the next batch's first touch of each page costs more than
    the arithmetic on it: a third of the time of the CIFAR views. Freeing one block of nearly 32 MiB raises that limit,
    which glibc adapts to what it sees, to its largest value. The block is never touched and takes no memory.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def by_rounds(rounds: Tensor, made: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Return views of samples, each of its own round, ``[M, ...]``.

    Args:
        rounds: ``[M]``; round r of a sample is keyed as epoch -1 - r.
        made: called with the places in ``rounds`` (on the host) that are of one round, and the epoch it is keyed as.

    Raises:
        ValueError: there is none.
    """
    numbers, out = rounds.cpu(), None
    for number in sorted(set(numbers.tolist())):
        at = (numbers == number).nonzero().squeeze(1)
        views = made(at, -1 - int(number))
        out = views.new_empty(len(numbers), *views.shape[1:]) if out is None else out
        out[at.to(out.device)] = views
    if out is None:
        raise ValueError("fetch needs at least one id")
    return out


class ResidentLoader:
    """Batches of images that lie on the device as uint8, or on the host if the device has no room for them.

    Views of several steps are made at once, which costs far less than step by step: an operation on some thousand
    small images takes hardly longer than on a hundred, and beside an accelerator the host waits once for all of them.
    As every draw belongs to its sample, epoch and view, this changes no value.

    The last incomplete batch of an epoch is dropped (its BatchNorm statistics would be those of a few images).

    Args:
        images: the training set.
        views: view name to augmentation.
        batch_size: images a step; one larger than the data must be made smaller by the caller.
        seed: of the order and of every augmentation.
        device: where views are made.
        home: where the images live: ``device`` or the CPU. None = on the device if they fit.
        steps_at_once: steps whose views are made together; None = as many as the device likes.
        fetched: views that no batch holds, but that ``fetch`` may be asked for.
        sampler: what an epoch draws; None = each image once.
        share: of every batch, what this process makes; labels and ids are those of the whole batch all the same.

    Attributes:
        home: where the images live.
        notice: a sentence for the user where the images do not fit the device, else None.
    """

    def __init__(
        self,
        images: ImageSet,
        views: dict[str, View],
        batch_size: int,
        seed: int,
        device: torch.device,
        home: torch.device | None = None,
        steps_at_once: int | None = None,
        fetched: dict[str, View] | None = None,
        sampler: Sampler | None = None,
        share: Share = WHOLE,
    ) -> None:
        if not 1 <= batch_size <= len(images):
            raise ValueError(f"batch_size {batch_size} does not fit a training set of {len(images)} images")
        self.notice: str | None = None
        if home is None:
            # One image shown many times takes the memory of one, but only where it lies already.
            shown = images.images.untyped_storage().nbytes() if images.images.device == device else images.images.nbytes
            needed = min(images.images.nbytes, shown)
            home, self.notice = image_home(needed, free_memory(device), device)
        self.home, self.device = home, device
        self.images = images.images.to(home)
        self.labels = images.labels.to(device)
        if device.type == "cpu":
            keep_freed_memory()
        self.views, self._fetched = views, fetched or {}
        self._sampler = sampler or Sampler("instance", images.labels)
        self.batch_size, self.share = batch_size, share
        self._rows = batch_size // share.ranks
        self.seed = seed
        self.steps_per_epoch = len(images) // batch_size
        # Views that differ in name alone are made together.
        self._names: dict[View, list[str]] = {}
        for name, view in views.items():
            self._names.setdefault(view, []).append(name)
        together = self._rows * max(map(len, self._names.values()), default=1)
        self._steps_at_once = steps_at_once or max(1, images_at_a_time(self.images.shape[1:], device) // together)
        self._draws: dict[torch.device, tuple[int, EpochDraws]] = {}
        self._made: tuple[int, range, dict[str, Tensor]] = -1, range(0), {}
        self._sent: tuple[int, range, Tensor] | None = None

    def order(self, epoch: int) -> Tensor:
        """Return the epoch's order of sample ids, int64 ``[N]``."""
        return self._drawn(epoch, self.device).ids

    def load(self, epoch: int, step: int) -> Batch:
        """Return batch ``step`` (0-based) of ``epoch``, with every view; fastest in order."""
        if self._made[0] != epoch or step not in self._made[1]:
            self._make(epoch, self._steps_from(step))
        _, steps, views = self._made
        start = (step - steps.start) * self._rows
        ids = self.order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
        return Batch({n: v[start : start + self._rows] for n, v in views.items()}, self.labels[ids], ids)

    def _steps_from(self, step: int) -> range:
        return range(step, min(step + self._steps_at_once, self.steps_per_epoch))

    def _make(self, epoch: int, steps: range) -> None:
        """Make the views of some steps."""
        self._made = -1, range(0), {}  # their memory is free for the next ones
        keys = self._of_steps(self._drawn(epoch, self.device).keys, steps)
        if self._sent is not None and self._sent[:2] == (epoch, steps):
            pixels = self._sent[2]
        else:
            pixels = self._pixels(self._of_steps(self._drawn(epoch, self.home).ids, steps))
        self._sent = None
        views: dict[str, Tensor] = {}
        for view, names in self._names.items():
            made = view(pixels, keys, self.seed, epoch, tuple(names))
            views |= dict(zip(names, made.unbind(0), strict=True))
        self._made = epoch, steps, {name: views[name] for name in self.views}
        if self.home != self.device and steps.stop < self.steps_per_epoch:
            # While the device is busy, the host gathers what comes next.
            later = self._steps_from(steps.stop)
            self._sent = epoch, later, self._pixels(self._of_steps(self._drawn(epoch, self.home).ids, later))

    def _of_steps(self, drawn: Tensor, steps: range) -> Tensor:
        """Return what this process makes of an epoch's draws ``[N]`` for some steps."""
        return self.share.of(drawn[steps.start * self.batch_size : steps.stop * self.batch_size], self.batch_size)

    def _pixels(self, ids: Tensor) -> Tensor:
        """Return the images at ``ids``, which are where the images are, on the device."""
        if self.home == self.device:
            return self.images.index_select(0, ids)
        pinned = self.device.type != "cpu"  # what is not pinned, the host waits for
        chosen = torch.empty(len(ids), *self.images.shape[1:], dtype=torch.uint8, pin_memory=pinned)
        return torch.index_select(self.images, 0, ids, out=chosen).to(self.device, non_blocking=True)

    def _drawn(self, epoch: int, device: torch.device) -> EpochDraws:
        known = self._draws.get(device)
        if known is None or known[0] != epoch:
            known = self._draws[device] = epoch, self._sampler.draws(self.seed, epoch, device)
        return known[1]

    def fetch(self, view: str, ids: Tensor, rounds: Tensor) -> Tensor:
        """Return a view of the images at ``ids [M]`` outside any epoch, float32 ``[M, C, H, W]``.

        ``rounds [M]`` numbers the fresh views of one image; they are keyed as epochs before the first (-1, -2, ...).
        """
        recipe, there = (self.views | self._fetched)[view], ids.to(self.home)

        def made(at: Tensor, epoch: int) -> Tensor:
            chosen = there[at.to(there.device)]
            return recipe(self._pixels(chosen), chosen.to(self.device), self.seed, epoch, view)

        return by_rounds(rounds, made)

    def close(self) -> None:
        """Nothing runs beside the training that would have to end; what was made ahead is given back."""
        self._made, self._sent = (-1, range(0), {}), None
