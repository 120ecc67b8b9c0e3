"""Estimators on frozen embeddings: GML and logit adjustment against logistic regression and resampled ensembles.

    .venv/bin/python benchmarks/estimators.py --features .data/cifar100-lt-features.safetensors

Balanced accuracy on the test rows and accuracy on the few-shot classes (fewer than 20 training rows), for every seed of
`random_state`. All have the settings that they come with, but that logistic regression may take 1000 iterations and
balanced random forests draw as scikit-learn's forests do; nothing is chosen on the test rows. Every estimator sees the
same standardised first view of the embeddings. Times are of `fit` in turn, on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from pathlib import Path

import imblearn
import numpy as np
import sklearn
import torch
from imblearn.ensemble import BalancedRandomForestClassifier, EasyEnsembleClassifier
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, recall_score

from longtail import CosineClassifier, GMLClassifier, LogitAdjustedClassifier
from longtail.data import FeatureSet, load_data
from longtail.training.run_folder import processor_name

FEW = 20
ESTIMATORS = {
    "LogisticRegression": lambda seed: LogisticRegression(max_iter=1000, random_state=seed),
    "LogisticRegression, balanced": lambda seed: LogisticRegression(
        max_iter=1000, class_weight="balanced", random_state=seed
    ),
    "BalancedRandomForest": lambda seed: BalancedRandomForestClassifier(
        sampling_strategy="all", replacement=True, bootstrap=False, random_state=seed, n_jobs=-1
    ),
    "EasyEnsemble": lambda seed: EasyEnsembleClassifier(random_state=seed, n_jobs=-1),
    "CosineClassifier": lambda seed: CosineClassifier(random_state=seed),
    "LogitAdjustedClassifier": lambda seed: LogitAdjustedClassifier(random_state=seed),
    "LogitAdjustedClassifier, no adapter": lambda seed: LogitAdjustedClassifier(random_state=seed, adapter=False),
    "GMLClassifier": lambda seed: GMLClassifier(random_state=seed),
}
FIXED = ("LogisticRegression", "LogisticRegression, balanced")
"""They give the same whatever the seed."""


def rows(part: FeatureSet, mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return standardised features ``[N, D]`` and labels ``[N]``."""
    return (part.features[:, 0].float().numpy() - mean) / std, part.labels.numpy()


def interval(values: list[float]) -> float | None:
    """Return half the width of the 95 % Student interval of the mean."""
    if len(values) < 2:
        return None
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", required=True, help="file of longtail embed")
    parser.add_argument("--encoder", default="", help="what made them, in words, for the record")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help=f"of {', '.join(ESTIMATORS)}")
    parser.add_argument(
        "--validation", action="store_true", help="hold 20 percent of the training rows out, test on them"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "estimators.json")
    options = parser.parse_args()
    splits = load_data(options.features, val_fraction=0.2 if options.validation else 0.0)
    train, test = splits.train, splits.validation if options.validation else splits.test
    assert isinstance(train, FeatureSet)
    assert isinstance(test, FeatureSet)
    mean, std = (np.array(values, dtype="float32") for values in (splits.mean, splits.std))
    (inputs, labels), (test_inputs, test_labels) = rows(train, mean, std), rows(test, mean, std)
    few = np.flatnonzero(train.class_counts.numpy() < FEW)
    results = []
    for name in options.only or ESTIMATORS:
        found = []
        for seed in range(1 if name in FIXED else options.seeds):
            model = ESTIMATORS[name](seed)
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.fit(inputs, labels)
            taken = time.perf_counter() - start
            said = model.predict(test_inputs)
            recall = recall_score(test_labels, said, labels=few, average="macro", zero_division=0)
            found.append((balanced_accuracy_score(test_labels, said), float(recall), taken))
        balanced, rare, seconds = (list(column) for column in zip(*found, strict=True))
        results.append(
            {
                "estimator": name,
                "n": len(found),
                "balanced_accuracy": round(100 * float(np.mean(balanced)), 2),
                "balanced_interval": None if len(found) < 2 else round(100 * (interval(balanced) or 0.0), 2),
                "few_shot_accuracy": round(100 * float(np.mean(rare)), 2),
                "few_shot_interval": None if len(found) < 2 else round(100 * (interval(rare) or 0.0), 2),
                "fit_seconds": round(float(np.median(seconds)), 1),
            }
        )
        print(json.dumps(results[-1]), flush=True)
    record = {
        "data": Path(options.features).name,
        "encoder": options.encoder,
        "tested_on": "validation rows" if options.validation else "test rows",
        "rows": len(train),
        "dim": train.channels,
        "classes": train.num_classes,
        "few_shot_classes": len(few),
        "hardware": {"processor": processor_name(), "threads": torch.get_num_threads()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "sklearn": sklearn.__version__,
            "imblearn": imblearn.__version__,
        },
        "results": results,
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"{options.out}")


if __name__ == "__main__":
    main()
