"""A small network's step beside other programs, with GNU OpenMP's own patience of waiting threads and with ours.

    .venv/bin/python benchmarks/busy.py [--others 2] [--repeats 5] [--seconds 4] [--out FILE]

Threads that wait for work look again so many times (GOMP_SPINCOUNT) before they sleep. The command line sets a lower
number than GNU OpenMP's own (``longtail.cli``). Each run is a process of its own with all cores, on an idle machine and
beside --others busy processes of one thread, the two settings in turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

STEP = """
import sys, time, torch
torch.manual_seed(0)
layers = [torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.BatchNorm2d(32), torch.nn.ReLU()]
layers += [torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.BatchNorm2d(32), torch.nn.ReLU()]
network = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(32, 10))
images, steps = torch.randn(64, 3, 16, 16), -3
while True:
    if steps == 0:
        began = time.perf_counter()
    network(images).square().mean().backward()
    steps += 1
    if steps > 0 and time.perf_counter() - began > float(sys.argv[1]):
        break
print((time.perf_counter() - began) / steps)
"""
BUSY = "import torch; torch.set_num_threads(1); a = torch.randn(600, 600)\nwhile True: a @ a"


def milliseconds(spins: str | None, seconds: float) -> float:
    """Return what a step takes in a process with that many spins; None = GNU OpenMP's own number."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    environment = clean if spins is None else clean | {"GOMP_SPINCOUNT": spins}
    command = [sys.executable, "-c", STEP, str(seconds)]
    return 1000 * float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    import torch

    import measuring
    from longtail.cli import SPINS

    settings, table = {"GNU OpenMP's own": None, f"{SPINS} spins": SPINS}, {}
    for others in (0, options.others):
        busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(others)]
        try:
            taken: dict[str, list[float]] = {name: [] for name in settings}
            for _ in range(options.repeats):
                for name, spins in settings.items():
                    taken[name].append(milliseconds(spins, options.seconds))
        finally:
            for process in busy:
                process.kill()
                process.wait()
        ratio = measuring.ratios(*taken.values())
        print(f"beside {others} busy processes")
        for name, values in taken.items():
            print(f"  {name:<18} {statistics.median(values):7.1f} ({min(values):.1f} to {max(values):.1f}) ms a step")
        print(f"  ratio              {ratio['median']:7.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})")
        table[f"beside {others}"] = {**{name: measuring.spread(v) for name, v in taken.items()}, "ratio": ratio}
    out = options.out or measuring.RESULTS / "busy.json"
    facts = {"seconds": options.seconds, "repeats": options.repeats}
    measuring.write(out, "milliseconds a step of a small network", torch.device("cpu"), table, **facts)


if __name__ == "__main__":
    main()
