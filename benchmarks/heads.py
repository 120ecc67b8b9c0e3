"""Training a GML head on frozen embeddings against what the machine could do, and against logistic regression.

    .venv/bin/python benchmarks/heads.py                                         # 100,000 x 768, 1000 classes
    .venv/bin/python benchmarks/heads.py --features .data/features.safetensors   # embeddings of one's own

The roofline of a step is its counted floating point operations (torch's counter: every matrix product, forward and
backward) over the rate that one large float32 product reaches here; steps (drawing, standardising, queue and optimiser
included) and products take turns. Then a whole training is timed, and logistic regression of scikit-learn's, class
weights balanced, on the same standardised features.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from torch.utils.flop_counter import FlopCounterMode

from longtail.config import TrainConfig, resolved
from longtail.data import DataSplits, FeatureSet, exponential_profile, load_data
from longtail.data.feature_files import with_statistics
from longtail.data.feature_loading import FeatureLoader
from longtail.methods import MethodContext, get_method
from longtail.options import make_config
from longtail.training.defaults import resolve
from longtail.training.in_memory import train_in_memory
from longtail.training.optimisers import build_optimiser, parameter_groups, set_rate
from longtail.training.run_folder import processor_name
from longtail.training.stages import plan_stages
from longtail.training.step import TrainingStep
from longtail.training.weight_defaults import choose_pretrained

SIDE = 3072
STEPS = 10


def made_features(rows: int, dim: int, classes: int, imbalance: float = 100.0) -> DataSplits:
    """Return long-tailed features: a centre a class and noise of twice its length, 10 test rows a class."""
    random = torch.Generator().manual_seed(0)
    largest = rows * np.log(imbalance) / (classes * (1 - 1 / imbalance))
    counts = torch.tensor(exponential_profile(int(largest), classes, imbalance))
    centres = torch.randn(classes, dim, generator=random)
    names = tuple(map(str, range(classes)))

    def drawn(of: torch.Tensor) -> FeatureSet:
        labels = torch.arange(classes).repeat_interleave(of)
        features = centres[labels] + 6 * torch.randn(len(labels), dim, generator=random)
        return FeatureSet(features[:, None], labels, names)

    train, test = drawn(counts), drawn(torch.full((classes,), 10))
    return with_statistics(DataSplits("made", train, test, (), (), "stored"))


def wait(device: torch.device) -> float:
    """Return the time when the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def product_seconds(device: torch.device) -> float:
    """Return the seconds of one float32 product of large squares."""
    a, b = torch.randn(SIDE, SIDE, device=device), torch.randn(SIDE, SIDE, device=device)
    start = wait(device)
    a @ b
    return wait(device) - start


def steps_against_products(config: TrainConfig, splits: DataSplits, turns: int) -> tuple[int, list[float], list[float]]:
    """Return the counted operations of a step, and in each turn the seconds of a step and the operations a second.

    A turn is ten steps, drawing and optimiser included, and one product: a slow moment falls on both.
    """
    stage = plan_stages(config)[-1]
    context = MethodContext(config, stage, splits.train, splits.mean, splits.std)
    method = get_method(config.method).build(context).train()
    batch, device = resolved(config.batch_size), torch.device(config.device)
    method = method.to(device)
    loader = FeatureLoader(splits.train, tuple(method.views), batch, 0, device, splits.mean, splits.std)
    method.prepare(loader.fetch, loader.labels)
    optimiser = build_optimiser(parameter_groups(method, config.tune), config.optimiser, device)
    set_rate(optimiser, resolved(config.optimiser.lr))
    step = TrainingStep(method, optimiser, None, device)
    with FlopCounterMode(display=False) as counter:
        step(loader.load(0, 0), 0.0)
    seconds, rates, number = [], [], 0
    product_seconds(device)
    for _ in range(turns):
        start = wait(device)
        for _ in range(STEPS):
            number += 1
            step(loader.load(*divmod(number, loader.steps_per_epoch)), 0.0)
        seconds.append((wait(device) - start) / STEPS)
        rates.append(2 * SIDE**3 / product_seconds(device))
    return int(counter.get_total_flops()), seconds, rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", help="file of longtail embed; default: made ones")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--no-logistic", action="store_true", help="leave scikit-learn's logistic regression out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "heads.json")
    options = parser.parse_args()
    splits = (
        load_data(options.features) if options.features else made_features(options.rows, options.dim, options.classes)
    )
    train, test = splits.train, splits.test
    assert isinstance(train, FeatureSet)
    assert isinstance(test, FeatureSet)
    results = []
    with tempfile.TemporaryDirectory() as place:
        for method in ("logit_adjustment", "gml"):
            given = {"data": "made", "method": method, "epochs": options.epochs, "device": options.device, "out": place}
            config, _ = resolve(make_config(given), splits)
            config, _ = choose_pretrained(config, splits)
            flops, steps, rates = steps_against_products(config, splits, options.turns)
            ratios = sorted(second * rate / flops for second, rate in zip(steps, rates, strict=True))
            start = time.perf_counter()
            classifier, _ = train_in_memory(config, splits)
            taken = time.perf_counter() - start
            logits = classifier.logits(test.features[:, 0].float())
            accuracy = balanced_accuracy_score(test.labels, logits.argmax(1))
            results.append(
                {
                    "method": method,
                    "epochs": options.epochs,
                    "batch_size": config.batch_size,
                    "queue": config.queue.capacity if method == "gml" else None,
                    "gflop_a_step": round(flops / 1e9, 2),
                    "gflop_a_second_of_a_product": round(statistics.median(rates) / 1e9, 1),
                    "seconds": round(taken, 2),
                    "samples_a_second": round(len(train) * options.epochs / taken),
                    "step_seconds": round(statistics.median(steps), 4),
                    "times_the_roofline": round(statistics.median(ratios), 2),
                    "lowest_and_highest": [round(ratios[0], 2), round(ratios[-1], 2)],
                    "balanced_accuracy": round(accuracy, 4),
                }
            )
            print(json.dumps(results[-1]))
    if not options.no_logistic:
        standard = [
            ((part.features[:, 0].float() - torch.tensor(splits.mean)) / torch.tensor(splits.std)).float().numpy()
            for part in (train, test)
        ]
        start = time.perf_counter()
        model = LogisticRegression(class_weight="balanced", max_iter=100).fit(standard[0], train.labels)
        taken = time.perf_counter() - start
        accuracy = balanced_accuracy_score(test.labels, model.predict(standard[1]))
        results.append(
            {
                "method": "LogisticRegression(class_weight='balanced')",
                "iterations": int(np.max(model.n_iter_)),
                "seconds": round(taken, 2),
                "balanced_accuracy": round(accuracy, 4),
            }
        )
        print(json.dumps(results[-1]))
    record = {
        "data": splits.name if options.features is None else Path(options.features).name,
        "rows": len(train),
        "dim": train.channels,
        "classes": train.num_classes,
        "turns": options.turns,
        "hardware": {"processor": processor_name(), "threads": torch.get_num_threads(), "device": options.device},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "sklearn": sklearn.__version__},
        "results": results,
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"{options.out}")


if __name__ == "__main__":
    main()
