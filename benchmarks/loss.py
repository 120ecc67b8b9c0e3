"""Time GMLLoss, forward and backward, against the bare similarity product and the one-hot formulation.

    python benchmarks/loss.py [--quick] [--repeats 9] [--threads N] [--seed 0] [--device cpu] [--out FILE]

What is timed, on the same unit vectors and in turn:

- product: ``queries @ keys.T`` and its gradient by both factors
- gml: ``GMLLoss`` with a fixed temperature and no ids
- gml, learned: ``GMLLoss`` with ids and a learned temperature, that is with its second copy
- one-hot: the textbook form, ``exp(similarity / temperature) @ one_hot(key classes)``
- on a GPU also the fused kernel (``kernel="fused"``) of both, and one-hot through ``torch.compile``

First, every form of the loss and its gradients is compared with the same formulas in float64; the exit code is 1 if
GMLLoss is off. Beside the times stand the operations and bytes that the loss cannot do without, and how long the
machine's measured product rate and copy rate would take for them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import measuring
from longtail.losses import GMLLoss
from longtail.losses.label_odds_fused import Kernel

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
    def draw(cls, batch: int, keys: int, classes: int, dim: int, seed: int, device: torch.device) -> Problem:
        """Draw a problem; each query is a noisy copy of one key, whose sample it is."""
        generator = torch.Generator().manual_seed(seed)
        share = 1 / torch.arange(1, classes + 1, dtype=torch.float64)
        least = min(2, keys // classes)
        lengths = least + ((keys - least * classes) * share / share.sum()).floor().long()
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
    device = problem.queries.device
    ids = {"query_ids": problem.query_ids, "key_ids": problem.key_ids}
    place = {"offsets": problem.offsets, "longest_class": int(problem.lengths.max())}

    def loss(kernel: Kernel, **options: Any) -> Callable[[Tensor, Tensor], Tensor]:
        module = GMLLoss(problem.lengths, TEMPERATURE, kernel=kernel, **options).to(device)
        given = place | (ids if options else {})
        return lambda queries, keys: module(queries, problem.labels, keys, **given)

    found: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "gml": loss("plain"),
        "gml, learned": loss("plain", learn_temperature=True),
        "one-hot": lambda queries, keys: one_hot_loss(queries, keys, problem),
    }
    if device.type == "cuda":
        compiled = torch.compile(one_hot_loss, dynamic=False)
        found["gml, fused"] = loss("fused")
        found["gml, fused, learned"] = loss("fused", learn_temperature=True)
        found["one-hot, compiled"] = lambda queries, keys: compiled(queries, keys, problem)
    return found


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


def counted(batch: int, keys: int, classes: int, dim: int) -> dict[str, float]:
    """Return the operations of the three products, and the bytes of the plain way: each array once an operation."""
    similarities, vectors = batch * keys, (batch + keys) * dim
    # B x K: written, read for the maximum, less the maximum, to the power, summed, and read by both gradients.
    passes = 1 + 1 + 2 + 2 + 1 + 2
    return {
        "gigaflop": 6 * batch * keys * dim / 1e9,
        "gigabytes": 4 * (passes * similarities + 3 * vectors) / 1e9,
    }


def product_run(problem: Problem, seed: int) -> Callable[[], object]:
    """Return what runs the bare product forward and backward."""
    shape = (len(problem.queries), len(problem.keys))
    arriving = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(problem.queries.device)

    def product() -> None:
        queries, keys = problem.queries.detach().requires_grad_(), problem.keys.detach().requires_grad_()
        (queries @ keys.t()).backward(arriving)

    return product


def measure(
    size: tuple[int, int, int, int], repeats: int, seed: int, device: torch.device, limits: dict[str, float]
) -> dict[str, Any]:
    """Check and time one size; return its figures, times in milliseconds."""
    problem = Problem.draw(*size, seed, device)
    losses = contestants(problem)
    wanted = exact(problem)
    errors = {name: deviation(differentiate(loss, problem), wanted) for name, loss in losses.items()}
    runs: dict[str, Callable[[], object]] = {"product": product_run(problem, seed)}
    runs |= {name: lambda loss=loss: differentiate(loss, problem) for name, loss in losses.items()}
    taken = measuring.in_turn(runs, repeats, device, warm_up=3)
    need = counted(*size)
    ours = [name for name in losses if name.startswith("gml")]
    return {
        "size": dict(zip(("batch", "keys", "classes", "dim"), size, strict=True)),
        "relative_error": errors,
        "milliseconds": {name: measuring.spread([1000 * x for x in times]) for name, times in taken.items()},
        "times_the_product": {name: measuring.ratios(taken[name], taken["product"]) for name in losses},
        "times_faster_than_one_hot": {name: measuring.ratios(taken["one-hot"], taken[name]) for name in ours},
        "counted": need,
        "milliseconds_at_the_limits": {
            "operations": 1000 * need["gigaflop"] / limits["matmul_gigaflops"],
            "bytes": 1000 * need["gigabytes"] / limits["copy_gigabytes_a_second"],
        },
    }


def print_figures(figures: dict[str, Any]) -> None:
    """Print one size's figures as a small table."""
    print("  ".join(f"{name} {value}" for name, value in figures["size"].items()))
    for name, taken in figures["milliseconds"].items():
        line = f"  {name:19} {measuring.show(taken, 2):>28} ms"
        if name != "product":
            line += f"  {figures['times_the_product'][name]['median']:6.2f} x product"
            line += f"  error {figures['relative_error'][name]:.1e}"
        if name in figures["times_faster_than_one_hot"]:
            line += f"  {figures['times_faster_than_one_hot'][name]['median']:5.1f} x faster than one-hot"
        print(line)
    need, least = figures["counted"], figures["milliseconds_at_the_limits"]
    print(
        f"  at the limits: {need['gigaflop']:.2f} GFLOP {least['operations']:.2f} ms, "
        f"{need['gigabytes']:.3f} GB {least['bytes']:.2f} ms"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of each, at least 5 (default 9)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=torch.device, default="cpu", help="torch device (default cpu)")
    parser.add_argument("--out", type=Path, default=measuring.RESULTS / "loss.json")
    options = parser.parse_args(arguments)
    if options.repeats < 5:
        parser.error("--repeats must be at least 5")
    if options.threads:
        torch.set_num_threads(options.threads)
    limits = measuring.limits(options.device)
    results = []
    for size in QUICK_SIZES if options.quick else SIZES:
        results.append(measure(size, options.repeats, options.seed, options.device, limits))
        print_figures(results[-1])
    measuring.write(
        options.out,
        "GMLLoss forward and backward against the bare product and one-hot",
        options.device,
        results,
        repeats=options.repeats,
        seed=options.seed,
        temperature=TEMPERATURE,
        limits=limits,
    )
    ours = [error for result in results for name, error in result["relative_error"].items() if name.startswith("gml")]
    if max(ours) > TOLERANCE:
        print(f"GMLLoss is off by {max(ours):.1e}, more than {TOLERANCE:.0e}", file=sys.stderr)
    return int(max(ours) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
