"""Figures over folds: every image tested by the model that has not seen it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from longtail.config import TrainConfig
from longtail.errors import UserError
from longtail.files import load_meta, read_json
from longtail.metrics.folds import fold_figures
from longtail.models import Classifier
from longtail.training.evaluation import PREDICTIONS, Evaluation, load_predictions, summarise


def fold_folders(out: Path, config: TrainConfig) -> list[Path]:
    """Return the run folder of each fold of each deal, in order."""
    return [out / f"fold-{number}" for number in range((config.folds or 0) * config.source.repeats)]


def pool_folds(out: Path, config: TrainConfig) -> Evaluation:
    """Put the finished folds in ``out`` together.

    The table of classes and the pooled figures are those of the first deal, in which every image is tested once at
    most; the means over folds are over all deals.

    Raises:
        UserError: a fold is not finished, or its files were changed.
    """
    folders = fold_folders(out, config)
    missing = [folder for folder in folders if not (folder / "evaluation.json").exists()]
    if missing:
        raise UserError(f"{missing[0]} is not finished; go on with --resume.")
    first_deal = folders[: config.folds]
    predictions = [load_predictions(folder) for folder in first_deal]
    models = [Classifier.load(folder) for folder in first_deal]
    names = models[0].class_names
    if any(model.class_names != names for model in models):
        raise UserError(f"the folds in {out} have different classes; start anew with --overwrite.")
    pooled = summarise(
        torch.cat([logits for logits, _ in predictions]),
        torch.cat([labels for _, labels in predictions]),
        # What a class was trained on differs by an image or two between folds.
        torch.stack([model.class_counts.double() for model in models]).mean(0).round().long(),
        torch.stack([model.logit_prior.double() for model in models]).mean(0),
        names,
        config.group_edges,
    )
    files = [load_meta(folder, PREDICTIONS).get("files") for folder in first_deal]
    if None not in files:  # a list each, or none at all for arrays
        pooled = replace(pooled, files=[file for listed in files for file in listed or ()])
    pooled.figures["selection"] = config.select or "last"
    evaluations = [read_json(folder / "evaluation.json") for folder in folders]
    pooled.figures["folds"] = fold_figures(evaluations, len(first_deal), config.source.repeats)
    return pooled
