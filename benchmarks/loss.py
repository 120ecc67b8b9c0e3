"""Time GMLLoss, forward and backward, against the bare similarity product and the one-hot formulation.

    python benchmarks/loss.py [--quick] [--repeats 7] [--threads N] [--seed 0] [--device cpu] [--out FILE]

What is timed, on the same unit vectors and in turn, so that a slow moment of the machine hits all alike:

- product: ``queries @ keys.T`` and its gradient by both factors; no loss of this kind can take less
- gml: ``GMLLoss`` with a fixed temperature and no ids
- gml, learned: ``GMLLoss`` with ids and a learned temperature, that is with its second copy
- one-hot: the textbook form, ``exp(similarity / temperature) @ one_hot(key classes)``

First, both forms of the loss and their gradients are compared with the same formulas in float64; the exit
code is 1 if GMLLoss is off. Printed are medians, the spread (fastest to slowest) and ratios of medians.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses import GMLLoss

# Batch, keys, classes, dimension: the sizes of iNaturalist 2018, ImageNet-LT and CIFAR-100-LT.
SIZES = [(128, 32768, 8142, 1024), (128, 16384, 1000, 1024), (128, 4096, 100, 32)]
QUICK_SIZES = [(16, 512, 100, 32), (16, 256, 10, 16)]
TEMPERATURE = 0.1
TOLERANCE = 1e-4  # on the value relative to max(1, |value|), on gradients relative to their norm


@dataclass(frozen=True)
class Problem:
    """Unit queries ``[B, D]`` and keys ``[K, D]`` in classes of Zipf-like length; each key has its own id."""

    queries: Tensor
    labels: Tensor
    keys: Tensor
    key_labels: Tensor
    lengths: Tensor
    offsets: Tensor
    query_ids: Tensor
    key_ids: Tensor

    @classmethod
    def draw(cls, batch: int, keys: int, classes: int, dim: int, seed: int, device: str) -> Problem:
        """Draw a problem; each query is a noisy copy of one key, whose sample it is."""
        generator = torch.Generator().manual_seed(seed)
        share = 1 / torch.arange(1, classes + 1, dtype=torch.float64)
        lengths = 2 + ((keys - 2 * classes) * share / share.sum()).floor().long()
        lengths[: keys - int(lengths.sum())] += 1
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        key_labels = torch.arange(classes).repeat_interleave(lengths)
        key_vectors = F.normalize(torch.randn(keys, dim, generator=generator), dim=1)
        chosen = torch.randint(0, keys, (batch,), generator=generator)
        noise = F.normalize(torch.randn(batch, dim, generator=generator), dim=1)
        queries = F.normalize(key_vectors[chosen] + noise, dim=1)
        parts = (
            queries,
            key_labels[chosen],
            key_vectors,
            key_labels,
            lengths,
            offsets,
            chosen,
            torch.arange(keys),
        )
        return cls(*(part.to(device) for part in parts))


def one_hot_loss(queries: Tensor, keys: Tensor, problem: Problem) -> Tensor:
    """Return L_GML through a ``[K, C]`` one-hot matrix, with one maximum a row for stability."""
    logits = queries @ keys.t() / TEMPERATURE
    highest = logits.detach().amax(1, keepdim=True)
    counts = problem.lengths.to(logits.dtype)
    members = F.one_hot(problem.key_labels, len(counts)).to(logits.dtype)
    means = (logits - highest).exp() @ members / counts
    return F.cross_entropy(means.log() + (counts / counts.sum()).log(), problem.labels)


def contestants(problem: Problem) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return what is timed: each takes queries and keys and gives a scalar to differentiate."""
    fixed = GMLLoss(problem.lengths, TEMPERATURE).to(problem.queries.device)
    learned = GMLLoss(problem.lengths, TEMPERATURE, learn_temperature=True).to(problem.queries.device)
    place = problem.offsets
    ids = (problem.query_ids, problem.key_ids)
    return {
        "gml": lambda queries, keys: fixed(queries, problem.labels, keys, place),
        "gml, learned": lambda queries, keys: learned(queries, problem.labels, keys, place, *ids),
        "one-hot": lambda queries, keys: one_hot_loss(queries, keys, problem),
    }


