"""The validation set: images held out of the training set to choose and calibrate on, so that the test set need not."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from longtail.data.arrays import pixel_statistics
from longtail.data.feature_files import with_statistics
from longtail.data.feature_set import FeatureSet, feature_keys
from longtail.data.image_set import DataSplits, ImageFiles, ImageSet, LabelledImages
from longtail.data.keyed import derive_seed
from longtail.data.splits import path_keys, pixel_keys, spare, tie_duplicates
from longtail.errors import UserError, counted
from longtail.option_groups import DataOptions


def hold_out_validation(splits: DataSplits, fraction: float, source: DataOptions) -> DataSplits:
    """Return ``splits`` with a validation set taken out of the training set of any source.

    Of a class with n >= 2 training images, ``round(fraction * n)`` are taken, but at least one and at most n - 1.
    Groups and images of the same pixels stay together, as far as the classes allow (see
    :func:`longtail.data.splits.hold_out`). Which ones hangs on ``source.split_seed``, on the fold, and on each image's
    path (files) or pixels (arrays), not on the seed of the run. The statistics of arrays become those of the images
    that are left, unless they were given (published ones).

    Args:
        splits: training and test set, checked.
        fraction: of each class, between 0 and 1.
        source: how images are split.

    Raises:
        UserError: no class can spare an image.
    """
    train = splits.train
    keys, groups = _keys_and_groups(train, splits.train_groups)
    # Each fold holds out others: an image is not kept from training in all of them.
    seed = derive_seed(source.split_seed, "validation", source.fold or 0)
    held = spare(train.labels, keys, fraction, seed, groups)
    if not held.any():
        why = "no class has more than one image" if groups is None else "every group holds all images of some class"
        raise UserError(
            f"--val_fraction {fraction:g}: nothing can be held out without leaving a class untrained, because {why}; "
            "add images, or leave it out."
        )
    kept = (~held).nonzero().squeeze(1)
    validation = train.subset(held.nonzero().squeeze(1))
    if isinstance(train, ImageSet) and (splits.mean, splits.std) == pixel_statistics(train.images):
        mean, std = pixel_statistics(train.images[kept])
        splits = replace(splits, mean=mean, std=std)
    words = f"about {100 * fraction:g} % of each class"
    splits = replace(splits, train=train.subset(kept))
    splits = with_statistics(splits) if isinstance(train, FeatureSet) else splits
    return replace(
        splits,
        validation=validation,
        validation_split=f"held out: {words}, seed {source.split_seed}",
        train_groups=None if splits.train_groups is None else splits.train_groups[kept],
        notes=(*splits.notes, _note(train, validation, words)),
    )


def _keys_and_groups(train: LabelledImages, groups: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return what the choice hangs on, int64 ``[N]``, and what must stay together."""
    if isinstance(train, ImageFiles):
        return path_keys([train.paths[index] for index in range(len(train))]), groups
    if not isinstance(train, ImageSet | FeatureSet):
        raise ValueError(f"there is no way to split {type(train).__name__}")
    # Positions change with an imbalance cut; pixels do not.
    digests = pixel_keys(train.images) if isinstance(train, ImageSet) else feature_keys(train.features)
    return digests, tie_duplicates(groups, digests)


def _note(train: LabelledImages, validation: LabelledImages, words: str) -> str:
    """Return a sentence on what was held out."""
    note = (
        f"{len(validation)} of {counted(len(train), 'training image')} are held out for validation ({words}, never its "
        "last training image; --val_fraction)"
    )
    without = (validation.class_counts == 0).nonzero().squeeze(1).tolist()
    if without:
        note += (
            f"; {counted(len(without), 'class has', 'classes have')} none, because none can be spared (first "
            f"{train.class_names[without[0]]!r})"
        )
    return f"{note}."
