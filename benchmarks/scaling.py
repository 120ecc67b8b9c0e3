"""How the time of GMLLoss grows with classes, keys and queries: flat, linear, linear.

    python benchmarks/scaling.py [--quick] [--repeats 7] [--threads N] [--seed 0] [--device cpu] [--out FILE]

Three rows of problems that differ in one size: C from 10 to 100,000 at 131,072 keys, K from 4096 to 131,072 at 1000
classes, B from 32 to 512 at 16,384 keys. Timed in turn: the loss with ids and learned temperature, forward and
backward, and the bare product of the same size. Printed: the times, the ratio to the product, and the time relative to
the first of its row, beside what a time in proportion would be. The exponent is the slope of log time by log size.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch

import measuring
from loss import Problem, contestants, differentiate, product_run

NAMES = ("batch", "keys", "classes", "dim")
ROWS = {
    "classes": [(128, 131072, classes, 128) for classes in (10, 100, 1000, 10_000, 100_000)],
    "keys": [(128, keys, 1000, 128) for keys in (4096, 16384, 65536, 131072)],
    "batch": [(batch, 16384, 1000, 128) for batch in (32, 128, 512)],
}
QUICK_ROWS = {
    "classes": [(16, 512, classes, 16) for classes in (10, 100, 200)],
    "keys": [(16, keys, 50, 16) for keys in (256, 1024)],
    "batch": [(batch, 256, 50, 16) for batch in (8, 32)],
}


def exponent(sizes: list[int], times: list[float]) -> float:
    """Return the least-squares slope of log time by log size: 0 flat, 1 in proportion."""
    x, y = ([math.log(value) for value in values] for values in (sizes, times))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def measure(name: str, sizes: list[tuple[int, ...]], repeats: int, seed: int, device: torch.device) -> dict[str, Any]:
    """Time one row of problems, all of them in turn."""
    runs = {}
    for size in sizes:
        problem = Problem.draw(*size, seed, device)
        loss = contestants(problem)["gml, learned"]
        runs[f"gml {size}"] = lambda loss=loss, problem=problem: differentiate(loss, problem)
        runs[f"product {size}"] = product_run(problem, seed)
    taken = measuring.in_turn(runs, repeats, device)
    place = NAMES.index(name)
    points = []
    for size in sizes:
        gml, product = taken[f"gml {size}"], taken[f"product {size}"]
        points.append(
            dict(zip(NAMES, size, strict=True))
            | {
                "milliseconds": measuring.spread([1000 * x for x in gml]),
                "product_milliseconds": measuring.spread([1000 * x for x in product]),
                "times_the_product": measuring.ratios(gml, product),
                "times_the_first": measuring.ratios(gml, taken[f"gml {sizes[0]}"]),
            }
        )
    medians = [point["milliseconds"]["median"] for point in points]
    return {"varied": name, "exponent": exponent([size[place] for size in sizes], medians), "points": points}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each, at least 5 (default 7)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=torch.device, default="cpu", help="torch device (default cpu)")
    parser.add_argument("--out", type=Path, default=measuring.RESULTS / "scaling.json")
    options = parser.parse_args(arguments)
    if options.repeats < 5:
        parser.error("--repeats must be at least 5")
    if options.threads:
        torch.set_num_threads(options.threads)
    results = []
    for name, sizes in (QUICK_ROWS if options.quick else ROWS).items():
        row = measure(name, sizes, options.repeats, options.seed, options.device)
        results.append(row)
        print(f"{name}: time in proportion to its power {row['exponent']:.2f}")
        for point in row["points"]:
            print(
                f"  {point[name]:7}  {measuring.show(point['milliseconds']):>26} ms  "
                f"{point['times_the_first']['median']:6.2f} x the first "
                f"({name} {point[name] / row['points'][0][name]:.0f} x)  "
                f"{point['times_the_product']['median']:5.2f} x product"
            )
    measuring.write(
        options.out,
        "GMLLoss with ids and learned temperature, forward and backward, by number of classes, keys and queries",
        options.device,
        results,
        repeats=options.repeats,
        seed=options.seed,
        limits=measuring.limits(options.device),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
