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
    """Where images and labels come from, and how they are split.

    Attributes:
        profile: long-tailed profile that ``imbalance`` cuts: exponential (Cao et al. 2019) or step (Buda et al. 2018).
        test: a second folder, manifest or split list that holds the test images.
        test_share: share of each class that is held out for the test where the data has no test split.
        split_seed: which images are held out, and how folds are dealt; not moved by ``seed``.
        repeats: how often ``folds`` are dealt anew.
        fold: the one fold that this run tests on (set by ``folds``).
        path_column: of a manifest: the image file, relative to the manifest or to ``root``.
        label_column: of a manifest: the class.
        split_column: of a manifest: ``train`` or ``test``, if it has such a column.
        group_column: of a manifest: what a split must not tear apart (patient, site, burst), if it has such a column.
        group_pattern: regular expression whose first group, found in a path, names the image's group.
        labels: whether labels are class names, class numbers (0..C-1 or 1..C), or whichever they look like.
        unknown_labels: what to do with test images of a class that has no training image.
        check: look at the files before training: ``full`` decodes every one (finds cut-off files and duplicates; two
            minutes for 100,000 photographs on two cores), ``sample`` reads the size of 2000 and trusts the others.
        mean: per-channel mean that normalises, on 0..1; default: the encoder's own, or the training pixels'.
        std: per-channel standard deviation that normalises, likewise.
    """

    profile: Literal["exponential", "step"] = "exponential"
    test: str | None = None
    test_share: float = 0.2
    split_seed: int = 0
    repeats: int = 1
    fold: int | None = None
    path_column: str = "path"
    label_column: str = "label"
    split_column: str = "split"
    group_column: str = "group"
    group_pattern: str | None = None
    labels: Literal["auto", "names", "numbers"] = "auto"
    unknown_labels: Literal["error", "skip"] = "error"
    check: Literal["full", "sample"] = "full"
    mean: list[float] | None = None
    std: list[float] | None = None


@dataclass(frozen=True)
class LoadingOptions:
    """How image files become batches.

    Attributes:
        resident: decode every file once and keep the pixels in memory (small images), or decode anew for every batch.
        workers: processes that decode; changes nothing but the speed.
        prefetch: batches that each worker prepares ahead.
        resize: length of the shorter side before the centre crop, where nothing is random.
        interpolation: of every resize, ``bilinear`` or ``bicubic``.
    """

    resident: bool | None = None
    workers: int | None = None
    prefetch: int = 4
    resize: int | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None


@dataclass(frozen=True)
class ViewOptions:
    """Augmentation recipe of each view (see ``longtail.data.views``); default: what fits the images.

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
        pretrained: weights that the teacher starts from, as ``pretrained``.
        epochs: epochs of the teacher that is trained beforehand.
        momentum: of the moving average, for ``kind momentum``.
    """

    kind: Literal["frozen", "momentum"] = "frozen"
    run: str | None = None
    backbone: str | None = None
    pretrained: str | None = None
    epochs: int | None = None
    momentum: float = 0.999


@dataclass(frozen=True)
class OptimiserOptions:
    """Optimiser and schedule, the same for every stage.

    Attributes:
        name: ``sgd`` or ``adamw``; default: sgd for encoders with batch normalisation, adamw for the others.
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

    name: Literal["sgd", "adamw"] | None = None
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
        data: a name (``digits-lt``, ``cifar100-lt``, ...), a folder of images, a manifest (``.csv``, ``.parquet``), a
            split list (``.txt``) or arrays (``.npz``).
        root: folder that paths in a manifest or list are relative to, or that holds a published data set.
        method: ``gml``, ``logit_adjustment`` or ``cross_entropy``.
        backbone: encoder name: one of this package, or any of timm.
        pretrained: weights to start from: ``auto`` (timm's, if they can be had), ``none``, ``hub``, the name of other
            weights of the same encoder, a file, or the folder of a run.
        image_size: side in pixels that images are brought to.
        epochs: passes over the training images.
        batch_size: images a step.
        imbalance: largest over smallest class that the training set is cut to; none = as the data is.
        folds: test on each of this many parts of the data in turn, for data whose rare classes have few images.
        group_edges: classes with more training images than the first are "many", with fewer than the second "few".
        on_bad_image: what to do with files that cannot be read: ``error`` or ``skip``.
        seed: of everything random.
        out: run folder; default ``runs/DATA-METHOD-seedN``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: ``float32``, ``bfloat16`` (autocast), or ``auto``.
        evaluate_every: epochs between looks at the test set, for the curve only (it selects nothing); 0 = at the end.
        source, loading, views, loss, queue, teacher, optimiser, checkpoint: groups of options.
    """

    data: str = ""
    root: str | None = None
    method: str = "gml"
    backbone: str | None = None
    pretrained: str | None = None
    image_size: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    imbalance: float | None = None
    folds: int | None = None
    group_edges: list[int] = field(default_factory=lambda: [100, 20])
    on_bad_image: Literal["error", "skip"] = "error"
    seed: int = 0
    out: str | None = None
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    evaluate_every: int = 0
    source: DataOptions = field(default_factory=DataOptions)
    loading: LoadingOptions = field(default_factory=LoadingOptions)
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
    "queue.projection_dim teacher.epochs optimiser.lr optimiser.decay optimiser.clip_norm checkpoint.bad_steps "
    "image_size source.repeats loading.prefetch loading.resize"
)
_NOT_NEGATIVE = (
    "evaluate_every loss.prior_strength loss.classifier_weight loss.contrast_weight "
    "loss.distillation_weight optimiser.weight_decay checkpoint.every_seconds source.split_seed source.fold "
    "loading.workers"
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
    if config.folds is not None and config.folds < 2:
        refuse("folds", "2 or more")
    if not 0 < config.source.test_share < 1:
        refuse("source.test_share", "between 0 and 1")
    many, few = (*config.group_edges, 0, 0)[:2]
    if len(config.group_edges) != 2 or not many >= few >= 0:
        refuse("group_edges", "two whole numbers, the larger first, such as [100, 20]")
    if config.source.mean is not None and not all(0 <= value <= 1 for value in config.source.mean):
        refuse("source.mean", "between 0 and 1 in every channel (divide by 255)")
    if config.source.std is not None and not all(0 < value <= 1 for value in config.source.std):
        refuse("source.std", "above 0 and at most 1 in every channel (divide by 255)")
    if config.folds is None and (config.source.fold is not None or config.source.repeats != 1):
        option = "source.repeats" if config.source.repeats != 1 else "source.fold"
        raise UserError(f"--{option} says how --folds deal; add --folds K or leave it out.")
    if config.folds is not None and (config.source.fold or 0) >= config.folds * config.source.repeats:
        refuse("source.fold", f"below {config.folds * config.source.repeats} (folds times repeats)")
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
