"""A class prior that is not the training data's: digits with a tail, used where the tail is reversed.

    .venv/bin/python benchmarks/prior_shift.py            # 5 seeds, two methods, imbalance 10 and 100
    .venv/bin/python benchmarks/prior_shift.py --seeds 2 --epochs 5 --out runs/try.json

Training is on digits-lt, a fifth of it held out for epoch and temperature. The images predicted are digits that no run
was trained on, 160 of digit 9 and fewer of each digit before it, with the training set's imbalance. Each column is a
prior given to `longtail predict`: none (the softmax as it is), uniform, train, estimate (EM, without labels), and the
true one. The seed changes initial weights, order and augmentation. After it come coverage and size of 90 % shortlists
on the (balanced) test set of digits-lt. Figures are per cent: mean over seeds with the 95 % Student interval of that
mean. `distance` is the total variation between the estimated and the true prior.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

import longtail
from longtail.data.counts import class_profile, long_tailed_indices
from longtail.data.digits import digits_lt
from longtail.metrics import mean_interval
from longtail.studies.ledger import code_version
from longtail.training.run_folder import environment

PRIORS = ("none", "uniform", "train", "estimate", "true")
LARGEST = 160
METHODS = ("cross_entropy", "gml")
IMBALANCES = (10, 100)


def reversed_tail(imbalance: int) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Return images uint8 ``[N, 1, 8, 8]``, labels ``[N]`` and the true prior ``[10]``; none was trained on."""
    digits = load_digits()
    pixels = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
    trained = {image.tobytes() for image in digits_lt(imbalance).train.images.numpy()}
    fresh = np.array([image.tobytes() not in trained for image in pixels])
    labels = torch.from_numpy(digits.target[fresh])
    counts = class_profile("exponential", LARGEST, 10, imbalance)[::-1]
    chosen = long_tailed_indices(labels, counts, 0)
    prior = torch.tensor(counts, dtype=torch.float64)
    return pixels[fresh][chosen.numpy()][:, None], labels[chosen], prior / prior.sum()


def shortlist_figures(evaluation: dict) -> dict[str, float]:
    """Return coverage, on the balanced test set and at training frequencies, and size of 90 % shortlists."""
    wanted = {"macro_coverage": "coverage", "weighted_coverage": "train coverage", "mean_size": "size"}
    kinds = evaluation["conformal"]["kinds"]
    return {f"{kind} {name}": found[key] for kind, found in kinds.items() for key, name in wanted.items()}


def cell(method: str, imbalance: int, seed: int, epochs: int | None, runs: Path) -> dict[str, float]:
    """Train one run (or take it, if it is finished), and return accuracy and balanced accuracy under each prior."""
    torch.set_num_threads(1)
    out = runs / f"{method}-imbalance{imbalance}-seed{seed}"
    if not (out / "evaluation.json").exists():
        options = {} if epochs is None else {"epochs": epochs}
        longtail.train(
            "digits-lt",
            method=method,
            imbalance=imbalance,
            seed=seed,
            out=str(out),
            val_fraction=0.2,
            device="cpu",
            resume=True,
            quiet=True,
            **options,
        )
    images, labels, truth = reversed_tail(imbalance)
    np.savez(out / "reversed.npz", images=images)
    names = longtail.load(out).class_names
    with open(out / "true.csv", "w", newline="") as file:
        csv.writer(file).writerows([("class", "prior"), *zip(names, truth.tolist(), strict=True)])
    figures = shortlist_figures(json.loads((out / "evaluation.json").read_text()))
    for prior in PRIORS:
        table = out / f"{prior}-answers.csv"
        given = str(out / "true.csv") if prior == "true" else prior
        done = longtail.predict(out, [out / "reversed.npz"], prior=given, out=table, overwrite=True, quiet=True)
        with open(table, newline="") as file:
            answers = torch.tensor([names.index(row["label"]) for row in csv.DictReader(file)])
        right = answers == labels
        figures[f"{prior} accuracy"] = float(right.double().mean())
        figures[f"{prior} balanced"] = float(np.mean([float(right[labels == c].double().mean()) for c in range(10)]))
        if prior == "estimate":
            found = torch.tensor([done.prior[name] for name in names], dtype=torch.float64)
            figures["distance"] = float((found - truth).abs().sum() / 2)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--epochs", type=int, help="default: as the command line chooses from the data")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-prior-shift"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "prior_shift.json")
    options = parser.parse_args()
    runs = options.runs / (code_version() if options.epochs is None else f"{code_version()}-{options.epochs}epochs")
    cells = [(m, i, s) for s in range(options.seeds) for i in IMBALANCES for m in options.methods]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        waiting = {key: pool.submit(cell, *key, options.epochs, runs) for key in cells}
        figures = {key: job.result() for key, job in waiting.items()}

    def interval(method: str, imbalance: int, figure: str) -> dict[str, float | None]:
        found = mean_interval([figures[method, imbalance, seed][figure] for seed in range(options.seeds)])
        return {"mean": found.mean, "low": found.low, "high": found.high}

    def shown(entry: dict[str, float | None]) -> str:
        spread = "" if entry["low"] is None else f" ± {100 * (entry['high'] - entry['mean']):.1f}"
        return f"{100 * entry['mean']:.1f}{spread}"

    table = {
        f"{method}, {imbalance}": {f: interval(method, imbalance, f) for f in figures[cells[0]]}
        for imbalance in IMBALANCES
        for method in options.methods
    }
    print(f"accuracy on digits of a reversed tail, by --prior; {options.seeds} seeds, per cent\n")
    print(f"| {'trained, imbalance':<18} | " + " | ".join(f"{name:<12}" for name in PRIORS) + " | distance     |")
    print("|" + "---|" * (2 + len(PRIORS)))
    for name, row in table.items():
        texts = [shown(row[f"{prior} accuracy"]) for prior in PRIORS] + [shown(row["distance"])]
        print(f"| {name:<18} | " + " | ".join(f"{text:<12}" for text in texts) + " |")
    print(f"\nshortlists for 90 %; {options.seeds} seeds\n")
    print("| trained, imbalance | kind | coverage at training frequencies | mean over classes | classes a list |")
    print("|---|---|---|---|---|")
    for name, row in table.items():
        for kind in ("marginal", "class", "prevalence"):
            figure = row[f"{kind} size"]
            size = f"{figure['mean']:.2f}" + (
                "" if figure["low"] is None else f" ± {figure['high'] - figure['mean']:.2f}"
            )
            coverage = (shown(row[f"{kind} {what}"]) for what in ("train coverage", "coverage"))
            print(f"| {name} | {kind} | {' | '.join(coverage)} | {size} |")
    record = {
        "data": "digits-lt, --val_fraction 0.2; predicted: digits not trained on, tail reversed, the same imbalance",
        "images": {imbalance: len(reversed_tail(imbalance)[0]) for imbalance in IMBALANCES},
        "true_prior": {imbalance: reversed_tail(imbalance)[2].tolist() for imbalance in IMBALANCES},
        "epochs": options.epochs,
        "seeds": list(range(options.seeds)),
        "interval": "95 % Student interval of the mean over seeds",
        **environment(torch.device("cpu")),
        "table": table,
        "runs": {f"{m}, {i}, seed {s}": values for (m, i, s), values in figures.items()},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{options.out}")


if __name__ == "__main__":
    main()
