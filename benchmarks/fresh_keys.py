"""What projecting only a part of the queue each step costs in accuracy: digits-lt, GML, paired by seed.

    python benchmarks/fresh_keys.py [--seeds 10] [--epochs N] [--jobs N] [--runs FOLDER] [--out FILE]

``--queue.fresh_share`` 1 (as published), 1/2, 1/4 and 1/8 on digits-lt (imbalance 100, 329 training and 400 test
images), all other options as the command line chooses them; how many slots that is, is printed (never fewer than a
batch). The data is the same for every seed; the seed changes weights, order and augmentation. Last epoch, nothing is
chosen on the test set. Printed are means over seeds with 95 % Student intervals, and differences to share 1 paired by
seed, in per cent.

Finished runs of the same code are kept in --runs and not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

SHARES = (1.0, 0.5, 0.25, 0.125)
FIGURES = ("balanced_accuracy", "many", "medium", "few", "worst_class", "ece", "mutual_information_bits")


def cell(share: float, seed: int, epochs: int | None, runs: Path) -> dict[str, float]:
    """Train one run (or read it, if it is finished) and return its figures."""
    import torch

    import longtail

    torch.set_num_threads(1)  # one run a core: faster than one run on all cores at this size
    out = runs / f"share{share}-seed{seed}-{epochs or 'default'}"
    done = out / "evaluation.json"
    if done.exists():
        evaluation = json.loads(done.read_text())
    else:
        options: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
        evaluation = longtail.train(
            "digits-lt",
            method="gml",
            seed=seed,
            out=str(out),
            device="cpu",
            resume=True,
            quiet=True,
            queue={"fresh_share": share},
            **options,
        ).evaluation
    groups = {name: group["accuracy"] for name, group in evaluation["groups"].items()}
    known = {name: evaluation[name] for name in ("balanced_accuracy", "ece", "mutual_information_bits")}
    return {**known, **groups, "worst_class": evaluation["worst_class"]["accuracy"]}


def projected(runs: Path, share: float) -> dict[str, int]:
    """Return how many slots the queue of the runs has, and how many are projected each step."""
    import yaml

    from longtail.memory.fresh_keys import fresh_slots

    config = yaml.safe_load(next(runs.glob(f"share{share}-*/config.yaml")).read_text())
    capacity, batch = int(config["queue"]["capacity"]), int(config["batch_size"])
    return {"slots": capacity, "batch": batch, "projected": fresh_slots(share, capacity, batch)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, help="default: as the command line chooses from the data")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-fresh-keys"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fresh_keys.json")
    options = parser.parse_args()

    from longtail.studies.ledger import code_version

    options.runs = options.runs / code_version()
    cells = [(share, seed) for seed in range(options.seeds) for share in SHARES]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        waiting = {c: pool.submit(cell, *c, options.epochs, options.runs) for c in cells}
        figures = {c: job.result() for c, job in waiting.items()}

    import torch

    from longtail.metrics import MeanInterval, mean_interval
    from longtail.metrics.paired import paired_by_seed
    from longtail.training.run_folder import environment

    def column(share: float, figure: str) -> dict[int, float]:
        return {seed: figures[share, seed][figure] for seed in range(options.seeds)}

    def as_json(found: MeanInterval) -> dict[str, float | None]:
        return {"mean": found.mean, "low": found.low, "high": found.high}

    slots = {share: projected(options.runs, share) for share in SHARES}
    rows = {f"share {s}": {f: as_json(mean_interval(list(column(s, f).values()))) for f in FIGURES} for s in SHARES}
    for share in SHARES[1:]:
        rows[f"share {share} - share 1"] = {
            f: as_json(paired_by_seed(column(share, f), column(1.0, f))) for f in FIGURES
        }
    for share, found in slots.items():
        print(f"share {share}: {found['projected']} of {found['slots']} slots a step, batch {found['batch']}")
    print(f"\ndigits-lt, imbalance 100, {options.seeds} seeds, per cent (information in bits)\n")
    print(f"| {'queue.fresh_share':<22} | " + " | ".join(f"{name:<14}" for name in FIGURES) + " |")
    print("|" + "---|" * (1 + len(FIGURES)))
    for name, row in rows.items():
        shown = []
        for figure in FIGURES:
            entry, scale = row[figure], 1 if figure.endswith("bits") else 100
            margin = "" if entry["low"] is None else f" ± {scale * (entry['high'] - entry['mean']):.1f}"
            shown.append(f"{scale * entry['mean']:.1f}{margin}")
        print(f"| {name:<22} | " + " | ".join(f"{text:<14}" for text in shown) + " |")
    record = {
        "data": "digits-lt, imbalance 100: 329 training and 400 test images",
        "protocol": "gml with default options but queue.fresh_share, last epoch, one thread a run",
        "epochs": options.epochs,
        "seeds": list(range(options.seeds)),
        "interval": "95 % Student interval of the mean over seeds; differences paired by seed",
        **environment(torch.device("cpu")),
        "slots": {str(share): found for share, found in slots.items()},
        "table": rows,
        "runs": {f"share {share} seed {seed}": values for (share, seed), values in figures.items()},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{options.out}")


if __name__ == "__main__":
    main()
