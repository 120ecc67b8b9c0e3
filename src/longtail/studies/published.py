"""Published figures to show beside ours, each with its source; where none was found there is none.

Top-1 accuracy in per cent on the usual balanced test set. :func:`published_set` knows a set again by its sizes, so that
an array file of the same images counts as it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GML_PAPER = "Suh & Seo, ICML 2023"
RERUN = "independent re-run, DBM, AAAI 2025"
_RESNET32, _RESNEXT50, _RESNET50, _CLIP = "ResNet-32", "ResNeXt-50", "ResNet-50", "CLIP ViT-B/16"

# Classes, training images, test images -> name and imbalance (None: as published).
_SETS: dict[tuple[int, int, int], tuple[str, int | None]] = {
    (100, 10_847, 10_000): ("cifar100-lt", 100),
    (100, 12_608, 10_000): ("cifar100-lt", 50),
    (100, 19_573, 10_000): ("cifar100-lt", 10),
    (10, 12_406, 10_000): ("cifar10-lt", 100),
    (10, 13_996, 10_000): ("cifar10-lt", 50),
    (10, 20_431, 10_000): ("cifar10-lt", 10),
    (1000, 115_846, 50_000): ("imagenet-lt", None),
    (8142, 437_513, 24_426): ("inaturalist2018", None),
    (365, 62_500, 36_500): ("places-lt", None),
}


@dataclass(frozen=True)
class Published:
    """One published top-1 accuracy.

    Attributes:
        data, imbalance: the set; imbalance None for sets that are long-tailed as published.
        method: our name where there is one, else the paper's.
        top1: per cent; of a range, its ends.
        network, epochs: None where the source does not say.
        source: who reports it.
        groups: per cent of many, medium and few.
    """

    data: str
    imbalance: int | None
    method: str
    top1: tuple[float, ...]
    network: str | None
    epochs: int | None
    source: str
    groups: tuple[float, float, float] | None = None

    @property
    def text(self) -> str:
        """The figure and where it holds: ``53.0 (200 epochs, Suh & Seo, ICML 2023)``."""
        length = [f"{self.epochs} epochs"] if self.epochs is not None else []
        # With as many decimals as were published, but one at least.
        top1 = "-".join(f"{value:g}" if value % 1 else f"{value:.1f}" for value in self.top1)
        return f"{top1} ({', '.join([*length, self.source])})"

    def record(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        groups = None if self.groups is None else dict(zip(("many", "medium", "few"), self.groups, strict=True))
        return {
            "method": self.method,
            "top1_percent": list(self.top1),
            "groups_percent": groups,
            "network": self.network,
            "epochs": self.epochs,
            "source": self.source,
        }


def published_set(classes: int, train_images: int, test_images: int) -> tuple[str, int | None] | None:
    """Return name and imbalance of the published set of these sizes, None if there is none."""
    return _SETS.get((classes, train_images, test_images))


def published_figures(data: str, imbalance: int | None) -> list[Published]:
    """Return the figures of a set, in the order below."""
    return [figure for figure in PUBLISHED_FIGURES if (figure.data, figure.imbalance) == (data, imbalance)]


def _cifar(
    data: str,
    method: str,
    figures: str,
    epochs: int | None,
    source: str,
    groups: tuple[float, float, float] | None = None,
) -> list[Published]:
    """Return the figures at imbalance 100, 50 and 10, "-" where there is none; groups are those of imbalance 100."""
    return [
        Published(data, level, method, (float(text),), _RESNET32, epochs, source, groups if level == 100 else None)
        for level, text in zip((100, 50, 10), figures.split(" / "), strict=True)
        if text != "-"
    ]


def _one(data: str, method: str, top1: str, network: str, epochs: int | None, source: str) -> Published:
    return Published(data, None, method, tuple(map(float, top1.split("-"))), network, epochs, source)


def _of(name: str) -> str:
    return f"reported for {name}"


_SMALL, _LARGE = "cifar10-lt", "cifar100-lt"

PUBLISHED_FIGURES: tuple[Published, ...] = (
    *_cifar(_LARGE, "gml", "53.0 / 57.6 / 65.7", 200, GML_PAPER),
    *_cifar(_LARGE, "gml", "54.0 / 58.1 / 67.0", 400, GML_PAPER),
    *_cifar(_LARGE, "cross_entropy", "44.60 / 48.75 / 61.98", 200, RERUN, (73.03, 45.37, 10.53)),
    *_cifar(_LARGE, "ldam", "45.25 / 50.16 / 62.86", 200, RERUN, (75.31, 44.00, 11.63)),
    *_cifar(_LARGE, "CE-DRW", "48.28 / 53.89 / 64.25", 200, RERUN, (65.89, 50.74, 24.87)),
    *_cifar(_LARGE, "ldam_drw", "48.99 / 54.27 / 64.58", 200, RERUN, (66.09, 50.83, 26.90)),
    *_cifar(_LARGE, "balanced_softmax", "49.35 / 54.79 / 63.93", 200, RERUN, (65.77, 50.14, 29.27)),
    *_cifar(_LARGE, "bcl", "50.23 / 55.35 / 64.98", 200, RERUN, (67.14, 51.31, 29.23)),
    *_cifar(_LARGE, "gml", "53.12 / 58.17 / 66.93", 200, RERUN, (71.60, 54.57, 28.20)),
    *_cifar(_SMALL, "cross_entropy", "78.48 / 82.73 / 89.91", 200, RERUN),
    *_cifar(_SMALL, "ldam", "79.92 / 83.84 / 90.54", 200, RERUN),
    *_cifar(_SMALL, "CE-DRW", "82.24 / 85.05 / 90.94", 200, RERUN),
    *_cifar(_SMALL, "ldam_drw", "82.60 / 85.36 / 91.22", 200, RERUN),
    *_cifar(_SMALL, "balanced_softmax", "83.57 / 86.45 / 91.26", 200, RERUN),
    *_cifar(_SMALL, "bcl", "82.95 / 86.76 / 91.57", 200, RERUN),
    *_cifar(_SMALL, "gml", "85.19 / 88.07 / 92.11", 200, RERUN),
    *_cifar(_LARGE, "proco", "52.8 / - / -", 200, _of("ProCo")),
    *_cifar(_LARGE, "proco", "54.2 / 57.1 / 65.5", 400, _of("ProCo")),
    *_cifar(_LARGE, "DBM-GML", "53.7 / 58.4 / 67.2", None, _of("DBM-GML")),
    *_cifar(_LARGE, "LOS", "54.9 / 58.8 / 69.7", None, _of("LOS")),
    *_cifar(_LARGE, "GLMC", "55.9 / 61.1 / 70.7", None, _of("GLMC")),
    *_cifar(_LARGE, "SURE", "56.3 / - / 73.2", None, _of("SURE")),
    *_cifar(_LARGE, "TCL", "58.7 / - / -", None, _of("TCL")),
    Published(_LARGE, 100, "LIFT", (81.7,), _CLIP, None, _of("LIFT")),
    _one("imagenet-lt", "gml", "58.3", _RESNEXT50, 90, GML_PAPER),
    _one("imagenet-lt", "gml", "58.8", _RESNEXT50, 400, GML_PAPER),
    _one("imagenet-lt", "bcl", "57.2-57.8", _RESNEXT50, None, _of("BCL")),
    _one("imagenet-lt", "proco", "58.0", _RESNEXT50, None, _of("ProCo")),
    _one("imagenet-lt", "GPaCo", "58.9", _RESNEXT50, None, _of("GPaCo")),
    _one("imagenet-lt", "TCL", "63.0", _RESNEXT50, None, _of("TCL")),
    _one("imagenet-lt", "LIFT", "77.0", _CLIP, None, _of("LIFT")),
    _one("inaturalist2018", "gml", "73.1", _RESNET50, 100, GML_PAPER),
    _one("inaturalist2018", "gml", "74.5", _RESNET50, 400, GML_PAPER),
    _one("inaturalist2018", "GML from CLIP", "82.1", _CLIP, None, GML_PAPER),
    _one("inaturalist2018", "bcl", "71.8", _RESNET50, None, _of("BCL")),
    _one("inaturalist2018", "paco", "73.2", _RESNET50, None, _of("PaCo")),
    _one("inaturalist2018", "proco", "73.5", _RESNET50, None, _of("ProCo")),
    _one("inaturalist2018", "GPaCo", "75.4", _RESNET50, None, _of("GPaCo")),
    _one("inaturalist2018", "TCL", "76.9", _RESNET50, None, _of("TCL")),
    _one("inaturalist2018", "LIFT", "79.1", _CLIP, None, _of("LIFT")),
    _one("places-lt", "LIFT", "51.5", _CLIP, None, _of("LIFT")),
)
"""Every figure that is shown, those of the GML paper and its independent re-run first."""
