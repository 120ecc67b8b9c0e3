"""The rows of studies that compare options: each from the resolved options of GML on the data at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from longtail.config import TrainConfig, resolved


@dataclass(frozen=True)
class Row:
    """A row of a study's table: runs that differ in nothing but their seed.

    Attributes:
        name: in the table.
        options: what makes it differ, by dotted name; holds the method.
        against: name of the row that it is compared with; "" = the first of the table.
        published: method whose published figures belong beside it; "" = none.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    against: str = ""
    published: str = ""


_CIFAR_TEACHERS = ("cifar_resnet20", "cifar_resnet32", "cifar_resnet56", "cifar_resnet110")
_PHOTO_TEACHERS = ("resnet50", "resnext50_32x4d", "resnet101", "resnext101_32x8d")
_STARTS = (0.02, 0.05, 0.1, 0.2, 0.5)
_FIXED = (0.05, 0.1, 0.2)
_CAPACITY_FACTORS = (0.5, 1, 2, 4)
_MINIMUMS = (1, 2, 4)


# Nothing is distilled from a moving average of the student, whose first weights are random.
_MOMENTUM = {"teacher.kind": "momentum", "loss.distillation_weight": 0.0}


def teacher_student(base: TrainConfig) -> list[Row]:
    """BCL and GML without a frozen teacher, and with one; GML cannot do without a network that fills its queue."""
    return [
        Row("bcl", {"method": "bcl", "teacher.kind": "none"}, published="bcl"),
        Row("bcl, frozen teacher", {"method": "bcl", "teacher.kind": "frozen"}, against="bcl"),
        Row("gml, momentum encoder", {"method": "gml", **_MOMENTUM}),
        Row("gml, frozen teacher", {"method": "gml", "teacher.kind": "frozen"}, "gml, momentum encoder", "gml"),
    ]


def teachers(base: TrainConfig) -> list[Row]:
    """GML under four networks, the teacher trained for as many epochs as the student."""
    small = resolved(base.backbone).startswith(("cifar_resnet", "small_net"))
    networks = _CIFAR_TEACHERS if small else _PHOTO_TEACHERS
    usual = {"method": "gml", "teacher.kind": "frozen", "teacher.epochs": resolved(base.epochs)}
    return [Row(f"teacher {network}", {**usual, "teacher.backbone": network}) for network in networks]


def temperatures(base: TrainConfig) -> list[Row]:
    """GML with a learned temperature from several starts, and with fixed ones; the data's own start comes first."""
    usual = resolved(base.loss.temperature)
    starts = [usual, *(start for start in _STARTS if start != usual)]

    def row(value: float, learned: bool) -> Row:
        options = {"method": "gml", "loss.temperature": value, "loss.learn_temperature": learned}
        return Row(f"learned from {value:g}" if learned else f"fixed at {value:g}", options)

    first = replace(row(usual, True), published="gml")
    return [first, *(row(start, True) for start in starts[1:]), *(row(value, False) for value in _FIXED)]


def queues(base: TrainConfig) -> list[Row]:
    """GML at every capacity and minimum; the data's own capacity and a minimum of 2 come first."""
    usual = resolved(base.queue.capacity)
    pairs = [(round(usual * factor), minimum) for factor in _CAPACITY_FACTORS for minimum in _MINIMUMS]
    pairs.sort(key=lambda pair: pair != (usual, 2))
    return [
        Row(
            f"capacity {capacity}, minimum {minimum}",
            {"method": "gml", "queue.capacity": capacity, "queue.min_per_class": minimum},
            published="gml" if (capacity, minimum) == (usual, 2) else "",
        )
        for capacity, minimum in pairs
    ]


def switches(base: TrainConfig) -> list[Row]:
    """GML, and GML with one option turned at a time."""
    distils = bool(base.loss.distillation_weight)
    turned: dict[str, dict[str, Any]] = {
        "prior strength 0": {"loss.prior_strength": 0.0},
        "one FIFO queue": {"queue.kind": "fifo"},
        "momentum encoder": _MOMENTUM,
        "sum over a class's keys": {"loss.class_pooling": "sum"},
        "own key out": {"loss.exclude_own_key": True},
        "fixed temperature": {"loss.learn_temperature": False},
        "no distillation" if distils else "distillation": {"loss.distillation_weight": 0.0 if distils else 1.0},
        # Features are compared as they are, so the teacher must have as many as the student.
        "no projection": {"queue.project": False, "teacher.backbone": resolved(base.backbone)},
    }
    ways = (Row(name, {"method": "gml", **options}) for name, options in turned.items())
    return [Row("gml", {"method": "gml"}, published="gml"), *ways]


def clip(base: TrainConfig) -> list[Row]:
    """Three methods with adapters and with all weights, these at a rate that CLIP survives; a linear probe."""
    whole: dict[str, Any] = {
        "tune.kind": "full",
        "tune.encoder_lr": 0.03,
        "tune.lr_decay": 0.7,
        "optimiser.name": "adamw",
    }
    whole |= {"optimiser.lr": 1e-3, "optimiser.weight_decay": 0.05}
    ways: dict[str, dict[str, Any]] = {"adapters": {"tune.kind": "adapter"}, "all weights": whole}
    methods = ("gml", "logit_adjustment", "cross_entropy")
    rows = [
        Row(f"{method}, {way}", {"method": method, **options}) for way, options in ways.items() for method in methods
    ]
    return [*rows, Row("logit_adjustment, linear probe", {"method": "logit_adjustment", "tune.kind": "frozen"})]


def plus(base: TrainConfig) -> list[Row]:
    """GML, GML with each thing that is known to help other methods, and with all of them."""
    cifar = base.views.classifier == "cifar"
    views = {f"views.{view}": "cifar_trivial" for view in ("classifier", "query", "key")}
    helps: dict[str, dict[str, Any]] = {
        "average of weights": {"optimiser.ema": 0.999},
        "mixup": {"loss.mixup": 0.2},
        "sharpness-aware steps": {"optimiser.sharpness": 0.05},
        **({} if base.optimiser.schedule == "cosine" else {"cosine schedule": {"optimiser.schedule": "cosine"}}),
        **({"TrivialAugment": views} if cifar else {}),
    }
    every = {key: value for options in helps.values() for key, value in options.items()}
    ways = [Row(f"gml + {name}", {"method": "gml", **options}) for name, options in helps.items()]
    return [Row("gml", {"method": "gml"}), *ways, Row("gml + all of these", {"method": "gml", **every})]
