"""Shortlists of a run: calibrated on its validation images, chosen for new ones, and measured on the test set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtail.errors import UserError, counted
from longtail.metrics import (
    CONFORMAL_KINDS,
    GROUPS,
    class_set_figures,
    conformal_scores,
    conformal_thresholds,
    group_index,
    needed_images,
    rare_together,
    set_figures,
    shortlists,
)
from longtail.metrics.inputs import row_blocks, zeros_as_rarest
from longtail.training.calibration import VALIDATION, read_temperature
from longtail.training.evaluation import Evaluation, load_predictions

TARGET = 0.9
"""Coverage that every evaluation measures."""


@dataclass(frozen=True)
class Shortlist:
    """A rule for which classes an image may be of.

    Attributes:
        kind: ``"marginal"``, ``"class"`` or ``"prevalence"``.
        shift: ``[C]``, added to the logits before their softmax is scored.
        prevalence: ``[C]``, see :func:`longtail.metrics.conformal_scores`; None for the score -p.
        thresholds: ``[C]``, see :func:`longtail.metrics.conformal_thresholds`.
        possible: bool ``[C]``, classes that may occur.
        notes: sentences on classes with too few validation images.
    """

    kind: str
    shift: Tensor
    prevalence: Tensor | None
    thresholds: Tensor
    possible: Tensor
    notes: tuple[str, ...]

    def choose(self, logits: Tensor, first: Tensor) -> Tensor:
        """Return bool ``[N, C]``: the classes of each image's shortlist, ``first [N]`` in any case.

        ``logits [N, C]`` are divided by the temperature, without any shift.
        """
        return shortlists(_scores(logits, self.shift, self.prevalence), self.thresholds, first, self.possible)


@dataclass(frozen=True)
class HeldOut:
    """What a run keeps of its validation images.

    Attributes:
        logits: ``[n, C]``, as they were kept.
        labels: ``[n]``.
        temperature: the logits are divided by it, a block at a time.
    """

    logits: Tensor
    labels: Tensor
    temperature: float


def read_held_out(folder: Path) -> HeldOut | None:
    """Return the validation images' logits of the run in ``folder``, None if it was trained without any.

    Raises:
        UserError: a file was cut off or changed.
    """
    if not (folder / f"{VALIDATION}.json").exists():
        return None
    logits, labels = load_predictions(folder, VALIDATION)
    return HeldOut(logits, labels, read_temperature(folder) or 1.0)


def calibrate_shortlist(
    held_out: HeldOut,
    kind: str,
    coverage: float,
    class_counts: Tensor,
    train_shift: Tensor,
    shift: Tensor | None = None,
    prior: Tensor | None = None,
) -> Shortlist:
    """Return the shortlists that hold the right class with probability ``coverage``.

    ``"marginal"``: of all images; the score is -p. ``"class"``: of the images of each class, classes with too few
    validation images taken together; the same score. ``"prevalence"``: of all images, with the prevalence-adjusted
    score, which spreads the misses over the classes.

    New images are taken to have the class frequencies ``prior``, without it those of the training data: validation
    images are weighted by that over their own frequency of their class (Podkopaev and Ramdas 2021). Their own are not
    taken as they are, because of rare classes at least one whole image is held out, which is more than their share.
    Only ``"class"`` without ``prior`` has no weights: its promise is to each class, within which all weigh the same
    (classes taken together count as often as they are among the validation images).

    Args:
        held_out: the calibration images.
        kind: one of :data:`longtail.metrics.CONFORMAL_KINDS`.
        coverage: between 0 and 1.
        class_counts: ``[C]`` training images of each class.
        train_shift: ``[C]``, turns the logits' class prior into the training data's.
        shift: ``[C]``, turns it into that of the probabilities shown; None = none.
        prior: ``[C]``, class prior of the new images, sum 1; None = the training data's.

    Raises:
        UserError: too few validation images for this coverage.
    """
    labels, num_classes = held_out.labels, len(class_counts)
    images = torch.bincount(labels, minlength=num_classes)
    needed = needed_images(coverage)
    if len(labels) < needed:
        most = len(labels) / (len(labels) + 1)
        raise UserError(
            f"--coverage {coverage:g} needs {needed} validation images, the run has {len(labels)}; ask for at most "
            f"{int(most * 100) / 100:g}, or train with a larger --val_fraction."
        )
    prevalence = None
    scored = torch.zeros(num_classes, dtype=torch.float64) if shift is None else shift
    if kind == "prevalence":
        scored, prevalence = train_shift, class_counts.double() / class_counts.sum()
    own = torch.cat(
        [
            _scores(block / held_out.temperature, scored, prevalence).gather(1, labels[rows, None]).squeeze(1)
            for rows, block in row_blocks(held_out.logits)
        ]
    )
    expected = class_counts.double() / class_counts.sum() if prior is None and kind != "class" else prior
    weights = None if expected is None else expected * len(labels) / images.clamp(min=1)
    groups = rare_together(images, coverage) if kind == "class" else None
    thresholds = conformal_thresholds(own, labels, num_classes, coverage, groups, weights)
    possible = torch.ones(num_classes, dtype=torch.bool) if prior is None else prior > 0
    notes = _notes(images, groups, thresholds.isinf() & possible, coverage)
    return Shortlist(kind, scored, prevalence, thresholds, possible, notes)


def _scores(logits: Tensor, shift: Tensor, prevalence: Tensor | None) -> Tensor:
    return conformal_scores((logits.double() + shift).softmax(1), prevalence)


def _notes(images: Tensor, groups: Tensor | None, always: Tensor, coverage: float) -> tuple[str, ...]:
    notes = []
    together = 0 if groups is None else int((groups == len(images)).sum())
    unseen = int((images == 0).sum())
    if together:
        notes.append(
            f"{counted(together, 'class', 'classes')} of {len(images)} with too few validation images (fewer than "
            f"{needed_images(coverage)}) share one threshold: their coverage holds for them together, not for each."
        )
    if unseen:
        notes.append(
            f"{counted(unseen, 'class', 'classes')} of {len(images)} without a validation image: nothing is known of "
            "how often shortlists hold them."
        )
    if bool(always.any()):
        notes.append(
            f"{counted(int(always.sum()), 'class', 'classes')} of {len(images)} in every shortlist: too few validation "
            "images for the weight that the prior gives them."
        )
    return tuple(notes)


def with_shortlists(folder: Path, evaluation: Evaluation, logit_prior: Tensor) -> Evaluation:
    """Return ``evaluation`` with coverage and size of 0.9 shortlists on the test set; as it is without validation.

    ``figures["conformal"]`` gets ``target``, ``images`` (for calibration), ``prior`` (``"train"``: whose class
    frequencies the target is for) and, in ``kinds``, for each kind ``coverage`` (share of test images),
    ``macro_coverage`` (mean over classes), ``weighted_coverage`` (at the class frequencies of the training data),
    ``mean_size`` and ``groups`` (each ``{coverage, mean_size}``, means over its classes, or None).
    ``rows`` get ``KIND_coverage`` and ``KIND_size``. Where there are too few validation images, nothing is added.

    Args:
        folder: of the run.
        evaluation: of its test set.
        logit_prior: ``[C]``, the class prior that the softmax implies.
    """
    held_out = read_held_out(folder)
    if held_out is None or len(held_out.labels) < needed_images(TARGET):
        return evaluation
    counts = torch.tensor(evaluation.figures["class_counts"])
    many, few = evaluation.figures["group_edges"]
    group = group_index(counts, (many, few))
    base, train = logit_prior.cpu().double(), counts.double() / counts.sum()
    train_shift = train.log() - zeros_as_rarest(base).log()
    logits, temperature = evaluation.logits, read_temperature(folder) or 1.0
    kinds: dict[str, Any] = {}
    rows = [dict(row) for row in evaluation.rows]
    for kind in CONFORMAL_KINDS:
        rule = calibrate_shortlist(held_out, kind, TARGET, counts, train_shift)
        held, sizes = [], []
        for part, block in row_blocks(logits):
            sets = rule.choose(block / temperature, block.argmax(1))
            held.append(sets.gather(1, evaluation.labels[part, None]).squeeze(1))
            sizes.append(sets.sum(1))
        answers = torch.cat(held), torch.cat(sizes), evaluation.labels, len(counts)
        coverages, means = class_set_figures(*answers)
        kinds[kind] = {
            **set_figures(*answers, prior=train),
            "groups": {name: _of_group(coverages, means, group == place) for place, name in enumerate(GROUPS)},
        }
        for row, covered, size in zip(rows, coverages, means, strict=True):
            row |= {f"{kind}_coverage": covered, f"{kind}_size": size}
    record = {"target": TARGET, "images": len(held_out.labels), "prior": "train", "kinds": kinds}
    return replace(evaluation, figures=evaluation.figures | {"conformal": record}, rows=rows)


def _of_group(coverages: list[float | None], sizes: list[float | None], members: Tensor) -> dict[str, float] | None:
    """Return means over the members that have test images, None if there are none."""
    pairs = [
        (covered, size)
        for covered, size, member in zip(coverages, sizes, members.tolist(), strict=True)
        if member and covered is not None and size is not None
    ]
    if not pairs:
        return None
    return {
        "coverage": sum(covered for covered, _ in pairs) / len(pairs),
        "mean_size": sum(size for _, size in pairs) / len(pairs),
    }
