"""Every option of a training run, as frozen dataclasses.

``None`` means "chosen from the data": :func:`longtail.training.defaults.resolve` fills it in, prints what it chose, and
the run's ``config.yaml`` holds the result. On the command line a field of a group is a dotted option
(``--loss.temperature 0.07``). This module imports nothing heavy, so that ``--help`` answers at once.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from longtail.errors import UserError

_T = TypeVar("_T")


@dataclass(frozen=True)
class DataOptions:
    """Where images come from.

    Attributes:
        profile: long-tailed profile that ``imbalance`` cuts: exponential (Cao et al. 2019) or step (Buda et al. 2018).
        root: folder that holds (or receives) the files of a published data set such as CIFAR.
    """

    profile: Literal["exponential", "step"] = "exponential"
    root: str | None = None


@dataclass(frozen=True)
class ViewOptions:
    """Augmentation recipe of each view (``none light shift cifar tiny``); default: what fits the images.

    Attributes:
        classifier: the view that the classifier is trained on.
        query: the student's view for the contrast.
        key: the teacher's view for the queue.
    """

    classifier: str | None = None
    query: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class LossOptions:
    """Losses and their weights.

    Attributes:
        temperature: (initial) temperature of the Gaussian kernel.
        learn_temperature: learn log(temperature) on a copy of the loss without a sample's own keys.
        prior_strength: scales log p(c) in every loss that has it: 1 = the paper, 0 = no prior.
        exclude_own_key: leave a sample's own keys out of the main copy of the contrast too.
        classifier_weight: weight of L_cls.
        contrast_weight: weight of L_GML.
        distillation_weight: weight of the distillation term; 0 leaves it, and its teacher pass, out.
        distillation_temperature: both logits are divided by it.
        scale: scale of the cosine classifier (inverse temperature of its softmax).
    """

    temperature: float | None = None
    learn_temperature: bool = True
    prior_strength: float = 1.0
    exclude_own_key: bool = False
    classifier_weight: float = 1.0
    contrast_weight: float = 1.0
    distillation_weight: float | None = None
    distillation_temperature: float = 4.0
    scale: float = 30.0


@dataclass(frozen=True)
class QueueOptions:
    """The class-wise queue of contrast samples.

    Attributes:
        capacity: slots over all classes (K of Eq. 6).
        min_per_class: least slots a class gets (K_min of Eq. 6).
        projection_dim: width of the space in which queries and keys are compared.
    """

    capacity: int | None = None
    min_per_class: int | None = None
    projection_dim: int | None = None


@dataclass(frozen=True)
class TeacherOptions:
    """Who fills the queue.

    Attributes:
        kind: ``frozen`` (trained beforehand, the paper) or ``momentum`` (a moving average of the student).
        run: folder of a finished run to use as the frozen teacher instead of training one.
        backbone: encoder of the teacher that is trained beforehand.
        epochs: epochs of the teacher that is trained beforehand.
        momentum: of the moving average, for ``kind momentum``.
    """

    kind: Literal["frozen", "momentum"] = "frozen"
    run: str | None = None
    backbone: str | None = None
    epochs: int | None = None
    momentum: float = 0.999


@dataclass(frozen=True)
class OptimiserOptions:
    """Optimiser and schedule, the same for every stage.

    Attributes:
        name: ``sgd`` or ``adamw``.
        lr: base learning rate.
        momentum: of SGD.
        weight_decay: on everything but the temperature.
        schedule: ``cosine`` to zero, ``step`` (times ``decay`` at each milestone) or ``constant``.
        warmup: share of the stage's steps with a linear warm-up from zero to ``lr``, never above it.
        milestones: for ``step``, as shares of the stage's epochs.
        decay: for ``step``, the factor at each milestone.
        clip_norm: largest L2 norm of the gradient; none = no clipping.
        ema: decay of a moving average of the weights, which is then what is evaluated and deployed; none = off.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    schedule: Literal["cosine", "step", "constant"] | None = None
    warmup: float = 0.05
    milestones: list[float] = field(default_factory=lambda: [0.8, 0.9])
    decay: float = 0.1
    clip_norm: float | None = None
    ema: float | None = None


@dataclass(frozen=True)
class CheckpointOptions:
    """When the state for ``--resume`` is written (always at the end of an epoch that is due, and on Ctrl-C).

    Attributes:
        every_seconds: least time between two; 0 = every epoch.
        bad_steps: non-finite steps in a row that end the run.
    """

    every_seconds: float = 30.0
    bad_steps: int = 10


