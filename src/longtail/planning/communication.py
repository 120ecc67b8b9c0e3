"""What processes that train together exchange in a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longtail.planning.network import Cluster, Transfer

_BUCKET = 25 * 2**20
"""Bytes of gradients that torch's DistributedDataParallel sends at a time."""
_FEATURES, _FEATURE_GRADIENTS = "features of the student", "gradients of those features"
GRADIENTS = ("gradients", "gradients of shards")
"""Exchanges that go on during the backward pass."""
SHARDS = "weights put together"
"""The exchange that goes on while the block before it computes."""


@dataclass(frozen=True)
class Exchanged:
    """What one kind of exchange costs in a step.

    Attributes:
        what: in words.
        kind: ``all_reduce``, ``all_gather``, ``reduce_scatter`` or ``broadcast``.
        tensor_bytes: of what is exchanged, over all calls.
        calls: a step.
        sent: bytes that each process sends.
        seconds: if nothing else is done meanwhile.
    """

    what: str
    kind: str
    tensor_bytes: float
    calls: int
    sent: float
    seconds: float


@dataclass(frozen=True)
class StepSizes:
    """What decides how much a step exchanges.

    Attributes:
        batch: images over all processes.
        gradient_bytes: of all that is trained.
        student_views: views that go through the student.
        student_dim: width of its features.
        teacher_dim: width of the features that are enqueued; 0 = none are.
        norm_channels: channels of every BatchNorm of the student that sees batch statistics.
        key_norm_channels: of the BatchNorm in the keys' projection; 0 = there is none.
        queue_bytes: of the queue's features; 0 = there is none.
        sharded: whether each process holds the queue of its own classes only.
        buffer_bytes: of all buffers of what is trained but the queue.
        feature_bytes: of one number of a feature.
        student_shards, teacher_shards: bytes of the encoders' weights that lie in shards, 0 = whole in each process.
        parts: micro-batches of a step, for each of which shards are put together.
    """

    batch: int
    gradient_bytes: int
    student_views: int
    student_dim: int
    teacher_dim: int
    norm_channels: Sequence[int]
    key_norm_channels: int = 0
    queue_bytes: int = 0
    sharded: bool = False
    buffer_bytes: int = 0
    feature_bytes: int = 4
    student_shards: int = 0
    teacher_shards: int = 0
    parts: int = 1


def exchanges(sizes: StepSizes, cluster: Cluster) -> list[Exchanged]:
    """Return what a step of this project exchanges.

    The queue is the same everywhere because everyone enqueues the same gathered features: nothing of it is sent.
    """
    features = sizes.batch * sizes.student_views * sizes.student_dim * sizes.feature_bytes
    found = [
        *_of_weights(sizes, cluster),
        _times(_FEATURES, "all_gather", features, 1, cluster),
        _times(_FEATURE_GRADIENTS, "reduce_scatter", features, 1, cluster),
    ]
    if sizes.teacher_dim:
        enqueued = sizes.batch * sizes.teacher_dim * sizes.feature_bytes
        found.append(_times("features of the teacher", "all_gather", enqueued, 1, cluster))
    if sizes.norm_channels:
        # Forward every process's mean and variance, as torch's SyncBatchNorm has it too; backward two sums.
        size, layers = 8 * sum(sizes.norm_channels), len(sizes.norm_channels)
        found.append(_times("BatchNorm statistics", "all_gather", cluster.gpus * size, layers, cluster))
        found.append(_times("BatchNorm sums", "all_reduce", size, layers, cluster))
    if sizes.sharded:
        # A query's maximum; sum and log-densities of its class; backward its two gradients. Of the projection's batch
        # normalisation mean and variance, and backward two sums.
        found.append(_times("maxima and sums of the queries", "all_reduce", 4 * 6 * sizes.batch, 3, cluster))
        if sizes.key_norm_channels:
            statistics = 4 * 4 * sizes.key_norm_channels
            found.append(_times("BatchNorm of the keys", "all_reduce", statistics, 3, cluster))
    return found


def _of_weights(sizes: StepSizes, cluster: Cluster) -> list[Exchanged]:
    """Return what trained weights exchange: sums of gradients, and what shards need to be put together.

    Of shards the student's are gathered for the forward pass and again for the backward pass, the teacher's once a
    step, and each process is sent the sum of its own part of the gradient.
    """
    summed = sizes.gradient_bytes - min(sizes.student_shards, sizes.gradient_bytes)
    found = [_times("gradients", "all_reduce", summed, max(1, -(-summed // _BUCKET)), cluster)]
    if sizes.student_shards:
        gathered = 2 * sizes.parts * sizes.student_shards + sizes.teacher_shards
        scattered = min(sizes.parts * sizes.student_shards, sizes.parts * sizes.gradient_bytes)
        calls = 8  # pieces of an encoder, about
        found.append(_times(SHARDS, "all_gather", gathered, 3 * calls * sizes.parts, cluster))
        found.append(_times(GRADIENTS[1], "reduce_scatter", scattered, calls * sizes.parts, cluster))
    return found


def published_exchanges(sizes: StepSizes, cluster: Cluster) -> list[Exchanged]:
    """Return what a step exchanges if every buffer is broadcast before it, the queue with them.

    That is DistributedDataParallel at its defaults around a module that holds the queue as a buffer, as MoCo's code and
    the code published with GML have it. Each process then takes the loss of its own queries alone, so that features of
    the student are not gathered (and figures are not those of one process); the other exchanges are the same.
    """
    found = [x for x in exchanges(sizes, cluster) if x.what not in (_FEATURES, _FEATURE_GRADIENTS)]
    if sizes.queue_bytes:
        found.append(_times("the whole queue", "broadcast", sizes.queue_bytes, 1, cluster))
    if sizes.buffer_bytes:
        found.append(_times("other buffers", "broadcast", sizes.buffer_bytes, 1, cluster))
    return found


def _times(what: str, kind: str, size: float, calls: int, cluster: Cluster) -> Exchanged:
    one: Transfer = getattr(cluster, kind)(size / calls)
    return Exchanged(what, kind, size, calls, calls * one.sent, calls * one.seconds)
