"""The groups of options of a training run, as frozen dataclasses; ``config.py`` puts them together and checks them.

``None`` means "chosen from the data". This module imports nothing heavy, so that ``--help`` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class DataOptions:
    """Where images and labels come from, and how they are split.

    Attributes:
        profile: long-tailed profile that ``imbalance`` cuts: exponential (Cao et al. 2019) or step (Buda et al. 2018).
        test: a second folder, manifest, split list, file of features or pattern of tar shards that holds the test
            images.
        test_share: share of each class that is held out for the test where the data has no test split.
        split_seed: which images are held out, and how folds are dealt; not moved by ``seed``.
        repeats: how often ``folds`` are dealt anew.
        fold: the one fold that this run tests on (set by ``folds``).
        path_column: of a manifest: the image file, relative to the manifest or to ``root``; of Parquet or a hub set
            that holds images: their column (``path``: the one there is).
        label_column: of a manifest, or of JSON in tar shards: the class; of Parquet or a hub set: the same (``label``:
            that, or what there is).
        split_column: of a manifest: ``train`` or ``test``, if it has such a column.
        group_column: of a manifest, or of JSON in tar shards: what a split must not tear apart (patient, site, burst),
            if it is there.
        group_pattern: regular expression whose first group, found in a path, names the image's group.
        labels: whether labels are class names, class numbers (0..C-1 or 1..C), or whichever they look like.
        unknown_labels: what to do with test images of a class that has no training image.
        check: look at the files before training: ``full`` decodes every one (finds cut-off files and duplicates; once,
            as its findings are kept), ``sample`` reads the size of 2000 or more, and trusts that the others are there
            and whole.
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
class StartOptions:
    """What a classifier starts from, beside ``pretrained`` for its encoder.

    Attributes:
        head: ``text`` (what the encoder's text tower says of the classes: the zero-shot classifier; open_clip encoders
            only) or ``random``; default: ``text`` where the encoder's weights have a text tower, else ``random``.
        prompts: sentences about a class, for ``text``: ``simple``, ``ensemble``, or a file of templates or of sentences
            for each class (see ``longtail.models.prompts``).
    """

    head: Literal["random", "text"] | None = None
    prompts: str = "ensemble"


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
        contrast_weight: weight of the contrastive term (L_GML, or the method's own).
        distillation_weight: weight of the distillation term; 0 leaves it, and its teacher pass, out.
        distillation_temperature: both logits are divided by it.
        scale: scale of the cosine classifier (inverse temperature of its softmax).
        post_hoc_strength: tau of post-hoc logit adjustment: tau log p(c) is taken off the logits after training.
        class_weights: weights of the classes in the loss: ``none``, ``inverse`` (of the frequency) or ``effective``
            (number of samples, Cui et al. 2019); default: the method's own.
        effective_beta: of the effective number of samples, at least 0 and below 1.
        deferred_from: share of the epochs after which class weights begin (deferred re-weighting).
        focal_gamma: focusing exponent of the focal loss.
        max_margin: largest margin of LDAM, that of the smallest class.
        class_pooling: whether the density of a class is the ``mean`` (the paper) or the ``sum`` over its keys.
        supcon_log: where the log of supervised contrast stands: ``inside`` the mean over positives (Khosla 2020, Eq. 2,
            their choice) or ``outside`` (Eq. 3, the limit of GML without a prior).
        paco_alpha: weight that PaCo gives a contrast sample of the label, beside 1 for the label's centre.
        mixup: alpha of the Beta distribution that mixes images of the classifier view; 0 = off.
    """

    temperature: float | None = None
    learn_temperature: bool = True
    prior_strength: float = 1.0
    exclude_own_key: bool = False
    classifier_weight: float = 1.0
    contrast_weight: float | None = None
    distillation_weight: float | None = None
    distillation_temperature: float = 4.0
    scale: float = 30.0
    post_hoc_strength: float = 0.0
    class_weights: Literal["none", "inverse", "effective"] | None = None
    effective_beta: float = 0.9999
    deferred_from: float | None = None
    focal_gamma: float = 2.0
    max_margin: float = 0.5
    class_pooling: Literal["mean", "sum"] = "mean"
    supcon_log: Literal["inside", "outside"] = "inside"
    paco_alpha: float = 0.05
    mixup: float = 0.0


@dataclass(frozen=True)
class QueueOptions:
    """The queue of contrast samples.

    Attributes:
        kind: ``class_wise`` (a ring buffer a class, the paper) or ``fifo`` (one for all, as MoCo's).
        capacity: slots over all classes (K of Eq. 6).
        min_per_class: least slots a class gets (K_min of Eq. 6).
        projection_dim: width of the space in which queries and keys are compared.
        project: compare them there; false = compare the features themselves (student and teacher of the same width).
        sharded: where several processes train, each holds and projects the slots of some classes only, with the same
            loss and gradients; for very many classes. Of one process it changes nothing.
        fresh_share: share of the slots whose keys are projected anew at each step, and carry gradient: those written
            since, then the oldest (at least a batch); the others keep the keys they have. 1 = all, as published.
    """

    kind: Literal["class_wise", "fifo"] = "class_wise"
    capacity: int | None = None
    min_per_class: int | None = None
    projection_dim: int | None = None
    project: bool = True
    sharded: bool = False
    fresh_share: float = 1.0


@dataclass(frozen=True)
class TeacherOptions:
    """Who fills the queue.

    Attributes:
        kind: ``frozen`` (trained beforehand, GML's default), ``pretrained`` (its pretrained weights as they are, which
            saves that training; GML's default on frozen features), ``momentum`` (a moving average of the student) or
            ``none`` (the student itself, where a method has no queue); default: the method's own.
        run: folder of a finished run to use as the frozen teacher instead of training one.
        backbone: encoder of the teacher that is trained beforehand.
        pretrained: weights that the teacher starts from, as ``pretrained``.
        epochs: epochs of the teacher that is trained beforehand.
        momentum: of the moving average, for ``kind momentum``.
        cache: augmentations of every image whose features the frozen teacher computes once, keys being drawn from them;
            0 = it sees a fresh one at every step, as published (slower).
    """

    kind: Literal["frozen", "pretrained", "momentum", "none"] | None = None
    run: str | None = None
    backbone: str | None = None
    pretrained: str | None = None
    epochs: int | None = None
    momentum: float = 0.999
    cache: int = 0


@dataclass(frozen=True)
class DecoupledOptions:
    """Methods that train a representation first and a classifier on it afterwards (Kang et al. 2020).

    Attributes:
        run: folder of a finished run whose encoder is the representation, instead of training one.
        epochs: of the classifier's stage; default: a ninth of the epochs, as 10 after 90, at least 5; for ``infonce``
            and ``supcon``, which train no head beside the encoder, as many as ``epochs``.
        tau: exponent of tau-normalisation: class weights are divided by their norm to the power of tau.
    """

    run: str | None = None
    epochs: int | None = None
    tau: float = 1.0


@dataclass(frozen=True)
class TuneOptions:
    """How much of a pretrained encoder is trained; heads and projections always are.

    Of every kind but ``full`` the encoder stays in eval mode: no dropout, and batch normalisation keeps the statistics
    that it came with. A teacher that the run trains beforehand is tuned likewise.

    Attributes:
        kind: ``full`` (all weights), ``frozen`` (none: a linear probe), ``lora`` (low-rank updates of linear maps, or
            of convolutions, Hu et al. 2022), ``adapter`` (a bottleneck beside the MLP of every transformer block,
            AdaptFormer, Chen et al. 2022), ``prompt`` (tokens of its own in every block, VPT-deep, Jia et al. 2022),
            ``bias`` (biases only, BitFit, Ben Zaken et al. 2022) or ``norm`` (scales and shifts of normalisation
            layers only).
        rank: of ``lora`` (default 8), or width of the bottleneck of ``adapter`` (default: 2^floor(log2(C / (2 L))) for
            C classes and L blocks, at least 1: as many weights as a linear classifier at most; LIFT, Shi et al. 2024).
        prompts: tokens a block, for ``prompt``.
        lr_decay: factor on the learning rate a layer, from the head downwards; 1 = off.
        encoder_lr: factor on the learning rate of the encoder, beside that of heads and projections; default: 1, and
            0.01 where all weights of a CLIP tower are trained.
    """

    kind: Literal["full", "frozen", "lora", "adapter", "prompt", "bias", "norm"] = "full"
    rank: int | None = None
    prompts: int = 10
    lr_decay: float = 1.0
    encoder_lr: float | None = None


@dataclass(frozen=True)
class OptimiserOptions:
    """Optimiser and schedule, the same for every stage.

    Attributes:
        name: ``sgd`` or ``adamw``; default: sgd for encoders with batch normalisation, adamw for the others.
        lr: base learning rate.
        momentum: of SGD.
        weight_decay: on everything but the temperature.
        schedule: ``cosine`` to zero, ``poly`` to zero (power 0.9; the default for segmentation), ``step`` (times
            ``decay`` at each milestone) or ``constant``.
        warmup: share of the stage's steps with a linear warm-up from zero to ``lr``, never above it.
        milestones: for ``step``, as shares of the stage's epochs.
        decay: for ``step``, the factor at each milestone.
        clip_norm: largest L2 norm of the gradient; none = no clipping.
        ema: decay of a moving average of the weights, which is then what is evaluated and deployed; none = off.
        sharpness: radius of sharpness-aware steps (SAM, Foret et al. 2021), which cost twice as much; 0 = off.
        accumulate: micro-batches that a step's batch is cut into, one after the other through the student, to save
            memory; batch normalisation, and contrasts within a batch, see one of them at a time.
        shard: deal weights, gradients and optimiser state of the encoders, the teacher's included, to the processes
            that train together (FSDP2), for encoders that do not fit a device; nothing changes in one process.
    """

    name: Literal["sgd", "adamw"] | None = None
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    schedule: Literal["cosine", "poly", "step", "constant"] | None = None
    warmup: float = 0.05
    milestones: list[float] = field(default_factory=lambda: [0.8, 0.9])
    decay: float = 0.1
    clip_norm: float | None = None
    ema: float | None = None
    sharpness: float = 0.0
    accumulate: int = 1
    shard: bool = False


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
class TrackingOptions:
    """Where every epoch's figures go beside the run's folder (``pip install 'longtail[tracking]'``).

    Attributes:
        to: ``tensorboard`` (its files lie in the run's folder) or ``wandb`` (Weights & Biases).
        project: name of the project at Weights & Biases.
    """

    to: Literal["none", "tensorboard", "wandb"] = "none"
    project: str = "longtail"
