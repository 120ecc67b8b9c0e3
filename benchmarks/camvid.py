"""Cross entropy, logit adjustment and GML on CamVid, small enough for a CPU; equal epochs, several seeds.

    python benchmarks/camvid.py FOLDER [--seeds 2] [--epochs 16] [--out benchmarks/results/camvid.json]

FOLDER holds {train,val,test}/{images,masks} and classes.txt. The 233 test frames select nothing: last epoch, settings
as below for every method. GML's teacher is the logit-adjusted run of the same seed, so that each method trains one
network for the same epochs. Runs that are there are resumed; a finished one is only read. Prints per cent: mean over
the seeds, and the 95 % bootstrap interval over test images of the difference to cross entropy, the seeds pooled.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import longtail
from longtail.files import read_json
from longtail.options import make_config, parse_values
from longtail.segmentation.data.shown import seen_more_often, shown_pixels
from longtail.segmentation.data.sources import load_masks
from longtail.segmentation.defaults import geometry_of
from longtail.segmentation.evaluation import read_per_image
from longtail.segmentation.metrics import paired_miou_difference
from longtail.training.run_folder import read_config, read_environment

METHODS = ("cross_entropy", "logit_adjustment", "gml")
SMALL: dict[str, Any] = {
    "backbone": "resnet18",
    "pretrained": "none",
    "batch_size": 8,
    "optimiser": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01},
    "segmentation": {"decoder": "fpn", "width": 64, "resize": [180, 240], "crop": [160, 224], "scale": [0.75, 1.5]},
}
"""Usual values, none of them tuned; the same for all."""
FIGURES = ("miou", "rarest_four", "pixel_accuracy", "balanced_accuracy", "boundary_f", "ece")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--full", action="store_true", help="frames of 360 x 480, ResNet-18, for a GPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--runs", type=Path, default=Path("runs/camvid"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/camvid.json"))
    options = parser.parse_args()
    settings = {"backbone": "resnet18", "pretrained": "none"} if options.full else SMALL
    rows, seconds = [], {}
    for seed in range(options.seeds):
        for method in options.methods:
            out = options.runs / f"{method}-{options.epochs}-{seed}"
            teacher = options.runs / f"logit_adjustment-{options.epochs}-{seed}"
            own = {"teacher": {"run": str(teacher)}} if method == "gml" else {}
            if not (out / "report.html").exists():
                longtail.train(
                    options.folder,
                    task="segmentation",
                    method=method,
                    epochs=options.epochs,
                    seed=seed,
                    device=options.device,
                    precision=options.precision,
                    out=str(out),
                    resume=True,
                    **settings,
                    **own,
                )
            figures = read_json(out / "evaluation.json")
            row = {key: figures[key] for key in FIGURES}
            row["rarest_four"] = figures["rarest_four"]["miou"]
            row["iou"] = dict(zip(figures["class_names"], figures["iou"], strict=True))
            rows.append({"method": method, "seed": seed, **row})
            seconds[f"{method}, seed {seed}"] = read_environment(out / "environment.json")["seconds"]
    rarest = figures["rarest_four"]["classes"]
    print(f"rarest four: {', '.join(rarest)}")
    table = []
    for method in options.methods:
        own_rows = [row for row in rows if row["method"] == method]
        means = {key: sum(row[key] for row in own_rows) / len(own_rows) for key in FIGURES}
        per_image = [read_per_image(options.runs / f"{method}-{options.epochs}-{row['seed']}") for row in own_rows]
        first = [read_per_image(options.runs / f"{METHODS[0]}-{options.epochs}-{row['seed']}") for row in own_rows]
        chosen = [figures["class_names"].index(name) for name in rarest]
        gains = {
            "miou": paired_miou_difference(torch.stack(per_image).sum(0), torch.stack(first).sum(0)),
            "rarest_four": paired_miou_difference(torch.stack(per_image).sum(0), torch.stack(first).sum(0), chosen),
        }
        table.append({"method": method, **means, "over_cross_entropy": gains})
        shown = "  ".join(f"{key} {100 * value:.1f}" for key, value in means.items())
        span = "  ".join(
            f"{key} {100 * gain['difference']:+.1f} ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
            for key, gain in gains.items()
        )
        print(
            f"{method:<17} {shown}" + ("" if method == METHODS[0] else f"  against cross entropy: {span}"), flush=True
        )
    seen = crops_show(options.folder, read_config(out))
    print(
        "crops show a class so many times its share of the pixels: "
        + ", ".join(f"{k} {v:.2f}" for k, v in seen.items())
    )
    record = read_environment(out / "environment.json")
    result = {
        "crops_show": seen,
        "table": table,
        "rows": rows,
        "settings": settings,
        "epochs": options.epochs,
        "seeds": list(range(options.seeds)),
        "versions": record["versions"],
        "hardware": record["hardware"],
        "seconds": seconds,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")


def crops_show(folder: str, written: dict[str, Any]) -> dict[str, float]:
    """Return how many times its share of the training pixels each class has in the crops of a run."""
    config = make_config(parse_values(written, "config.yaml"))
    how = {"root": None, "source": config.source, "options": config.segmentation, "val_fraction": 0.0}
    train = load_masks(folder, on_bad="error", workers=1, **how).train
    times = seen_more_often(*shown_pixels(train, geometry_of(config), config.seed))
    return dict(zip(train.class_names, times.tolist(), strict=True))


if __name__ == "__main__":
    main()
