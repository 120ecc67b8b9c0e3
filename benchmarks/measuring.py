"""What the benchmarks share: runs timed in turn, their spread, ratios, and the limits of the machine they ran on.

A figure of one benchmark is comparable only within one run of it: contestants take turns, so that a slow moment of the
machine falls on all of them, and a ratio is the median of the ratios of each turn.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from longtail.training.run_folder import environment

RESULTS = Path(__file__).parent / "results"


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the wall time of one run, the device's own queue included."""
    synchronise(device)
    began = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - began


def in_turn(
    runs: Mapping[str, Callable[[], object]], repeats: int, device: torch.device, warm_up: int = 1
) -> dict[str, list[float]]:
    """Return the seconds of every run, ``repeats`` each, taken in turn after ``warm_up`` untimed turns."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-warm_up, repeats):
        for name, run in runs.items():
            spent = seconds(run, device)
            if turn >= 0:
                taken[name].append(spent)
    return taken


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, lowest and highest."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def ratios(these: Sequence[float], those: Sequence[float]) -> dict[str, float]:
    """Return the spread of ``these / those``, turn by turn."""
    return spread([this / that for this, that in zip(these, those, strict=True)])


def show(values: Mapping[str, float], digits: int = 1) -> str:
    """Return a spread as text: median (lowest to highest)."""
    return f"{values['median']:.{digits}f} ({values['lowest']:.{digits}f} to {values['highest']:.{digits}f})"


def limits(device: torch.device, megabytes: int = 64, size: int = 1024, repeats: int = 7) -> dict[str, float]:
    """Measure what the machine can do: copies in GB/s (bytes read plus written) and float32 products in GFLOP/s."""
    source = torch.zeros(megabytes * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    square = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).to(device)
    product = torch.empty_like(square)
    runs = {"copy": lambda: target.copy_(source), "product": lambda: torch.mm(square, square, out=product)}
    taken = in_turn(runs, repeats, device)
    return {
        "copy_gigabytes_a_second": 2 * source.nbytes / statistics.median(taken["copy"]) / 1e9,
        "matmul_gigaflops": 2 * size**3 / statistics.median(taken["product"]) / 1e9,
    }


def write(out: Path, what: str, device: torch.device, results: Any, **facts: Any) -> None:
    """Write one benchmark's record: what was measured, how, on what, and the results."""
    out.parent.mkdir(parents=True, exist_ok=True)
    record = {"what": what, **facts, **environment(device), "results": results}
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {out}")
