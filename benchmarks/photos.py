"""`longtail train FOLDER` with nothing else: cross entropy, logit adjustment (the teacher) and GML on photographs.

    python benchmarks/photos.py FOLDER [--epochs N] [--runs runs/photos] [--out benchmarks/results/photos.json]

FOLDER holds `train` and `test` with a folder a class. Every option but the epochs is the default; runs that are there
are resumed, so that a finished one is only evaluated again. Prints per cent and seconds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import longtail
from longtail.reporting.run_record import read_evaluation
from longtail.training.run_folder import read_config, read_environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--runs", type=Path, default=Path("runs/photos"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/photos.json"))
    options = parser.parse_args()
    for method in ("cross_entropy", "gml"):
        longtail.train(options.folder, method=method, epochs=options.epochs, out=options.runs / method, resume=True)
    found = {
        "cross entropy": options.runs / "cross_entropy",
        "logit adjustment": options.runs / "gml" / "teacher",
        "GML": options.runs / "gml",
    }
    rows = []
    for name, folder in found.items():
        figures = read_evaluation(folder / "evaluation.json")
        groups = {group: record["accuracy"] for group, record in figures["groups"].items()}
        keys = ("top1", "balanced_accuracy", "harmonic_mean", "ece")
        rows.append({"method": name, **{key: figures[key] for key in keys}, **groups})
        shown = "  ".join(f"{key} {100 * value:.1f}" for key, value in rows[-1].items() if isinstance(value, float))
        print(f"{name:<18} {shown}", flush=True)
    record = read_environment(options.runs / "gml" / "environment.json")
    seconds = {
        "cross entropy": read_environment(options.runs / "cross_entropy" / "environment.json")["seconds"],
        "GML": record["seconds"],
    }
    print("seconds of training:", seconds)
    config = read_config(options.runs / "gml")
    chosen = {key: config[key] for key in ("backbone", "image_size", "epochs", "batch_size", "precision", "seed")}
    result = {"rows": rows, "chosen": chosen, **record, "seconds": seconds, "runs": 1}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
