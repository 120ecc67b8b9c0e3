"""Peak memory and time of GMLLoss on batches as large as segmentation's: the whole at once, and in parts.

    python benchmarks/memory.py [--quick] [--repeats 5] [--threads N] [--seed 0] [--device cpu] [--out FILE]

65,536 queries against 4096 and 16,384 keys, with ids and a learned temperature, forward and backward, three ways:

- whole: all similarities at once
- parts: ``max_similarities`` of 4 million; each part's gradients taken at once (three products)
- recomputed: the same parts through ``torch.utils.checkpoint`` (four products), the other way to bound memory

Every run is a process of its own, the ways in turn, after one run of 64 queries to load the libraries. Memory is the
largest resident size during the run (Linux counts it; on a GPU: the allocator's largest) less what was there before it.
The ways' gradients are compared first, on 512 queries; the exit code is 1 if they differ.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import measuring
from longtail.losses import GMLLoss
from loss import TEMPERATURE, Problem, differentiate

SIZES = [(65536, 4096, 100, 64), (65536, 16384, 1000, 64)]
QUICK_SIZES = [(2048, 512, 10, 16)]
WAYS = ("whole", "parts", "recomputed")
MOST = 2**22
TOLERANCE = 1e-5


def way(name: str, problem: Problem) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss that a way computes."""
    most = MOST if name == "parts" else None
    loss = GMLLoss(problem.lengths, TEMPERATURE, learn_temperature=True, max_similarities=most)
    loss = loss.to(problem.queries.device)
    longest = int(problem.lengths.max())

    def of(queries: Tensor, keys: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        return loss(queries, labels, keys, problem.offsets, ids, problem.key_ids, longest_class=longest)

    if name != "recomputed":
        return lambda queries, keys: of(queries, keys, problem.labels, problem.query_ids)
    rows = max(1, MOST // len(problem.keys))

    def recomputed(queries: Tensor, keys: Tensor) -> Tensor:
        parts = zip(queries.split(rows), problem.labels.split(rows), problem.query_ids.split(rows), strict=True)
        found = [len(q) * checkpoint(of, q, keys, label, ids, use_reentrant=False) for q, label, ids in parts]
        return torch.stack(found).sum() / len(queries)

    return recomputed


def resident(which: str) -> int:
    """Return this process' resident memory in bytes: ``VmRSS`` now, ``VmHWM`` the largest since it was forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(which))


def one_run(name: str, size: tuple[int, int, int, int], seed: int, device: torch.device) -> dict[str, float]:
    """Run one way once in this process; return seconds and bytes."""
    small = Problem.draw(64, *size[1:], seed, device)
    differentiate(way(name, small), small)
    problem = Problem.draw(*size, seed, device)
    loss = way(name, problem)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forget the largest size so far
        before = resident("VmRSS")
    spent = measuring.seconds(lambda: differentiate(loss, problem), device)
    largest = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident("VmHWM")
    return {"seconds": spent, "bytes": largest - before}


def disagreement(size: tuple[int, int, int, int], seed: int, device: torch.device) -> float:
    """Return the largest relative difference of gradients between the ways, at 512 queries."""
    problem = Problem.draw(512, *size[1:], seed, device)
    whole, *others = [differentiate(way(name, problem), problem) for name in WAYS]
    return max(float((a - b).norm() / b.norm()) for other in others for a, b in zip(other, whole, strict=True))


def process(name: str, size: tuple[int, int, int, int], options: argparse.Namespace) -> dict[str, float]:
    """Run one way once in a process of its own."""
    command = [sys.executable, __file__, "--one", name, *map(str, size), "--seed", str(options.seed)]
    command += ["--device", str(options.device), "--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(size: tuple[int, int, int, int], options: argparse.Namespace) -> dict[str, Any]:
    """Check and time one size."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for _ in range(options.repeats):
        for name in WAYS:
            taken[name].append(process(name, size, options))
    times = {name: [run["seconds"] for run in runs] for name, runs in taken.items()}
    return {
        "size": dict(zip(("batch", "keys", "classes", "dim"), size, strict=True)),
        "similarities_megabytes": 4 * size[0] * size[1] / 1e6,
        "relative_difference": disagreement(size, options.seed, options.device),
        "megabytes": {name: measuring.spread([run["bytes"] / 1e6 for run in runs]) for name, runs in taken.items()},
        "seconds": {name: measuring.spread(values) for name, values in times.items()},
        "times_the_whole": {name: measuring.ratios(times[name], times["whole"]) for name in WAYS[1:]},
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small size, to see that it runs")
    parser.add_argument("--repeats", type=int, default=5, help="processes of each way, at least 5 (default 5)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=torch.device, default="cpu", help="torch device (default cpu)")
    parser.add_argument("--out", type=Path, default=measuring.RESULTS / "memory.json")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.one:
        name, *size = options.one
        batch, keys, classes, dim = map(int, size)
        print(json.dumps(one_run(name, (batch, keys, classes, dim), options.seed, options.device)))
        return 0
    if options.repeats < 5:
        parser.error("--repeats must be at least 5")
    if options.device.type == "cpu" and not Path("/proc/self/clear_refs").exists():
        parser.error("the memory of a process is read from /proc, which only Linux has; use --device cuda")
    results = []
    for size in QUICK_SIZES if options.quick else SIZES:
        figures = measure(size, options)
        results.append(figures)
        print("  ".join(f"{name} {value}" for name, value in figures["size"].items()))
        print(f"  the similarities alone: {figures['similarities_megabytes']:.0f} MB")
        for name in WAYS:
            memory, spent = measuring.show(figures["megabytes"][name], 0), measuring.show(figures["seconds"][name], 2)
            print(f"  {name:11} {memory:>24} MB  {spent:>24} s")
    measuring.write(
        options.out,
        "GMLLoss on large batches, forward and backward: peak memory above the inputs, and time",
        options.device,
        results,
        repeats=options.repeats,
        seed=options.seed,
        max_similarities=MOST,
    )
    worst = max(figures["relative_difference"] for figures in results)
    if worst > TOLERANCE:
        print(f"the ways differ by {worst:.1e}, more than {TOLERANCE:.0e}", file=sys.stderr)
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
