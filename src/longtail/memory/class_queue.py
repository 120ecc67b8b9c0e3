"""One ring buffer of contrast samples a class, so that every class always has a key.

Suh & Seo 2023, "Long-Tailed Recognition by Mutual Information Maximization between Latent Features and
Ground-Truth Labels", section on class-wise queues and Eq. 6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longtail.errors import UserError
from longtail.memory.ring import arriving, check_range, primed, ring_writes, slot_plan


def queue_lengths(class_counts: Tensor | Sequence[int], capacity: int, min_per_class: int = 1) -> Tensor:
    """Share ``capacity`` slots among the classes: Eq. 6 of Suh & Seo 2023, in integers.

    ``K_c = K_min + (K - C * K_min) * p(c)`` with p(c) the training frequency, rounded by largest remainder
    (of equal remainders the lower class index is served first).

    Args:
        class_counts: training images in each class, integers ``[C]``; zeros are allowed.
        capacity: slots of all classes together (K).
        min_per_class: slots that every class has at least (K_min), 1 or more.

    Returns:
        int64 ``[C]`` on the CPU, summing to exactly ``capacity``.

    Raises:
        UserError: the capacity cannot hold the minimum, or a count or the minimum is out of range.
    """
    given = torch.as_tensor(class_counts).tolist()
    counts = [int(count) for count in given]
    if counts != given:
        raise UserError("class_counts must be whole numbers of images.")
    total, classes = sum(counts), len(counts)
    if total == 0 or min(counts) < 0:
        raise UserError("class_counts must be non-negative with at least one image in all; check the training labels.")
    if min_per_class < 1:
        raise UserError(f"min_per_class is {min_per_class}, but every class needs at least 1 slot in the queue.")
    spare = capacity - classes * min_per_class
    if spare < 0:
        raise UserError(
            f"a queue capacity of {capacity} cannot hold {min_per_class} for each of {classes} classes; "
            f"use a capacity of at least {classes * min_per_class} or a smaller min_per_class."
        )
    # Python integers: exact at any size, where float shares can round to one slot too many or too few.
    shares = [divmod(spare * count, total) for count in counts]
    lengths = [min_per_class + whole for whole, _ in shares]
    by_remainder = sorted(range(classes), key=lambda c: (-shares[c][1], c))
    for c in by_remainder[: capacity - sum(lengths)]:
        lengths[c] += 1
    return torch.tensor(lengths, dtype=torch.int64)


class QueueContent(NamedTuple):
    """What a queue holds, class by class, as ``longtail.losses.GMLLoss`` reads it.

    Attributes:
        features: float32 ``[K, dim]``.
        offsets: int64 ``[C + 1]``: class c holds ``offsets[c]:offsets[c + 1]``.
        ids: int64 ``[K]``, -1 where unknown.
        filled: bool ``[K]``.
        longest: at least as many as any class holds, on the host.
    """

    features: Tensor
    offsets: Tensor
    ids: Tensor
    filled: Tensor
    longest: int


class ClassQueue(nn.Module):
    """Features of past samples, class by class, the newest replacing the oldest of the same class.

    Class c owns the slots ``offsets[c]:offsets[c + 1]``, the layout that ``longtail.losses.GMLLoss`` reads.
    :meth:`prime` fills the slots before the first step, so shapes never change and nothing random is ever
    counted as a sample; pass ``filled`` as the loss's ``key_mask`` where a class may have no image at all.
    Everything is a buffer, hence in ``state_dict()``.

    Args:
        class_counts: training images in each class, integers ``[C]``.
        capacity: slots of all classes together.
        dim: width of a feature.
        min_per_class: slots that every class has at least.

    Attributes:
        class_counts: int64 ``[C]``.
        longest: slots of the longest class, on the host.
        lengths: slots of each class, int64 ``[C]`` (see :func:`queue_lengths`).
        offsets: first slot of each class and, last, the capacity, int64 ``[C + 1]``.
        features: float32 ``[capacity, dim]``, zero where not filled.
        labels: class that each slot belongs to, int64 ``[capacity]``; fixed by the layout.
        ids: sample id in each slot, int64 ``[capacity]``; -1 where there is none or it was not given.
        filled: bool ``[capacity]``.
        pointers: slot within its class that each class writes next, int64 ``[C]``.

    Raises:
        UserError: see :func:`queue_lengths`.

    Example:
        >>> queue = ClassQueue(class_counts=[6, 2], capacity=4, dim=2)
        >>> queue.lengths.tolist(), queue.offsets.tolist()
        ([3, 1], [0, 3, 4])
        >>> written = queue.enqueue(torch.eye(2), torch.tensor([1, 1]), ids=torch.tensor([10, 11]))
        >>> queue.ids.tolist()
        [-1, -1, -1, 11]
    """

    class_counts: Tensor
    lengths: Tensor
    offsets: Tensor
    features: Tensor
    labels: Tensor
    ids: Tensor
    filled: Tensor
    pointers: Tensor

    def __init__(self, class_counts: Tensor | Sequence[int], capacity: int, dim: int, min_per_class: int = 1) -> None:
        super().__init__()
        lengths = self._own_lengths(queue_lengths(class_counts, capacity, min_per_class))
        capacity = int(lengths.sum())
        self.num_classes, self.capacity, self.dim = len(lengths), capacity, dim
        self.longest = int(lengths.max())
        self.register_buffer("class_counts", torch.as_tensor(class_counts, dtype=torch.int64).cpu().clone())
        self.register_buffer("lengths", lengths)
        self.register_buffer("offsets", torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))
        self.register_buffer("features", torch.zeros(capacity, dim))
        self.register_buffer("labels", torch.arange(self.num_classes).repeat_interleave(lengths))
        self.register_buffer("ids", torch.full((capacity,), -1, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros(capacity, dtype=torch.bool))
        self.register_buffer("pointers", torch.zeros(self.num_classes, dtype=torch.int64))

    def _own_lengths(self, lengths: Tensor) -> Tensor:
        """Return how many of the slots ``lengths [C]`` of the whole queue this one holds: all."""
        return lengths

    def content(self) -> QueueContent:
        """Return what the queue holds; the tensors are its own."""
        return QueueContent(self.features, self.offsets, self.ids, self.filled, self.longest)

    def prime_plan(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Say which training image fills each slot.

        A class's images come in turn, in data order. A class with fewer images than slots starts over:
        round r asks for the r-th further view of the image, so that its slots differ.

        Args:
            labels: classes of all training images, int64 ``[N]``.

        Returns:
            ``(indices [capacity], rounds [capacity])``, int64; index -1 where the class has no image.

        Raises:
            UserError: a label lies outside 0..C-1.
        """
        labels = labels.to(self.labels.device, torch.int64)
        self._check_range(labels)
        return slot_plan(labels, self.lengths)

    @torch.no_grad()
    def prime(self, labels: Tensor, encode: Callable[[Tensor, Tensor], Tensor], batch_size: int = 256) -> None:
        """Fill every slot from the training images, replacing all content; ids become the images' positions.

        Args:
            labels: classes of all training images, int64 ``[N]``.
            encode: called as ``encode(indices [M], rounds [M])``, both int64 as in :meth:`prime_plan`, M at
                most ``batch_size``; returns the features of those views, ``[M, dim]``.
            batch_size: images that are encoded at a time.

        Raises:
            UserError: a label is out of range, or a feature is not finite; the queue is then as it was.
            ValueError: ``encode`` returned another shape.
        """
        indices, rounds = self.prime_plan(labels)
        self.features.copy_(primed(self.features, indices, rounds, encode, batch_size))
        self.ids.copy_(indices)
        self.filled.copy_(indices >= 0)
        self.pointers.zero_()

    @torch.no_grad()
    def enqueue(self, features: Tensor, labels: Tensor, ids: Tensor | None = None) -> Tensor:
        """Write a batch, in its order, over the oldest slots of its classes; return the slots written, int64 ``[B]``.

        Where the batch holds more samples of a class than the class has slots, the last ones stay. A row
        with a value that is not finite counts as absent: it writes nothing and does not move its class's
        pointer. Features are detached. All shapes follow from the batch size and nothing waits for the
        device: a step with this call can be captured in a CUDA graph. The buffers change in place: call this
        before the loss of a step, not between a forward pass that read ``features`` and its backward.

        Args:
            features: ``[B, dim]``, any floating dtype (stored in the buffer's).
            labels: int64 ``[B]``.
            ids: sample ids, int64 ``[B]``; without them the slots' ids become -1.

        Raises:
            UserError: a label lies outside 0..C-1. Only checked for labels on the CPU, since elsewhere
                it would wait for the device; such a row then counts as absent.
            ValueError: shapes do not fit.
        """
        features, labels, ids, present = arriving(self.features, self.num_classes, features, labels, ids)
        if labels.numel() == 0:
            return labels
        group = torch.where(present, labels, self.num_classes)
        slot, source, some, pointers = ring_writes(group, self.offsets, self.lengths, self.pointers)
        return self._write(slot, source, some, pointers, features, ids)

    def _write(
        self, slot: Tensor, source: Tensor, some: Tensor, pointers: Tensor, features: Tensor, ids: Tensor
    ) -> Tensor:
        """Write what :func:`ring_writes` says of a batch; return the slots."""
        self.features.index_copy_(0, slot, torch.where(some, features[source], self.features[slot]))
        self.ids.index_copy_(0, slot, torch.where(some, ids[source], self.ids[slot]))
        self.filled.index_copy_(0, slot, self.filled[slot] | some)
        self.pointers.copy_(pointers)
        return slot

    def _check_range(self, labels: Tensor) -> None:
        check_range(labels, self.num_classes)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # Two class profiles can give buffers of equal shape: torch alone would take in the other layout.
        lengths = state_dict.get(prefix + "lengths")
        if lengths is not None and not torch.equal(lengths.cpu(), self.lengths.cpu()):
            error_msgs.append(
                f"{prefix}lengths: the saved queue has another layout (it was made for other class_counts, "
                "capacity or min_per_class); build the queue with the same ones to load it."
            )
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def extra_repr(self) -> str:
        """Return the sizes, for ``print(queue)``."""
        return f"classes={self.num_classes}, capacity={self.capacity}, dim={self.dim}"
