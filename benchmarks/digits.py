"""Cross entropy, logit adjustment and GML on digits-lt (imbalance 100): the README's table.

    .venv/bin/python benchmarks/digits.py            # 10 seeds, 3 to 20 minutes on two cores
    .venv/bin/python benchmarks/digits.py --seeds 2 --epochs 5 --out runs/try.json

The data is the same for every seed (329 training images, 40 test images a class); the seed changes initial weights,
order and augmentation. Options are the defaults, the last epoch is reported, nothing is chosen on the test set.
Finished runs of the same code are kept in --runs and not trained again. Figures are per cent: mean over seeds with the
95 % Student interval of that mean, and paired differences between methods on the same seeds.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROWS = {
    "cross_entropy": {"method": "cross_entropy"},
    "logit_adjustment": {"method": "logit_adjustment"},
    "gml": {"method": "gml"},
    # Keys drawn from features that the teacher computed once, of so many augmentations of each image.
    "gml-cache8": {"method": "gml", "teacher": {"cache": 8}},
    "gml-cache1": {"method": "gml", "teacher": {"cache": 1}},
}
DIFFERENCES = (
    ("gml", "cross_entropy"),
    ("gml", "logit_adjustment"),
    ("gml-cache8", "gml"),
    ("gml-cache1", "gml"),
)
FIGURES = ("balanced_accuracy", "many", "medium", "few", "worst_class", "ece", "mutual_information_bits")


def cell(row: str, seed: int, epochs: int | None, runs: Path) -> dict[str, float]:
    """Train one run of a row of the table (or read it, if it is finished) and return its figures."""
    import torch

    import longtail

    torch.set_num_threads(1)  # one run a core: faster than one run on all cores at this size
    out = runs / f"{row}-seed{seed}" if epochs is None else runs / f"{row}-seed{seed}-{epochs}epochs"
    done = out / "evaluation.json"
    if done.exists():
        evaluation = json.loads(done.read_text())
    else:
        options = {} if epochs is None else {"epochs": epochs}
        evaluation = longtail.train(
            "digits-lt", seed=seed, out=str(out), device="cpu", resume=True, quiet=True, **ROWS[row], **options
        ).evaluation
    groups = {name: group["accuracy"] for name, group in evaluation["groups"].items()}
    return {
        **{name: evaluation[name] for name in ("balanced_accuracy", "ece", "mutual_information_bits")},
        **groups,
        "worst_class": evaluation["worst_class"]["accuracy"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, help="default: as the command line chooses from the data")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-digits"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "digits.json")
    options = parser.parse_args()

    from longtail.studies.ledger import code_version

    options.runs = options.runs / code_version()
    cells = [(row, seed) for seed in range(options.seeds) for row in ROWS]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        waiting = {c: pool.submit(cell, *c, options.epochs, options.runs) for c in cells}
        figures = {c: job.result() for c, job in waiting.items()}

    import torch

    from longtail.metrics import MeanInterval, mean_interval
    from longtail.metrics.paired import paired_by_seed
    from longtail.training.run_folder import environment

    def as_json(found: MeanInterval) -> dict[str, float | None]:
        return {"mean": found.mean, "low": found.low, "high": found.high}

    def column(method: str, figure: str) -> dict[int, float]:
        return {seed: figures[method, seed][figure] for seed in range(options.seeds)}

    table = {m: {f: as_json(mean_interval(list(column(m, f).values()))) for f in FIGURES} for m in ROWS}
    differences = {
        f"{one} - {other}": {f: as_json(paired_by_seed(column(one, f), column(other, f))) for f in FIGURES}
        for one, other in DIFFERENCES
    }

    def shown(entry: dict[str, float | None], scale: float) -> str:
        if entry["low"] is None:
            return f"{scale * entry['mean']:.1f}"
        return f"{scale * entry['mean']:.1f} ± {scale * (entry['high'] - entry['mean']):.1f}"

    print(f"digits-lt, imbalance 100, {options.seeds} seeds, per cent (information in bits)\n")
    print(f"| {'method':<24} | " + " | ".join(f"{name:<14}" for name in FIGURES) + " |")
    print("|" + "---|" * (1 + len(FIGURES)))
    for name, row in [*table.items(), *differences.items()]:
        cells_shown = (shown(row[f], 1 if f.endswith("bits") else 100) for f in FIGURES)
        print(f"| {name:<24} | " + " | ".join(f"{text:<14}" for text in cells_shown) + " |")
    record = {
        "data": "digits-lt, imbalance 100: 329 training and 400 test images",
        "protocol": "default options, last epoch, one thread a run",
        "epochs": options.epochs,
        "seeds": list(range(options.seeds)),
        "interval": "95 % Student interval of the mean over seeds; differences paired by seed",
        **environment(torch.device("cpu")),
        "table": table,
        "differences": differences,
        "runs": {f"{method} seed {seed}": values for (method, seed), values in figures.items()},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{options.out}")


if __name__ == "__main__":
    main()
