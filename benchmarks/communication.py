"""What a step of GML sends over the network: this project's way, and with the queue broadcast at every step.

    python benchmarks/communication.py [--recipe NAME] [--gpus 8 1024] [--each 16] [--gpu h200]
        [--network 400] [--out FILE]

Counted, not measured: the tensors of a step come from the run's own method on the meta device (`longtail plan`), their
bytes a device from the algorithms (ring for sums, each part passed on once for gathers and broadcasts), their time from
the stated rates of links and latencies. The published way is DistributedDataParallel's default, which broadcasts every
buffer of the module, the queue among them, before each step, and takes each process's loss from its own queries alone,
where ours is that of the whole batch, as one process has it. Each device keeps its images (--each), so that the batch
grows with the devices.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

import longtail
import measuring
from longtail.planning.communication import Exchanged, exchanges, published_exchanges
from longtail.planning.network import BETWEEN_LATENCY, INSIDE_LATENCY, LINK_SHARE

MIB = 2**20


def rows(found: list[Exchanged]) -> list[dict[str, Any]]:
    """Return what is exchanged, JSON-ready."""
    return [vars(x) for x in found]


def compare(options: argparse.Namespace, gpus: int) -> dict[str, Any]:
    """Return both ways' exchanges of the student's step on ``gpus`` devices."""
    planned = longtail.plan(
        recipe=options.recipe,
        gpus=gpus,
        gpu=options.gpu,
        network=options.network,
        batch_size=options.each * gpus,
        quiet=True,
    )
    assert planned is not None
    stage, cluster = planned.stages[-1], planned.cluster
    sizes = stage.count.sizes
    ours, published = exchanges(sizes, cluster), published_exchanges(sizes, cluster)
    return {
        "gpus": gpus,
        "nodes": cluster.nodes,
        "batch": sizes.batch,
        "queue_mib": sizes.queue_bytes / MIB,
        "inside_bytes_a_second": cluster.inside,
        "between_bytes_a_second": cluster.between,
        "computing_seconds": stage.computing,
        "step_seconds": stage.step,
        "ours": rows(ours),
        "published": rows(published),
        "ours_mib": sum(x.sent for x in ours) / MIB,
        "published_mib": sum(x.sent for x in published) / MIB,
        "ours_seconds": sum(x.seconds for x in ours),
        "published_seconds": sum(x.seconds for x in published),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="imagenet-lt-resnext50-90epochs")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 1024])
    parser.add_argument("--each", type=int, default=16, help="images a device (default 16: batch 128 on 8)")
    parser.add_argument("--gpu", default="h200", help="device, for its links and its computing (default h200)")
    parser.add_argument("--network", type=float, default=400.0, help="Gbit/s of a device's card (default 400)")
    parser.add_argument("--out", type=Path, default=measuring.RESULTS / "communication.json")
    options = parser.parse_args(arguments)
    results = []
    for gpus in options.gpus:
        found = compare(options, gpus)
        results.append(found)
        print(
            f"{gpus} x {options.gpu} on {found['nodes']} machines, batch {found['batch']}: MiB sent a device and step"
        )
        names = {way: {x["what"] for x in found[way]} for way in ("ours", "published")}
        both = names["ours"] & names["published"]
        for x in found["ours"] + [x for x in found["published"] if x["what"] not in names["ours"]]:
            mark = "" if x["what"] in both else "ours only" if x["what"] in names["ours"] else "published only"
            print(
                f"  {x['what']:28} {x['kind']:10} {x['calls']:4} calls {x['sent'] / MIB:9.3f} MiB "
                f"{1000 * x['seconds']:8.3f} ms  {mark}"
            )
        for way in ("ours", "published"):
            print(f"  {way:28} {found[way + '_mib']:26.1f} MiB {1000 * found[way + '_seconds']:8.3f} ms")
        print(f"  computing meanwhile, predicted: {1000 * found['computing_seconds']:.1f} ms")
    measuring.write(
        options.out,
        "bytes that a GML step sends a device, counted: ours, and with buffers and queue broadcast; times projected",
        torch.device("cpu"),
        results,
        recipe=options.recipe,
        device_planned=options.gpu,
        network_gigabits=options.network,
        assumptions={
            "link_share": LINK_SHARE,
            "latency_inside": INSIDE_LATENCY,
            "latency_between": BETWEEN_LATENCY,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
