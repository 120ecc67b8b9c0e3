"""The class-wise queue of teacher features of pixels: how it is filled, and what of it is compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.data.keyed import keyed_permutation
from longtail.errors import UserError
from longtail.memory import ClassQueue

PRIMING_ROUNDS = 16
"""Views of an image that are looked at, at most, for slots that are still empty before the first step.

Only images of classes with empty slots are looked at again, and such classes have few images."""

Keys = tuple[Tensor, Tensor, Tensor]
"""Features ``[Q, D]``, their labels ``[Q]`` and their images' ids ``[Q]``."""


class FilledKeys(NamedTuple):
    """The slots of a queue that hold something, class by class.

    Attributes:
        features: ``[K, dim]``.
        offsets: int64 ``[C + 1]``: class c holds ``offsets[c]:offsets[c + 1]``, none if its slots are all empty.
        ids: int64 ``[K]``, of the images.
    """

    features: Tensor
    offsets: Tensor
    ids: Tensor


def filled_keys(queue: ClassQueue) -> FilledKeys:
    """Return what ``queue`` holds, without its empty slots.

    A class of few pixels may have slots that nothing fills. A mask would keep them out of the densities, but not out of
    the batch statistics of the projection that all keys go through.
    """
    offsets = F.pad(queue.filled.cumsum(0), (1, 0))[queue.offsets]
    return FilledKeys(queue.features[queue.filled], offsets, queue.ids[queue.filled])


def empty_slots(queue: ClassQueue) -> Tensor:
    """Return how many slots of each class hold nothing, int64 ``[C]``, on the host."""
    return torch.bincount(queue.labels[~queue.filled].cpu(), minlength=queue.num_classes)


@torch.no_grad()
def prime_queue(
    queue: ClassQueue,
    pixels: Tensor,
    encode: Callable[[Tensor, Tensor], Keys],
    per_class: int,
    batch_size: int,
    seed: int,
    rounds: int = PRIMING_ROUNDS,
) -> None:
    """Fill a queue from training images, replacing all content: those of the class in the fewest images first.

    For each class that has empty slots, as many of the images that hold it are encoded as should do, and again until
    its slots are full or its images are through. All that an image shows is enqueued, so that frequent classes are
    mostly full before their turn. What a crop or a coarse map did not show may be there in the next round's views;
    slots that are still empty after the last round stay so (``filled`` says which).

    Args:
        queue: of as many classes as there are columns.
        pixels: int64 ``[N, C]``, pixels of each class in each image.
        encode: called as ``encode(ids [M], rounds [M])``, M at most ``batch_size``, on the queue's device.
        per_class: keys that an image gives for a class, at most.
        batch_size: images that are encoded at a time.
        seed: of the order of images.
        rounds: views of an image, at most.

    Raises:
        UserError: a feature is not finite.
    """
    queue.filled.fill_(False)
    queue.ids.fill_(-1)
    queue.features.zero_()
    queue.pointers.zero_()
    present = pixels.cpu() > 0
    images = present.sum(0)
    order = keyed_permutation(seed, "prime", size=len(present))
    for turn in range(rounds):
        seen = torch.zeros(len(present), dtype=torch.bool)
        for label in torch.argsort(images, stable=True).tolist():
            holding = order[present[order, label]]
            while (empty := int(empty_slots(queue)[label])) and len(fresh := holding[~seen[holding]]):
                chosen = fresh[: min(batch_size, -(-empty // per_class))]
                seen[chosen] = True
                ids = chosen.to(queue.features.device)
                features, labels, image_ids = encode(ids, torch.full_like(ids, turn))
                _check_finite(features, image_ids)
                queue.enqueue(features, labels, image_ids)


def _check_finite(features: Tensor, ids: Tensor) -> None:
    broken = ~torch.isfinite(features).all(1)
    if broken.any():
        raise UserError(
            f"the queue cannot be filled: features of training image {int(ids[broken][0])} are not finite; check that "
            "image and the weights of the network that encodes it."
        )