def differentiate(loss: Callable[[Tensor, Tensor], Tensor], problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Return the value and its gradients by queries and keys."""
    queries, keys = problem.queries.detach().requires_grad_(), problem.keys.detach().requires_grad_()
    value = loss(queries, keys)
    value.backward()
    assert queries.grad is not None
    assert keys.grad is not None
    return value.detach(), queries.grad, keys.grad


def exact(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Return L_GML and its gradients in float64, class by class, written without the project's code."""
    queries, keys = problem.queries.double(), problem.keys.double()
    logits = queries @ keys.t() / TEMPERATURE
    lengths = problem.lengths.tolist()
    densities = torch.stack([part.logsumexp(1) for part in logits.split(lengths, dim=1)], 1)
    share = problem.lengths.double()
    scores = densities - share.log() + (share / share.sum()).log()
    posterior = scores.softmax(1)
    rows = torch.arange(len(queries), device=queries.device)
    value = -scores.log_softmax(1)[rows, problem.labels].mean()
    posterior[rows, problem.labels] -= 1
    spread = (logits - densities[:, problem.key_labels]).exp() * posterior[:, problem.key_labels]
    spread /= len(queries) * TEMPERATURE
    return value, spread @ keys, spread.t() @ queries


def deviation(found: tuple[Tensor, Tensor, Tensor], wanted: tuple[Tensor, Tensor, Tensor]) -> float:
    """Return the largest error of value and gradients, each relative as TOLERANCE says."""
    value = (found[0] - wanted[0]).abs() / wanted[0].abs().clamp(min=1)
    errors = [(f.double() - w).norm() / w.norm() for f, w in zip(found[1:], wanted[1:], strict=True)]
    return max(float(value), *(float(error) for error in errors))


def seconds(run: Callable[[], object], device: str) -> float:
    """Return the wall time of one run, the device's own queue included."""
    if device != "cpu":
        torch.accelerator.synchronize()
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def measure(size: tuple[int, int, int, int], repeats: int, seed: int, device: str) -> dict[str, object]:
    """Check and time one size; return its figures, times in milliseconds."""
    problem = Problem.draw(*size, seed, device)
    losses = contestants(problem)
    wanted = exact(problem)
    errors = {name: deviation(differentiate(loss, problem), wanted) for name, loss in losses.items()}
    arriving = torch.randn(size[0], size[1], generator=torch.Generator().manual_seed(seed)).to(device)

    def product() -> None:
        queries, keys = problem.queries.detach().requires_grad_(), problem.keys.detach().requires_grad_()
        (queries @ keys.t()).backward(arriving)

    runs: dict[str, Callable[[], object]] = {"product": product}
    for name, loss in losses.items():
        runs[name] = lambda loss=loss: differentiate(loss, problem)
    seconds(product, device)  # the losses have been run once by the check
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(1000 * seconds(run, device))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        "size": dict(zip(("batch", "keys", "classes", "dim"), size, strict=True)),
        "relative_error": errors,
        "milliseconds": {
            name: {"median": medians[name], "fastest": min(taken), "slowest": max(taken)}
            for name, taken in times.items()
        },
        "times_the_product": {name: medians[name] / medians["product"] for name in losses},
        "times_faster_than_one_hot": {name: medians["one-hot"] / medians[name] for name in losses if name != "one-hot"},
    }


def print_figures(figures: dict[str, object]) -> None:
    """Print one size's figures as a small table."""
    print("  ".join(f"{name} {value}" for name, value in figures["size"].items()))
    for name, taken in figures["milliseconds"].items():
        line = f"  {name:13} {taken['median']:9.2f} ms ({taken['fastest']:.2f} to {taken['slowest']:.2f})"
        if name != "product":
            line += f"  {figures['times_the_product'][name]:7.2f} x product"
            line += f"  error {figures['relative_error'][name]:.1e}"
        if name in figures["times_faster_than_one_hot"]:
            line += f"  {figures['times_faster_than_one_hot'][name]:6.1f} x faster than one-hot"
        print(line)


def processor() -> str:
    """Return the processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} logical cores" if names else platform.processor() or platform.machine()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each, at least 5 (default 7)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="torch device (default cpu)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "loss.json")
    options = parser.parse_args(arguments)
    if options.repeats < 5:
        parser.error("--repeats must be at least 5")
    if options.threads:
        torch.set_num_threads(options.threads)
    sizes = QUICK_SIZES if options.quick else SIZES
    results = []
    for size in sizes:
        results.append(measure(size, options.repeats, options.seed, options.device))
        print_figures(results[-1])
    report = {
        "hardware": processor() if options.device == "cpu" else torch.cuda.get_device_name(options.device),
        "device": options.device,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "repeats": options.repeats,
        "seed": options.seed,
        "temperature": TEMPERATURE,
        "results": results,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {options.out}")
    worst = max(result["relative_error"][name] for result in results for name in ("gml", "gml, learned"))
    if worst > TOLERANCE:
        print(f"GMLLoss is off by {worst:.1e}, more than {TOLERANCE:.0e}", file=sys.stderr)
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
