"""Memory layout and precision of a training step's network: forward and backward of ResNet-32 at batch 128, 32x32.

    python benchmarks/precision.py [--device cuda] [--quick]

Prints milliseconds (median of the repeats, lowest and highest) and the ratio to float32 in the default layout, all in
one run, taken in turn. Writes benchmarks/results/precision.json (not with --quick). The loop uses channels last;
bfloat16 is `--precision bfloat16`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from longtail.models import build_encoder
from longtail.training.run_folder import environment

CASES = [
    ("float32, NCHW", torch.contiguous_format, False),
    ("float32, channels last", torch.channels_last, False),
    ("bfloat16, NCHW", torch.contiguous_format, True),
    ("bfloat16, channels last", torch.channels_last, True),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="small batch, few repeats, no file written")
    options = parser.parse_args()
    device, batch, repeats = torch.device(options.device), 8 if options.quick else 128, 3 if options.quick else 9
    torch.manual_seed(0)
    images = torch.randn(batch, 3, 32, 32, device=device)
    network = build_encoder("cifar_resnet32", 3).to(device)

    def step(layout: torch.memory_format, low: bool) -> float:
        network.to(memory_format=layout)
        pixels = images.contiguous(memory_format=layout)
        for timed in (False, True):  # once to warm up after the change of layout
            network.zero_grad()
            began = time.perf_counter()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
                features = network(pixels)
            features.float().square().sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if timed:
                return 1000 * (time.perf_counter() - began)
        raise AssertionError

    times: dict[str, list[float]] = {name: [] for name, _, _ in CASES}
    for _ in range(repeats):
        for name, layout, low in CASES:
            times[name].append(step(layout, low))
    base = statistics.median(times[CASES[0][0]])
    rows = {}
    for name, values in times.items():
        middle = statistics.median(values)
        rows[name] = {"ms": middle, "lowest": min(values), "highest": max(values), "times faster": base / middle}
        print(f"{name:<26} {middle:8.1f} ms  ({min(values):.1f} to {max(values):.1f})  x {base / middle:.2f}")
    if not options.quick:
        path = Path(__file__).parent / "results" / f"precision-{device.type}.json"
        record = {"what": f"ResNet-32, batch {batch}, 32x32x3, forward and backward", "repeats": repeats, "seed": 0}
        path.write_text(json.dumps({**record, **environment(device), "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
