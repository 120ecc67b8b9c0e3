"""How far runs of several processes are from the run of one, on digits-lt: growing rounding, nothing else.

    OMP_NUM_THREADS=1 python benchmarks/processes.py [--epochs 3 20] [--out benchmarks/results/processes.json]

GML, float32, one seed, on the processor: one process, two, four, two with encoders and queue in shards. Printed are the
largest difference of the test images' logits from those of one process, and top-1. Sums of float32 in another order
differ in the last digit, and training makes that grow with every step; in float64 the same runs agree below 1e-9 after
20 steps (tests/training/test_whole_batch.py).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import measuring

SHARDED = ("--optimiser.shard", "true", "--queue.sharded", "true")
RUNS: dict[str, tuple[int, tuple[str, ...]]] = {
    "1 process": (1, ()),
    "2 processes": (2, ()),
    "4 processes": (4, ()),
    "2 processes, sharded": (2, SHARDED),
}


def train(out: Path, processes: int, epochs: int, words: tuple[str, ...]) -> None:
    """Train digits-lt into ``out``."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    own = ["train", "digits-lt", "--epochs", str(epochs), "--device", "cpu", "--quiet", "--out", str(out), *words]
    subprocess.run([sys.executable, *launcher, "-m", "longtail", *own], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, nargs="+", default=[3, 20])
    parser.add_argument("--out", type=Path, default=measuring.RESULTS / "processes.json")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    for epochs in options.epochs:
        with tempfile.TemporaryDirectory() as folder:
            one = None
            for name, (processes, words) in RUNS.items():
                out = Path(folder) / name
                train(out, processes, epochs, words)
                logits = load_file(out / "predictions.safetensors")["logits"]
                one = logits if one is None else one
                figures = json.loads((out / "evaluation.json").read_text())
                found = {
                    "epochs": epochs,
                    "run": name,
                    "largest_difference": float((logits - one).abs().max()),
                    "largest_logit": float(one.abs().max()),
                    "top1": figures["top1"],
                    "worst_class": figures["worst_class"],
                }
                results.append(found)
                print(
                    f"{epochs:3} epochs, {name:21} logits (up to {found['largest_logit']:.1f}) differ by at most "
                    f"{found['largest_difference']:.2g}; top-1 {100 * found['top1']:.1f} %",
                    flush=True,
                )
    measuring.write(options.out, "runs of several processes beside that of one", torch.device("cpu"), results)


if __name__ == "__main__":
    main()
