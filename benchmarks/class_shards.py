"""What a class-sharded queue costs each process, and what it sends: counted on the code itself, nothing timed.

    python benchmarks/class_shards.py [--quick] [--out FILE]

For each size, the contrast of one step (key projection, loss, both backward) of the process with the largest share, for
W processes, beside an unsharded queue, which costs every process the whole. The code runs on torch's meta device, where
tensors have shapes and no values, in a process group that is told it has W members; counted are

- slots: of the largest share. Classes are not cut, so it is a little over K / W
- queue: bytes of its buffers that go with the slots
- FLOPs: of every matrix product, by torch.utils.flop_counter
- kept: bytes that autograd keeps from forward to backward, beside parameters and queue
- exchanged: bytes of the all-reduces that sharding adds, and their number; gradients, and the batch's features for the
  queue, are exchanged with or without it

Class counts are exponential profiles between the data sets' largest and smallest class; other profiles move the largest
share only. The projection's FLOPs a slot are counted whole: W times fewer slots are W times fewer FLOPs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.flop_counter import FlopCounterMode

import measuring
from longtail.data.counts import exponential_profile
from longtail.losses import GMLLoss, ShardedGMLLoss
from longtail.memory import ClassQueue, ShardedClassQueue, project_share, queue_lengths
from longtail.memory.class_shards import class_shards
from longtail.models import ProjectionHead


class Size(NamedTuple):
    """A problem: the whole batch, slots, classes, width of a feature and of a key; largest and smallest class."""

    batch: int
    capacity: int
    classes: int
    dim: int
    width: int
    largest: int
    imbalance: float
    processes: tuple[int, ...]


SIZES = {
    "ImageNet-LT": Size(128, 16384, 1000, 2048, 1024, 1280, 256.0, (2, 4, 8)),
    "iNaturalist 2018": Size(256, 32768, 8142, 2048, 1024, 1000, 500.0, (2, 4, 8)),
    "100,000 classes": Size(1024, 2**19, 100_000, 2048, 1024, 1000, 500.0, (2, 8, 64)),
}
QUICK_SIZES = {"quick": Size(8, 64, 10, 16, 8, 50, 10.0, (2, 4))}


@contextmanager
def exchanges() -> Iterator[list[int]]:
    """Yield a list of the bytes of every all-reduce in the block."""
    sent: list[int] = []
    real = dist.all_reduce

    def counted(tensor: Tensor, *args: Any, **options: Any) -> Any:
        sent.append(tensor.numel() * tensor.element_size())
        return real(tensor, *args, **options)

    dist.all_reduce = counted
    try:
        yield sent
    finally:
        dist.all_reduce = real


@contextmanager
def kept_bytes(known: list[Tensor]) -> Iterator[dict[int, int]]:
    """Yield the bytes of every storage that autograd keeps in the block, but for those of ``known`` tensors."""
    known_storages = {tensor.untyped_storage()._cdata for tensor in known}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no storage takes another's place

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known_storages:
            alive.append(tensor)
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def step(size: Size, counts: list[int], sharded: bool) -> dict[str, Any]:
    """Count one forward and backward of the contrast in this process."""
    batch, capacity, _, dim, width = size[:5]
    kind = ShardedClassQueue if sharded else ClassQueue
    queue = kind(counts, capacity, dim, 2).to("meta")
    with torch.device("meta"):
        projection = ProjectionHead(dim, width)
        queries = torch.empty(batch, width, requires_grad=True)
        labels, ids = torch.empty(batch, dtype=torch.int64), torch.empty(batch, dtype=torch.int64)
    loss: nn.Module = (ShardedGMLLoss if sharded else GMLLoss)(counts, learn_temperature=True).to("meta")
    content = queue.content()
    known = [*projection.parameters(), *queue.buffers(), *loss.parameters(), *loss.buffers(), queries, labels, ids]
    slot_buffers = (queue.features, queue.ids, queue.labels, queue.filled)
    # The meta device knows no autocast, of which there is none here.
    with exchanges() as sent, patch("torch.autocast", lambda *args, **options: nullcontext()):
        with kept_bytes(known) as kept, FlopCounterMode(display=False) as forward:
            keys = project_share(projection, content.features, capacity) if sharded else projection(content.features)
        with FlopCounterMode(display=False) as of_loss:
            leaf = keys.detach().requires_grad_()
            with kept_bytes([*known, leaf]) as kept_by_loss:
                value = loss(
                    *(queries, labels, leaf, content.offsets),
                    query_ids=ids,
                    key_ids=content.ids,
                    key_mask=content.filled,
                    longest_class=content.longest,
                )
            value.backward()
        with FlopCounterMode(display=False) as backward:
            keys.backward(leaf.grad)
    return {
        "slots": queue.capacity,
        "queue_bytes": sum(buffer.numel() * buffer.element_size() for buffer in slot_buffers),
        "projection_flops": forward.get_total_flops() + backward.get_total_flops(),
        "similarity_flops": of_loss.get_total_flops(),
        "kept_bytes": sum(kept.values()) + sum(kept_by_loss.values()),
        "exchanges": len(sent),
        "exchanged_bytes": sum(sent),
    }


def of_processes(size: Size, counts: list[int], world: int) -> dict[str, Any]:
    """Count a step of the process with the largest share of ``world``."""
    lengths = queue_lengths(counts, size.capacity, 2)
    edges = class_shards(lengths, world)
    shares = [int(lengths[a:b].sum()) for a, b in pairwise(edges)]
    dist.init_process_group("fake", rank=shares.index(max(shares)), world_size=world, store=FakeStore())
    try:
        return {"processes": world, **step(size, counts, sharded=True)}
    finally:
        dist.destroy_process_group()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small size, to see that it runs")
    parser.add_argument("--out", type=Path, default=measuring.RESULTS / "class_shards.json")
    options = parser.parse_args(arguments)
    results = {}
    for name, size in (QUICK_SIZES if options.quick else SIZES).items():
        counts = exponential_profile(size.largest, size.classes, size.imbalance)
        whole = step(size, counts, sharded=False)
        shares = [of_processes(size, counts, world) for world in size.processes]
        results[name] = {"size": size._asdict(), "unsharded": whole, "sharded": shares}
        print(f"{name}: {size.classes} classes, {size.capacity} slots of {size.dim}, batch {size.batch}")
        for row in (whole, *shares):
            part = {
                key: whole[key] / row[key] for key in ("slots", "projection_flops", "similarity_flops", "kept_bytes")
            }
            print(
                f"  {row.get('processes', 'unsharded'):>9}  {row['slots']:7} slots (1/{part['slots']:.2f})  "
                f"queue {row['queue_bytes'] / 2**20:7.1f} MiB  "
                f"projection {row['projection_flops'] / 1e12:7.3f} TFLOP (1/{part['projection_flops']:.2f})  "
                f"similarities {row['similarity_flops'] / 1e12:6.3f} TFLOP (1/{part['similarity_flops']:.2f})  "
                f"kept {row['kept_bytes'] / 2**20:8.1f} MiB (1/{part['kept_bytes']:.2f})  "
                f"{row['exchanges']} exchanges, {row['exchanged_bytes'] / 2**10:.1f} KiB"
            )
        print(f"  to send the whole queue instead: {whole['queue_bytes'] / 2**20:.0f} MiB a step")
    measuring.write(
        options.out, "a step's contrast a process, by number of processes: counted", torch.device("cpu"), results
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
