"""What a reader would miss, or misread, in bare figures: said once, for the terminal, the pages and the card alike."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from longtail.errors import counted
from longtail.metrics import MeanInterval

_UNLEARNED = 0.5
"""Share of the loss of guessing, left at the end, from which a training is said to have been too short."""

NEGATIVE_BITS = (
    "below 0: its probabilities fit the labels worse than the bare frequencies of the classes would (the true "
    "information is never negative)"
)


def warnings(evaluation: dict[str, Any], who: str = "the model") -> list[str]:
    """Return sentences on what makes the figures of an ``evaluation.json`` mean something else than they seem to."""
    found = evaluation.get("one_class")  # evaluations of older versions have none
    if not found:
        return []
    name, images = evaluation["class_names"][found["class"]], evaluation["test_images"]
    every = "every test image" if found["called"] == images else "nearly every test image"
    return [
        f"{who} calls {every} {name!r}: {found['called']} of {images}, and {found['others_called']} of the "
        f"{counted(found['others'], 'image')} that {'is' if found['others'] == 1 else 'are'} of another class. It has "
        "not learned to tell the classes apart, whatever its top-1 is; see whether its loss fell at all, and try more "
        "epochs or another --optimiser.lr."
    ]


def unlearned(log: list[dict[str, Any]], class_counts: Iterable[int]) -> list[str]:
    """Return a sentence for each stage at whose end the training images themselves were far from learned.

    The measure is the classifier's loss in the last epoch, over that of a model which knows only how frequent classes
    are: the entropy of the class prior, with and without logit adjustment alike.

    Args:
        log: the lines of ``metrics.jsonl``.
        class_counts: training images of each class.
    """
    counts = [count for count in class_counts if count > 0]
    guess = -sum(count / sum(counts) * math.log(count / sum(counts)) for count in counts)
    last = {str(line["stage"]): line for line in log if isinstance(line.get("classifier"), int | float)}
    return [
        f"{'the model' if len(last) == 1 else f'the {stage}'} was far from having learned its own training "
        f"images when training ended (classifier loss {line['classifier']:.2f}; {guess:.2f} is that of knowing the "
        "class frequencies alone): more --epochs are likely to help."
        for stage, line in last.items()
        if line["classifier"] > _UNLEARNED * guess
    ]


def classes_tested(group: dict[str, Any]) -> str:
    """Return how many classes a group's accuracy is the mean of: ``3``, or ``2 tested of 3`` where some have no image.

    ``group`` is one of ``groups`` of an ``evaluation.json``.
    """
    classes = group["classes"]
    tested = group.get("tested_classes", classes)
    return f"{classes}" if tested == classes else f"{tested} tested of {classes}"


def bits_note(values: Iterable[float | None]) -> str:
    """Return what a negative bound on label information means if one of ``values`` is negative, else ``""``."""
    return NEGATIVE_BITS if any(value is not None and value < 0 for value in values) else ""


def interval_note(number: int, of: str) -> str:
    """Return what a t interval over two ``of`` ("seeds"), if that is their ``number``, is worth; else ``""``.

    With two values there is one degree of freedom, and Student's t is at its widest.
    """
    if number != 2:
        return ""
    return (
        f"2 {of}: the interval says little. It rests on the one difference between the two, so that Student's t makes "
        f"it 12.7 standard errors wide to each side (4.3 with three {of}, 2.8 with five)."
    )


def any_negative_bits(figures: Iterable[dict[str, MeanInterval | None]]) -> str:
    """Return :func:`bits_note` for the rows of a comparison."""
    found = (row.get("mutual_information_bits") for row in figures)
    return bits_note(value.mean for value in found if value is not None)


def duration(seconds: float) -> str:
    """Return seconds as ``42 s``, ``3 min 5 s`` or ``2 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
