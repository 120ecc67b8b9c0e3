"""One class of a run on masks, as its report shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DenseClass:
    """One class as the page shows it; figures are None where neither test masks nor predictions hold it.

    Attributes:
        index: its number in masks.
        colour: ``#rrggbb``.
        group: ``many``, ``medium`` or ``few`` by training pixels.
        share: of the training pixels.
        images: training images that hold it.
        test_pixels: true pixels of it in the test masks.
        taken_for: (class, share of its test pixels) of the classes that it is most often taken for.
    """

    index: int
    name: str
    colour: str
    group: str
    train_pixels: int
    share: float
    images: int
    test_pixels: int
    iou: float | None
    recall: float | None
    precision: float | None
    boundary_f: float | None
    taken_for: tuple[tuple[int, float], ...] = ()
