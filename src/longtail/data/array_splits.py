"""Arrays and features split anew: dealt into folds, cut to a profile, looked through for what is the same."""

from __future__ import annotations

from dataclasses import replace

import torch

from longtail.data.arrays import pixel_statistics
from longtail.data.counts import class_profile, long_tailed_indices
from longtail.data.duplicates import duplicate_notes, find_duplicates
from longtail.data.feature_files import with_statistics
from longtail.data.feature_set import FeatureSet, feature_keys
from longtail.data.image_set import DataSplits, ImageSet, LabelledImages
from longtail.data.keyed import derive_seed
from longtail.data.splits import fold_of, pixel_keys, tie_duplicates
from longtail.option_groups import DataOptions


def array_duplicates(splits: DataSplits) -> tuple[str, ...]:
    """Return sentences on arrays' images with the same pixels, or on equal rows of features, as files have them."""
    train, test = splits.train, splits.test
    if isinstance(train, FeatureSet) and isinstance(test, FeatureSet):
        digests, what, alike = [feature_keys(part.features) for part in (train, test)], "row", "value by value"
    else:
        assert isinstance(train, ImageSet)
        assert isinstance(test, ImageSet)
        digests, what, alike = [pixel_keys(part.images) for part in (train, test)], "image", "pixel by pixel"
    is_test = torch.arange(len(train) + len(test)) >= len(train)
    found = find_duplicates(torch.cat(digests), torch.cat([train.labels, test.labels]), is_test)
    if not found.groups:
        return ()
    sizes = (("training", len(train)), ("test", len(test)))
    names = [f"{part} {what} {index}" for part, size in sizes for index in range(size)]
    return duplicate_notes(found, names, splits.train.class_names, what, alike)


def fold_arrays(splits: DataSplits, folds: int, source: DataOptions) -> DataSplits:
    """Deal all images of an array file out anew.

    Rows with fewer stored views than others (those of a given test set have one) repeat them: whichever a training step
    draws of such a row is one that it has, and the others lose none of theirs.
    """
    train, test = splits.train, splits.test
    labels = torch.cat([train.labels, test.labels])
    whole: ImageSet | FeatureSet
    if isinstance(train, FeatureSet) and isinstance(test, FeatureSet):
        # Paths are of no use to folds, and joining tables of them is not worth it.
        views = torch.arange(max(train.views, test.views))
        features = torch.cat([part.features[:, views % part.views] for part in (train, test)])
        whole, keys = replace(train, features=features, labels=labels, paths=None), feature_keys(features)
    else:
        assert isinstance(train, ImageSet)
        assert isinstance(test, ImageSet)
        images = torch.cat([train.images, test.images])
        whole, keys = replace(train, images=images, labels=labels), pixel_keys(images)
    fold = source.fold or 0
    seed = derive_seed(source.split_seed, "repeat", fold // folds)
    together = tie_duplicates(None, keys)  # the same pixels must not train and test
    in_fold = fold_of(whole.labels, torch.arange(len(whole)), folds, seed, together) == fold % folds
    dealt = replace(
        splits, train=whole.subset((~in_fold).nonzero().squeeze(1)), test=whole.subset(in_fold.nonzero().squeeze(1))
    )
    return replace(
        renewed_statistics(dealt),
        test_split=f"fold {fold % folds + 1} of {folds}"
        + (f", deal {fold // folds + 1}" if source.repeats > 1 else ""),
    )


def cut(splits: DataSplits, imbalance: float, profile: str) -> DataSplits:
    """Cut the training set to a profile; one that already has it is left as it is, order included."""
    have = splits.train.class_counts
    # From the largest class down (equal ones in label order), so that what is long-tailed already stays so.
    by_size = torch.argsort(have, descending=True, stable=True)
    counts = torch.empty_like(have)
    counts[by_size] = torch.tensor(class_profile(profile, have[by_size].tolist(), len(have), imbalance))
    if torch.equal(counts, have):
        return splits
    kept = long_tailed_indices(splits.train.labels, counts.tolist())
    cut: LabelledImages = splits.train.subset(kept)
    groups = None if splits.train_groups is None else splits.train_groups[kept]
    return renewed_statistics(replace(splits, train=cut, train_groups=groups))


def renewed_statistics(splits: DataSplits) -> DataSplits:
    """Return ``splits`` with mean and deviation of the training set as it is now; files have theirs when framed."""
    if isinstance(splits.train, FeatureSet):
        return with_statistics(splits)
    if not isinstance(splits.train, ImageSet):
        return splits
    mean, std = pixel_statistics(splits.train.images)
    return replace(splits, mean=mean, std=std)
