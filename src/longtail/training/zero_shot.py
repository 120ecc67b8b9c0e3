"""What an encoder's texts know of the classes before any training: where the head starts, and what that is worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtail.config import TrainConfig, resolved
from longtail.data import DataSplits
from longtail.errors import UserError
from longtail.files import load_tensors, read_json, save_tensors, write_json
from longtail.methods import Stage
from longtail.models import build_classifier, class_embeddings, class_prompts, is_open_clip, load_weights
from longtail.training.evaluation import Evaluation, evaluate_classifier

ZERO_SHOT = "zero_shot.json"
_HEADS = "text_heads"
_FIGURES = ("top1", "balanced_accuracy", "groups")


class TextHeads:
    """The heads that a run's stages start from, each computed once: a run that goes on reads what :meth:`keep` wrote.

    Args:
        folder: the run's, which keeps them.
        config: resolved options, weights included.
        class_names: C names in label order.
        device: where the text tower computes.

    Raises:
        UserError: what the folder keeps was cut off or changed.
    """

    def __init__(self, folder: Path, config: TrainConfig, class_names: tuple[str, ...], device: torch.device) -> None:
        self._folder, self._config, self._class_names, self._device = folder, config, class_names, device
        self._known: dict[str, Tensor] = {}
        if (folder / f"{_HEADS}.json").exists():
            self._known, _ = load_tensors(folder, _HEADS)

    def keep(self, stages: list[Stage]) -> None:
        """Compute what all ``stages`` start from and write it, so that one that starts on another day finds the same.

        All in one: were a file of two written twice, a crash between its halves would leave a pair that does not match,
        and a run that cannot go on. The first time, half a pair counts as none.
        """
        before = len(self._known)
        for stage in stages:
            self.of(stage)
        self.embeddings(resolved(self._config.backbone), self._config.pretrained or "none")
        if len(self._known) > before:
            save_tensors(self._folder, _HEADS, self._known, {})

    def of(self, stage: Stage) -> Tensor | None:
        """Return class weights ``[C, D]`` for a stage whose encoder starts beside a text tower; None for any other."""
        if (stage.backbone, stage.weights) == (self._config.backbone, self._config.pretrained):
            return self.embeddings(stage.backbone, stage.weights)
        try:
            return self.embeddings(stage.backbone, stage.weights)
        except UserError:  # a teacher of its own may well start from an image tower alone
            return None

    def embeddings(self, encoder: str, weights: str) -> Tensor | None:
        """Return the class embeddings ``[C, D]`` of an encoder and its weights; None if heads start at random."""
        if self._config.start.head != "text" or not is_open_clip(encoder) or weights == "none":
            return None
        name = f"{encoder} {weights}"
        if name not in self._known:
            prompts = class_prompts(self._config.start.prompts, self._class_names)
            self._known[name] = class_embeddings(encoder, weights, prompts, self._device)
        return self._known[name]


def evaluate_zero_shot(
    folder: Path, config: TrainConfig, data: DataSplits, heads: TextHeads, device: torch.device
) -> dict[str, Any] | None:
    """Return the figures of the run's encoder with its text head before any training, and keep them in ``folder``.

    Figures that are there already, of a run that goes on, are read. None where the head starts at random.

    Raises:
        UserError: the file was cut off or changed.
    """
    if config.start.head != "text":
        return None
    known = read_zero_shot(folder)
    if known is not None:
        return known
    encoder, weights, train = resolved(config.backbone), config.pretrained or "none", data.train
    head = heads.embeddings(encoder, weights)
    if head is None:
        return None
    spec = {"encoder": encoder, "in_channels": train.channels, "head": "cosine", "scale": config.loss.scale}
    uniform = torch.full((train.num_classes,), 1 / train.num_classes)
    # Initial weights are drawn only to be replaced: the run's random numbers must not move on.
    with torch.random.fork_rng(devices=[]):
        classifier = build_classifier(
            spec, train.class_names, train.class_counts, uniform, data.mean, data.std, train.framing
        )
    load_weights(classifier.encoder, encoder, weights, train.channels)
    classifier.head.load_state_dict({"weight": head})
    evaluated = evaluate_classifier(
        classifier.eval(), data.test, device, config.group_edges, config.loading.workers, folder
    )
    figures = {name: evaluated.figures[name] for name in _FIGURES}
    write_json(folder / ZERO_SHOT, figures)
    return figures


def read_zero_shot(folder: Path) -> dict[str, Any] | None:
    """Return the ``zero_shot.json`` of the run in ``folder``, None if its head did not start from texts.

    Raises:
        UserError: the file was cut off or changed.
    """
    path = folder / ZERO_SHOT
    if not path.exists():
        return None
    record = read_json(path)
    try:
        figures: dict[str, Any] = {name: record[name] for name in _FIGURES}
        sound = all(0 <= figures[name] <= 1 for name in _FIGURES[:2])
        accuracies = [group["accuracy"] for group in figures["groups"].values()]
        sound &= all(accuracy is None or 0 <= accuracy <= 1 for accuracy in accuracies)
    except (KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise UserError(f"{path} cannot be read as figures before training; it was cut off or changed.")
    return figures


def with_zero_shot(folder: Path, evaluation: Evaluation) -> Evaluation:
    """Return ``evaluation`` with the figures before training of the run in ``folder``, if it has any."""
    figures = read_zero_shot(folder)
    return evaluation if figures is None else replace(evaluation, figures=evaluation.figures | {"zero_shot": figures})


def zero_shot_line(figures: dict[str, Any]) -> str:
    """Return the figures as one line, in per cent."""
    shown = {"top-1": figures["top1"], "balanced": figures["balanced_accuracy"]}
    shown |= {name: group["accuracy"] for name, group in figures["groups"].items()}
    return "zero-shot: " + "  ".join(
        f"{name} {'-' if value is None else f'{100 * value:.1f} %'}" for name, value in shown.items()
    )
