"""Do a change's figures differ from those of the code before it? The same command with both, seed by seed.

    .venv/bin/python benchmarks/unchanged.py COMMIT digits-lt
    .venv/bin/python benchmarks/unchanged.py COMMIT FILE.npz --epochs 8 --teacher.epochs 8 --backbone small_net ...

COMMIT (checked out into a temporary worktree) and the code as it stands are trained with `longtail train` on the data
given, with the options given and each of --seeds; one thread a run. Both are written as mean over seeds with its 95 %
Student interval, and as the paired difference. Needed where a faster path does not have to give the same bits.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).parent.parent
FIGURES = ("balanced_accuracy", "many", "medium", "few", "ece", "mutual_information_bits")


def train(source: Path, data: str, out: Path, seed: int, words: list[str]) -> dict[str, float | None]:
    """Train with the package in `source` and return the figures and the seconds of training."""
    program = "from longtail.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", program, "train", data, "--seed", str(seed), "--out", str(out), *words]
    environment = os.environ | {"PYTHONPATH": str(source / "src"), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--device", "cpu", "--quiet"], env=environment, check=True)
    evaluation = json.loads((out / "evaluation.json").read_text())
    groups = {name: group["accuracy"] for name, group in evaluation["groups"].items()}
    seconds = json.loads((out / "environment.json").read_text())["seconds"]
    return {**{name: evaluation.get(name, groups.get(name)) for name in FIGURES}, "seconds": sum(seconds.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("data")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "unchanged.json")
    options, words = parser.parse_known_args()

    import torch

    from longtail.metrics import MeanInterval, mean_interval
    from longtail.metrics.paired import paired_by_seed
    from longtail.training.run_folder import environment

    seeds = range(options.seeds)
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "-q", "--detach", before, options.commit], check=True)
        try:
            sources = {"before": before, "now": ROOT}
            cells = [(side, seed) for seed in seeds for side in sources]
            with ThreadPoolExecutor(options.jobs) as pool:
                done = pool.map(
                    lambda c: train(sources[c[0]], options.data, Path(folder) / f"{c[0]}-{c[1]}", c[1], words), cells
                )
                found = dict(zip(cells, done, strict=True))
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", before], check=True)

    def column(side: str, name: str) -> dict[int, float]:
        return {seed: found[side, seed][name] for seed in seeds}

    def as_json(of: MeanInterval) -> dict[str, float | None]:
        return {"mean": of.mean, "low": of.low, "high": of.high}

    table = {}
    print(f"{Path(options.data).name} {' '.join(words)}\n{options.commit} and now, {options.seeds} seeds, per cent\n")
    print("| | before | now | now - before |\n|---|---|---|---|")
    for name in FIGURES:
        if None in column("now", name).values():  # the group has no class
            continue
        entries = {side: mean_interval(list(column(side, name).values())) for side in sources}
        entries["now - before"] = paired_by_seed(column("now", name), column("before", name))
        table[name] = {key: as_json(entry) for key, entry in entries.items()}
        scale = 1 if name.endswith("bits") else 100
        shown = (f"{scale * e.mean:.2f} ± {scale * ((e.high or e.mean) - e.mean):.2f}" for e in entries.values())
        print(f"| {name} | {' | '.join(shown)} |")
    took = {side: fmean(column(side, "seconds").values()) for side in sources}
    print(f"\nseconds a run: {took['before']:.0f} before, {took['now']:.0f} now")
    records = json.loads(options.json.read_text()) if options.json.exists() else {}
    records[Path(options.data).name] = {
        "options": words,
        "before": options.commit,
        "seeds": list(seeds),
        "interval": "95 % Student interval of the mean over seeds; differences paired by seed",
        **environment(torch.device("cpu")),
        "table": table,
        "seconds": took,
        "runs": {f"{side} seed {seed}": values for (side, seed), values in found.items()},
    }
    options.json.write_text(json.dumps(records, indent=1) + "\n")
    print(options.json)


if __name__ == "__main__":
    main()
