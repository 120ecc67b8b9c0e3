"""The studies by name: which rows they compare, on which data, against what. Data alone; nothing heavy is imported.

A study is panels (data sets and what changes with them) times rows (methods, or one option after another) times seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from longtail.config import TrainConfig
from longtail.errors import unknown_name
from longtail.studies import rows
from longtail.studies.rows import Row

ALL_METHODS = ("all",)
"""Stands for every method that is registered when the study is planned, in the registry's order."""
CIFAR_RECIPE = "cifar100-lt-imbalance100-200epochs"
RECIPES = {
    "cifar10-lt": CIFAR_RECIPE,
    "cifar100-lt": CIFAR_RECIPE,
    "imagenet-lt": "imagenet-lt-resnext50-90epochs",
    "inaturalist2018": "inaturalist2018-resnet50-100epochs",
    "places-lt": "places-lt-resnet152-30epochs",
}
"""Recipe whose settings fit a data set; every other gets the options that are chosen from the data."""
_COMPETITORS = ("cross_entropy", "logit_adjustment", "balanced_softmax", "bcl", "paco", "proco", "gml")


def _one_method(base: TrainConfig) -> list[Row]:
    raise ValueError("a study over methods has a row for each")


@dataclass(frozen=True)
class Study:
    """What a study compares.

    Attributes:
        name: on the command line.
        text: a line for the list.
        reading: what to look for, in a sentence or two, for the page.
        rows: from the resolved options of GML on the data to the rows; not asked where there are ``methods``.
        methods: the rows' methods (or :data:`ALL_METHODS`), unless ``--methods`` names others; () where ``--methods``
            makes no sense.
        panels: options that stay the same in a table: the data, and what goes through several values.
        recipe: whose settings the cells have, whatever the data; None = by the data (:data:`RECIPES`).
        adds: what is told beside the table, a name of ``longtail.studies.additions``; "" = nothing.
    """

    name: str
    text: str
    reading: str
    rows: Callable[[TrainConfig], list[Row]] = _one_method
    methods: tuple[str, ...] = ()
    panels: tuple[Mapping[str, Any], ...] = ({"data": "digits-lt"},)
    recipe: str | None = None
    adds: str = ""


_EACH: list[Study] = [
    Study(
        "methods",
        "all methods on one data set (digits-lt unless --data names another)",
        "Rows share data, augmentation, schedule and evaluation. A difference whose interval holds 0 is not shown to "
        "be one.",
        methods=ALL_METHODS,
    ),
    Study(
        "cifar",
        "CIFAR-10-LT and CIFAR-100-LT at imbalance 100, 50 and 10, published figures beside ours",
        "Published figures belong beside ours only at the published length: ResNet-32, 200 epochs.",
        methods=("cross_entropy", "ldam", "ldam_drw", "balanced_softmax", "bcl", "gml"),
        panels=tuple(
            {"data": data, "imbalance": float(imbalance)}
            for data in ("cifar100-lt", "cifar10-lt")
            for imbalance in (100, 50, 10)
        ),
        recipe=CIFAR_RECIPE,
    ),
    Study(
        "teacher-student",
        "BCL and GML, each with and without a frozen teacher",
        "The paper reports that the teacher helps GML clearly and BCL, which has no queue, little.",
        rows=rows.teacher_student,
    ),
    Study(
        "teachers",
        "four teacher networks at equal epochs: the teacher's accuracy, and its student's",
        "The paper reports that the student hardly depends on the teacher's accuracy.",
        rows=rows.teachers,
        adds="teachers",
    ),
    Study(
        "imbalance",
        "rising imbalance, supervised contrastive against GML (figure)",
        "The paper reports that supervised contrastive learning degrades as imbalance rises and GML does not.",
        methods=("supcon", "gml"),
        panels=tuple({"data": "digits-lt", "imbalance": float(imbalance)} for imbalance in (1, 10, 20, 50, 100)),
        adds="imbalance",
    ),
    Study(
        "temperature",
        "the learned temperature over training from several starts, and fixed ones (figure)",
        "The paper reports that it converges near 0.05 and that learning it changes accuracy little.",
        rows=rows.temperatures,
        adds="temperature",
    ),
    Study(
        "queue",
        "capacity and minimum length of GML's class-wise queue",
        "Capacities are multiples of the one that fits the data.",
        rows=rows.queues,
        adds="queue",
    ),
    Study(
        "prior",
        "test sets with a long tail forward, uniform and backward; prior unknown, known, estimated",
        "The test-agnostic protocol, computed from each cell's logits without training anything anew.",
        methods=("cross_entropy", "balanced_softmax", "bcl", "gml"),
        adds="prior",
    ),
    Study(
        "switches",
        "GML's switches, one at a time",
        "Each row turns one thing of the first. Without a prior its teacher has none either, and from a momentum "
        "encoder nothing is distilled.",
        rows=rows.switches,
    ),
    Study(
        "gml-plus",
        "GML with what helps other methods, chosen by validation images held out of the training set",
        "Choose by the table of validation figures, never by that of the test set, which is for the row chosen.",
        rows=rows.plus,
        panels=({"data": "digits-lt", "val_fraction": 0.2, "select": "last"},),
        adds="validation",
    ),
    Study(
        "imagenet-lt",
        "ImageNet-LT, ResNeXt-50, published settings (needs --root)",
        "Settings of GML's recipe for every row; published figures are their authors'.",
        methods=_COMPETITORS,
        panels=({"data": "imagenet-lt"},),
    ),
    Study(
        "inaturalist2018",
        "iNaturalist 2018, ResNet-50, published settings (needs --root)",
        "Settings of GML's recipe for every row; published figures are their authors'.",
        methods=_COMPETITORS,
        panels=({"data": "inaturalist2018"},),
    ),
    Study(
        "places-lt",
        "Places-LT, ResNet-152 from ImageNet weights (needs --root)",
        "Settings of GML's recipe for every row; the paper has no Places-LT figure.",
        methods=_COMPETITORS,
        panels=({"data": "places-lt"},),
    ),
    Study(
        "clip",
        "from CLIP's ViT-B/16 on ImageNet-LT: GML, logit adjustment and cross entropy, all weights or a little (needs "
        "--root)",
        "Every row starts from the same weights and texts; the zero-shot figures are in each cell's report.",
        rows=rows.clip,
        panels=({"data": "imagenet-lt"},),
        recipe="imagenet-lt-clip-vitb16-adapter-10epochs",
    ),
]
STUDIES: dict[str, Study] = {study.name: study for study in _EACH}
"""The studies by name, in the order in which they are listed."""


def get_study(name: str) -> Study:
    """Return the study of that name; an unknown one is a ``UserError`` with near matches."""
    if name not in STUDIES:
        raise unknown_name("study", name, STUDIES)
    return STUDIES[name]
