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
from longtail.option_groups import (
    CheckpointOptions,
    DataOptions,
    DecoupledOptions,
    LoadingOptions,
    LossOptions,
    OptimiserOptions,
    QueueOptions,
    StartOptions,
    TeacherOptions,
    TrackingOptions,
    TuneOptions,
    ViewOptions,
)
from longtail.segmentation_options import SegmentationOptions

_T = TypeVar("_T")


@dataclass(frozen=True)
class TrainConfig:
    """A whole run.

    Attributes:
        data: a name (``digits-lt``, ``cifar100-lt``, ...), a folder of images, tar shards (a file, folder or
            pattern in quotation marks), a manifest (``.csv``, ``.parquet``), a split list (``.txt``), arrays
            (``.npz``), Parquet that holds images or a hub set (``hf:owner/name``).
        root: folder that paths in a manifest or list are relative to, or that holds a published data set or
            what is kept of a hub set.
        task: ``classification`` (a class an image) or ``segmentation`` (a class a pixel: images with masks).
        method: name of what is trained, of those that ``docs/methods.md`` lists.
        backbone: encoder name: one of this package, any of timm, or ``open_clip:`` and an architecture of open_clip.
        pretrained: weights to start from: ``auto`` (timm's, if they can be had; open_clip's), ``none``, ``hub``, the
            name of other weights of the same encoder, a file, or the folder of a run.
        image_size: side in pixels that images are brought to.
        epochs: passes over the training images.
        batch_size: images a step.
        sampler: how often an epoch draws the images of a class, in the last stage: ``instance`` (each image once),
            ``class_balanced`` (each class equally often), ``square_root`` (in proportion to the root of its size) or
            ``progressive`` (from the first to the second over the epochs); default: the method's own.
        imbalance: largest over smallest class that the training set is cut to; none = as the data is.
        folds: test on each of this many parts of the data in turn, for data whose rare classes have few images.
        val_fraction: share of each class's training images that is held out to choose the epoch and to calibrate on; at
            least one image, never a class's last training image; 0 = none.
        select: weights that are kept: of the ``last`` epoch, or of the ``best`` on the validation images (highest
            balanced accuracy); default: ``best`` if there are validation images.
        group_edges: classes with more training images than the first are "many", with fewer than the second "few".
        on_bad_image: what to do with files that cannot be read: ``error`` or ``skip``.
        seed: of everything random.
        out: run folder; default ``runs/DATA-METHOD-seedN``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: ``float32``, ``bfloat16`` (autocast), ``fastest`` (whichever is found faster here by timing a few
            steps) or ``auto`` (float32, so that the same command gives the same run everywhere).
        capture: record the training step once and replay it where the device can (CUDA graphs); changes only the speed.
        evaluate_every: epochs between looks at the test set, for the curve only (it selects nothing), and at the
            validation images; 0 = at the test set at the end only, at the validation images after every epoch.
        source, loading, start, views, loss, queue, teacher, decoupled, tune, optimiser, checkpoint, tracking,
            segmentation: groups of options.
    """

    data: str = ""
    root: str | None = None
    task: Literal["classification", "segmentation"] = "classification"
    method: str = "gml"
    backbone: str | None = None
    pretrained: str | None = None
    image_size: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    sampler: Literal["instance", "class_balanced", "square_root", "progressive"] | None = None
    imbalance: float | None = None
    folds: int | None = None
    val_fraction: float = 0.0
    select: Literal["last", "best"] | None = None
    group_edges: list[int] = field(default_factory=lambda: [100, 20])
    on_bad_image: Literal["error", "skip"] = "error"
    seed: int = 0
    out: str | None = None
    device: str = "auto"
    precision: Literal["auto", "fastest", "float32", "bfloat16"] = "auto"
    capture: bool = True
    evaluate_every: int = 0
    source: DataOptions = field(default_factory=DataOptions)
    loading: LoadingOptions = field(default_factory=LoadingOptions)
    start: StartOptions = field(default_factory=StartOptions)
    views: ViewOptions = field(default_factory=ViewOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    queue: QueueOptions = field(default_factory=QueueOptions)
    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    decoupled: DecoupledOptions = field(default_factory=DecoupledOptions)
    tune: TuneOptions = field(default_factory=TuneOptions)
    optimiser: OptimiserOptions = field(default_factory=OptimiserOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    tracking: TrackingOptions = field(default_factory=TrackingOptions)
    segmentation: SegmentationOptions = field(default_factory=SegmentationOptions)

    def __post_init__(self) -> None:
        check(self)


_POSITIVE = (
    "epochs batch_size loss.temperature loss.scale loss.distillation_temperature queue.capacity queue.min_per_class "
    "queue.projection_dim teacher.epochs optimiser.lr optimiser.decay optimiser.clip_norm optimiser.accumulate "
    "checkpoint.bad_steps image_size source.repeats loading.prefetch loading.resize decoupled.epochs tune.rank "
    "tune.prompts tune.lr_decay tune.encoder_lr segmentation.width segmentation.queries "
    "segmentation.queries_per_class segmentation.keys_per_class segmentation.queue_share"
)
_NOT_NEGATIVE = (
    "evaluate_every loss.prior_strength loss.classifier_weight loss.contrast_weight "
    "loss.distillation_weight optimiser.weight_decay checkpoint.every_seconds source.split_seed source.fold "
    "loading.workers teacher.cache loss.post_hoc_strength loss.focal_gamma loss.max_margin loss.paco_alpha loss.mixup "
    "decoupled.tau optimiser.sharpness segmentation.region_weight segmentation.overlap_weight"
)
_DEFAULTS: dict[str, Any] = {}
_SHARE = (
    "val_fraction teacher.momentum optimiser.momentum optimiser.ema optimiser.warmup loss.effective_beta "
    "loss.deferred_from"
)


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
    if config.select == "best" and not config.val_fraction:
        raise UserError(
            "--select best chooses the epoch on validation images, never on the test set; hold some out with "
            "--val_fraction 0.2, or leave it out."
        )
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
    if not 0 < number("queue.fresh_share") <= 1:
        refuse("queue.fresh_share", "above 0 and at most 1")
    if config.optimiser.lr is not None and config.optimiser.lr > 1000:
        refuse("optimiser.lr", "at most 1000")
    if any(not 0 < share < 1 for share in config.optimiser.milestones):
        refuse("optimiser.milestones", "shares of the epochs, between 0 and 1")
    _check_tune(config.tune)


def _check_tune(tune: TuneOptions) -> None:
    """Raise :class:`UserError` for an option of tuning that its kind has no use for."""
    if tune.lr_decay > 1:
        raise UserError(f"--tune.lr_decay must be at most 1 (lower layers learn more slowly), got {tune.lr_decay}.")
    uses = {
        "rank": ("lora", "adapter"),
        "prompts": ("prompt",),
        "lr_decay": ("full", "lora", "adapter", "prompt", "bias", "norm"),
        "encoder_lr": ("full", "lora", "adapter", "prompt", "bias", "norm"),
    }
    for name, kinds in uses.items():
        if getattr(tune, name) != getattr(TuneOptions(), name) and tune.kind not in kinds:
            raise UserError(
                f"--tune.{name} {getattr(tune, name)} means nothing for --tune.kind {tune.kind}; leave it out, or give "
                f"--tune.kind {' or '.join(kinds)}."
            )


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
