"""What ``longtail predict`` says beside its table: what the numbers mean, and what came of it."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from longtail.deployment.answers import AnswerForm, Tally
from longtail.errors import counted
from longtail.metrics import chance_error, estimate_error
from longtail.metrics.post_hoc import is_uniform
from longtail.models import Classifier
from longtail.training.calibration import CALIBRATION
from longtail.training.shortlists import HeldOut, Shortlist

MOST_CHANCE_ERROR = 0.1
"""Expected half sum of |estimated - true prior|, by chance alone, from which an estimate is said to be unreliable."""

MOST_TRIAL_ERROR = 0.2
"""The same on validation images, from which an estimate is said to be unreliable. They are few themselves."""


def probability_notes(folder: Path, classifier: Classifier, prior: str) -> list[str]:
    """Return what the probabilities are: calibrated or not, and for which classes' frequencies."""
    temperature = classifier.temperature
    if temperature is None:
        there = (folder / CALIBRATION).exists()
        why = "its validation images are too few, or all right" if there else f"no {CALIBRATION} in {folder}"
        calibrated = f"probabilities are not calibrated ({why})"
    else:
        calibrated = f"probabilities are calibrated on validation images (temperature {temperature:.3g})"
    if prior == "none":
        own, counts = classifier.logit_prior.double().cpu(), classifier.class_counts.double().cpu()
        alike = "all equally frequent" if is_uniform(own) else "as frequent as the model's own prior says"
        classes = "as frequent as in the training data" if _same(own, counts / counts.sum()) else alike
    else:
        classes = {
            "uniform": "all equally frequent",
            "train": "as frequent as in the training data",
            "estimate": "as frequent as is estimated from the images",
        }.get(prior, f"as frequent as {prior} says")
    return [f"{calibrated}, and hold where classes are {classes}."]


def estimate_notes(prior: Tensor, images: int) -> list[str]:
    """Return a warning where a ``prior`` estimated from so many images is off by more than a tenth by chance alone."""
    error = chance_error(prior, images)
    if error <= MOST_CHANCE_ERROR:
        return []
    wanted = math.ceil(images * (error / MOST_CHANCE_ERROR) ** 2 / 10) * 10
    given = f"{counted(images, 'image')} of {counted(len(prior), 'class', 'classes')}"
    return [
        f"this estimate is unreliable: with {given}, some "
        f"{100 * error:.0f} % of it lie on the wrong classes by chance alone, even where every image is plain. Give "
        f"more images (about {wanted} bring that to {100 * MOST_CHANCE_ERROR:.0f} %), or a prior that you know."
    ]


def estimate_trial_notes(held_out: HeldOut | None, classifier: Classifier) -> list[str]:
    """Return how good an estimated prior is on validation images, whose classes are known; a warning if it is not.

    A model that does not tell its classes apart, or is surer than it is right, gives an estimate that piles up on a few
    of them, whatever the number of images.
    """
    if held_out is None:
        return ["no validation images tell how good such an estimate is with this model (train with --val_fraction)."]
    off = estimate_error(held_out.logits / held_out.temperature, held_out.labels, classifier.logit_prior.cpu())
    tried = f"tried on {counted(len(held_out.labels), 'validation image')}, whose classes are known, such an estimate"
    if off <= MOST_TRIAL_ERROR:
        return [f"{tried} puts {100 * off:.0f} % of the prior on wrong classes."]
    return [
        f"this estimate is unreliable: {tried} puts {100 * off:.0f} % of the prior on wrong classes, because the model "
        "does not tell them apart well enough. Without --prior, or with a prior that you know, answers may well be "
        "better."
    ]


def shortlist_notes(shortlist: Shortlist | None, coverage: float, prior: str) -> list[str]:
    """Return what shortlists promise, and what they do not."""
    if shortlist is None:
        return []
    of = {"marginal": "all images", "class": "the images of each class", "prevalence": "all images"}[shortlist.kind]
    frequent = "in the training data" if prior == "none" else f"--prior {prior} says"
    where = "" if shortlist.kind == "class" else f", if classes are as frequent as {frequent}"
    return [f"shortlists hold the right class of {100 * coverage:g} % of {of}{where}.", *shortlist.notes]


def summary(tally: Tally, form: AnswerForm, file: Path | None) -> str:
    """Return the last line: how many images were predicted, and how."""
    read = tally.images - tally.unreadable
    parts = [f"{counted(read, 'image')} predicted"]
    if form.reject_below is not None:
        parts.append(f"{tally.unsure} of them not sure")
    if form.shortlist is not None:
        parts.append(f"{tally.listed / read:.2f} classes a shortlist")
    if tally.unreadable:
        parts.append(f"{tally.unreadable} cannot be read, first {tally.first_bad}: see the column error")
    return "; ".join(parts) + (f"; {file}" if file is not None else "")


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two priors ``[C]`` with sum 1 are the same, but for rounding."""
    return torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-9)
