"""What each class is taken for, out of the counts of true and predicted pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longtail.segmentation.report.dense_class import DenseClass

_LEAST = 0.005
"""Share below which a confusion is not worth a word."""

_MOST = 3
_RAREST = 8


def taken_for(confusion: Sequence[Sequence[int]], label: int) -> tuple[tuple[int, float], ...]:
    """Return (class, share) of what the pixels of ``label`` are most often taken for, of all its pixels.

    Args:
        confusion: ``[C, C]``, pixels by true class (rows) and predicted class (columns).
        label: the class.
    """
    return _largest(confusion[label], label)


def wrongly_called(confusion: Sequence[Sequence[int]], label: int) -> tuple[tuple[int, float], ...]:
    """Return (class, share) of what is most often wrongly called ``label``, of all that is called so."""
    return _largest([row[label] for row in confusion], label)


def rare_confusions(confusion: Sequence[Sequence[int]] | None, rows: Sequence[DenseClass]) -> list[dict[str, Any]]:
    """Return the rarest classes that are tested, with what is wrongly called by their name; [] without counts."""
    if confusion is None:
        return []
    tested = sorted((row for row in rows if row.test_pixels), key=lambda row: row.train_pixels)
    return [{"row": row, "stolen": wrongly_called(confusion, row.index)} for row in tested[:_RAREST]]


def _largest(counts: Sequence[int], label: int) -> tuple[tuple[int, float], ...]:
    whole = sum(counts)
    others = [(other, count / whole) for other, count in enumerate(counts) if other != label and count]
    others.sort(key=lambda pair: -pair[1])
    return tuple((other, share) for other, share in others[:_MOST] if share >= _LEAST)