@dataclass(frozen=True)
class TrainConfig:
    """A whole run.

    Attributes:
        data: a name (``digits-lt``, ``cifar100-lt``, ...) or a path (``.npz``).
        method: ``gml``, ``logit_adjustment`` or ``cross_entropy``.
        backbone: encoder name.
        epochs: passes over the training images.
        batch_size: images a step.
        imbalance: largest over smallest class that the training set is cut to; none = as the data is.
        seed: of everything random.
        out: run folder; default ``runs/DATA-METHOD-seedN``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: ``float32``, ``bfloat16`` (autocast), or ``auto``.
        evaluate_every: epochs between looks at the test set, for the curve only (it selects nothing); 0 = at the end.
        views, loss, queue, teacher, optimiser, checkpoint: groups of options.
    """

    data: str = ""
    method: str = "gml"
    backbone: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    imbalance: float | None = None
    seed: int = 0
    out: str | None = None
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    evaluate_every: int = 0
    source: DataOptions = field(default_factory=DataOptions)
    views: ViewOptions = field(default_factory=ViewOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    queue: QueueOptions = field(default_factory=QueueOptions)
    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    optimiser: OptimiserOptions = field(default_factory=OptimiserOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)

    def __post_init__(self) -> None:
        check(self)


_POSITIVE = (
    "epochs batch_size loss.temperature loss.scale loss.distillation_temperature queue.capacity queue.min_per_class "
    "queue.projection_dim teacher.epochs optimiser.lr optimiser.decay optimiser.clip_norm checkpoint.bad_steps"
)
_NOT_NEGATIVE = (
    "evaluate_every loss.prior_strength loss.classifier_weight loss.contrast_weight "
    "loss.distillation_weight optimiser.weight_decay checkpoint.every_seconds"
)
_DEFAULTS: dict[str, Any] = {}
_SHARE = "teacher.momentum optimiser.momentum optimiser.ema optimiser.warmup"


def get_option(config: TrainConfig, key: str) -> Any:
    """Return the option with the dotted name ``key``."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def check(config: TrainConfig) -> None:
    """Raise :class:`UserError` for the first option whose value cannot be meant."""

    def refuse(key: str, need: str) -> None:
        raise UserError(f"--{key} must be {need}, got {get_option(config, key)}.")

    def number(key: str) -> float:
        value = get_option(config, key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            refuse(key, "a finite number")
        return float(value)

    for key, value in flatten(config).items():
        if value == "" and key != "data":
            refuse(key, "a text that is not empty")
    for key, default in _DEFAULTS.items():
        if default is not None and get_option(config, key) is None:
            refuse(key, f"given (default {default})")
    for key in _POSITIVE.split():
        if get_option(config, key) is not None and number(key) <= 0:
            refuse(key, "above 0")
    for key in _NOT_NEGATIVE.split():
        if get_option(config, key) is not None and number(key) < 0:
            refuse(key, "0 or above")
    for key in _SHARE.split():
        if get_option(config, key) is not None and not 0 <= number(key) < 1:
            refuse(key, "at least 0 and below 1")
    if config.imbalance is not None and number("imbalance") < 1:
        refuse("imbalance", "1 or above (largest over smallest class)")
    if config.seed < 0:
        refuse("seed", "0 or above")
    if config.optimiser.lr is not None and config.optimiser.lr > 1000:
        refuse("optimiser.lr", "at most 1000")
    if any(not 0 < share < 1 for share in config.optimiser.milestones):
        refuse("optimiser.milestones", "shares of the epochs, between 0 and 1")


def resolved(value: _T | None) -> _T:
    """Return an option that must have been filled in from the data by now."""
    if value is None:
        raise ValueError("an option is still open; longtail.training.defaults.resolve fills it in")
    return value


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the options as ``{dotted name: value}``."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat.update(flatten(value, f"{prefix}{item.name}."))
        else:
            flat[prefix + item.name] = value
    return flat


# Filled in last: check() runs for the very instance that it is read off.
_DEFAULTS.update(flatten(TrainConfig()))


def replace_options(config: TrainConfig, changes: dict[str, Any]) -> TrainConfig:
    """Return a copy with the options named by dotted keys replaced."""
    groups: dict[str, Any] = {}
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        if rest:
            group = groups.get(head, getattr(config, head))
            groups[head] = dataclasses.replace(group, **{rest: value})
        else:
            groups[head] = value
    return dataclasses.replace(config, **groups)
