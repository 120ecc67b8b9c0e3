"""What the validation images are good for once a stage is trained: a temperature, and a strength of the prior.

Both are fitted on the validation images alone. The figures of the test set stay as they are; what calibration and
adjustment would make of them stands beside them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtail.data import LabelledImages
from longtail.errors import counted
from longtail.files import load_meta, save_tensors, write_json
from longtail.metrics import (
    adjusted_logits,
    balanced_accuracy,
    choose_strength,
    class_calibration_error,
    class_recall,
    expected_calibration_error,
    fit_temperature,
    group_accuracy,
    negative_log_likelihood,
    predict_with_confidence,
    prior_weights,
)
from longtail.metrics.inputs import row_blocks
from longtail.metrics.post_hoc import is_uniform
from longtail.metrics.temperature import HIGHEST
from longtail.models import Classifier
from longtail.models.temperature import CALIBRATION as CALIBRATION
from longtail.models.temperature import read_calibration as read_calibration
from longtail.models.temperature import read_temperature as read_temperature
from longtail.ranks import Ranks
from longtail.training.evaluation import Evaluation, collect_logits

VALIDATION = "validation"
FEWEST_IMAGES = 30
"""Effective number of validation images below which no temperature is fitted: one wrong image would decide it."""


def calibrate(
    folder: Path,
    classifier: Classifier,
    images: LabelledImages,
    device: torch.device,
    workers: int | None,
    selected: dict[str, Any] | None,
    ranks: Ranks | None = None,
) -> None:
    """Write ``validation.safetensors`` + ``.json`` and ``calibration.json`` into ``folder``.

    Each image weighs ``logit_prior[y] / validation prior[y]``, so that the temperature is right for images of the class
    prior that the classifier's softmax implies. Where that leaves less than 30 images' worth, (sum w)^2 / sum w^2
    (Kish 1965), the temperature stays 1.

    Args:
        folder: of the stage.
        classifier: as it was saved there.
        images: the validation set.
        device, workers: where to compute, and how many processes decode.
        selected: the record of the best epoch, None if the last was kept.
        ranks: processes that share the work; this is the first, the others help (``help_evaluate``).
    """
    logits, labels = collect_logits(classifier, images, device, workers, compact=True, ranks=ranks), images.labels
    meta: dict[str, Any] = {"selection": "last"}
    if selected is not None:
        meta = {"selection": "best", "selected": selected | {"images": len(labels)}}
    save_tensors(folder, VALIDATION, {"logits": logits, "labels": labels}, meta)
    prior = classifier.logit_prior.cpu().double()
    weights = prior_weights(labels, prior)
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    temperature = fit_temperature(logits, labels, weights) if effective >= FEWEST_IMAGES else 1.0

    def error(at: float) -> float:
        confidence, right = _confidence(logits, labels, at)
        return expected_calibration_error(confidence, right, weights=weights)

    record: dict[str, Any] = {
        "temperature": temperature,
        "images": len(labels),
        "effective_images": round(effective, 1),
        "nll": [negative_log_likelihood(logits, labels, at, weights) for at in (1.0, temperature)],
        "ece": [error(at) for at in (1.0, temperature)],
    }
    if not is_uniform(prior):
        record["tau"] = choose_strength(logits, labels, prior)
    write_json(folder / CALIBRATION, record)


def with_validation(folder: Path, evaluation: Evaluation, logit_prior: Tensor) -> Evaluation:
    """Return ``evaluation`` with what the validation images of the run in ``folder`` chose; as it is without any.

    Added to the figures are how the epoch was chosen (``selection``, ``selected``), calibration errors at the fitted
    temperature (``calibrated``) and what the strength of the prior gives (``post_hoc``), each where one was fitted.

    Raises:
        UserError: a file was cut off or changed.
    """
    calibration = read_calibration(folder)
    if calibration is None or not (folder / f"{VALIDATION}.json").exists():  # a temperature alone chose nothing
        return evaluation
    logits, labels = evaluation.logits, evaluation.labels
    added: dict[str, Any] = load_meta(folder, VALIDATION)
    temperature = read_temperature(folder)
    if temperature is not None:
        confidence, right = _confidence(logits, labels, temperature)
        added["calibrated"] = {
            "temperature": temperature,
            "ece": expected_calibration_error(confidence, right),
            "class_ece": class_calibration_error(confidence, right, labels, logits.shape[1]),
        }
    if "tau" in calibration:
        strength, edges = float(calibration["tau"]), evaluation.figures["group_edges"]
        prior = logit_prior.cpu()
        predictions = torch.cat([adjusted_logits(part, prior, strength).argmax(1) for _, part in row_blocks(logits)])
        recall = class_recall(predictions, labels, logits.shape[1])
        counts = torch.tensor(evaluation.figures["class_counts"])
        added["post_hoc"] = {
            "tau": strength,
            "balanced_accuracy": balanced_accuracy(recall),
            "groups": group_accuracy(recall, counts, (edges[0], edges[1])),
        }
    return replace(evaluation, figures=evaluation.figures | added)


def validation_notes(folder: Path) -> list[str]:
    """Return sentences on what was chosen by the validation images of the run in ``folder``; none without any."""
    calibration = read_calibration(folder)
    if calibration is None:
        return []
    selected = load_meta(folder, VALIDATION).get("selected")
    images, notes = counted(calibration["images"], "validation image"), []
    if selected:
        notes.append(
            f"epoch {selected['epoch']} is kept, the best of {selected['of']}: balanced accuracy "
            f"{100 * selected['value']:.1f} % on {images}."
        )
    if calibration.get("effective_images", FEWEST_IMAGES) < FEWEST_IMAGES:
        notes.append(
            f"no temperature is fitted: weighted to the model's class prior, {images} count like "
            f"{calibration['effective_images']:.0f}, fewer than {FEWEST_IMAGES}."
        )
        return notes
    before, after = calibration["ece"]
    notes.append(
        f"temperature {calibration['temperature']:.3g} fitted on {images}: calibration error there "
        f"{100 * before:.1f} % without, {100 * after:.1f} % with it."
    )
    if calibration["temperature"] >= HIGHEST:
        notes.append("that is the highest temperature there is: the model knows next to nothing of those images.")
    return notes


def _confidence(logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    predictions, confidence = predict_with_confidence(logits, temperature)
    return confidence, predictions == labels
