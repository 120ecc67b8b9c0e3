"""CIFAR-100-LT, imbalance 100, in short on a CPU: cross entropy, logit adjustment, GML without and with distillation.

    python benchmarks/cifar_short.py FILE.npz          # hours of two cores' time: see the seconds it prints

A plausibility check, not a published row: ResNet-32, 20 epochs a stage, crop and flip only, one-epoch warm-up and
cosine, bfloat16, one seed; GML's teacher is the logit-adjusted run. FILE is the array file of CIFAR-100-LT (MedMNIST
layout). Finished runs in --runs are read, not trained again; an unfinished one goes on. The last epoch is reported.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

METHODS: dict[str, dict[str, Any]] = {
    "cross_entropy": {"method": "cross_entropy"},
    "logit_adjustment": {"method": "logit_adjustment"},
    "gml": {"method": "gml", "loss": {"distillation_weight": 0.0}},
    "gml_distillation": {"method": "gml", "loss": {"distillation_weight": 1.0}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-cifar"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cifar_short.json")
    options = parser.parse_args()

    import torch

    import longtail
    from longtail.training.run_folder import environment

    rows: dict[str, Any] = {}
    for name, chosen in METHODS.items():
        out = options.runs / name
        if not (out / "report.html").exists():
            teacher = {"teacher": {"run": str(options.runs / "logit_adjustment")}} if name.startswith("gml") else {}
            longtail.train(
                options.file,
                out=str(out),
                resume=True,
                seed=options.seed,
                epochs=options.epochs,
                backbone="cifar_resnet32",
                views={"classifier": "light", "query": "light", "key": "light"},
                precision="bfloat16",
                evaluate_every=2,
                **chosen,
                **teacher,
            )
        evaluation = json.loads((out / "evaluation.json").read_text())
        ran_on = json.loads((out / "environment.json").read_text())
        rows[name] = {
            "top1": evaluation["top1"],
            "interval": evaluation["intervals"]["top1"],
            **{group: values["accuracy"] for group, values in evaluation["groups"].items()},
            "ece": evaluation["ece"],
            "mutual_information_bits": evaluation["mutual_information_bits"],
            "seconds": ran_on["seconds"],
            "ran_on": {"hardware": ran_on["hardware"], "versions": ran_on["versions"]},
        }
    print(f"CIFAR-100-LT, imbalance 100, ResNet-32, {options.epochs} epochs a stage, seed {options.seed}, per cent")
    print("| method | top-1 | many | medium | few | ECE | bits |\n|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        figures = " | ".join(f"{100 * row[key]:.1f}" for key in ("top1", "many", "medium", "few", "ece"))
        print(f"| {name} | {figures} | {row['mutual_information_bits']:.2f} |")
    record = {
        "data": "CIFAR-100-LT, imbalance 100: 10,847 training and 10,000 test images",
        "protocol": f"ResNet-32, {options.epochs} epochs a stage, crop and flip, bfloat16, last epoch; one run each",
        "seeds": [options.seed],
        **environment(torch.device("cpu")),
        "results": rows,
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(options.out)


if __name__ == "__main__":
    main()
