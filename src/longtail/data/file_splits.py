"""From a listing of image files to checked training and test sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtail.data.check_images import ImageFacts, Level, bad_image_message, check_images
from longtail.data.duplicates import duplicate_notes, find_duplicates
from longtail.data.image_set import DataSplits, ImageFiles
from longtail.data.keyed import derive_seed
from longtail.data.labels import known_labels, number_labels
from longtail.data.listing import Listing
from longtail.data.path_table import PathTable
from longtail.data.splits import fold_of, group_names, hold_out, path_keys, straddling, tie_duplicates
from longtail.errors import UserError, counted
from longtail.option_groups import DataOptions

_SAMPLE = 2000
"""Files that ``--source.check sample`` looks at, or up to twice as many: evenly spread over the classes."""


@dataclass(frozen=True)
class FileChecks:
    """How image files are looked at before anything is trained.

    Attributes:
        on_bad: ``"error"`` or ``"skip"``: what to do with files that cannot be read.
        workers: threads that look.
        cache: folder that remembers what was seen of unchanged files; None = remember nothing.
        progress: called with (files looked at, of how many).
        writing: called with (images written as files, of how many), where a table holds them.
        indexing: called with (tar shards read, of how many).
    """

    on_bad: Literal["error", "skip"] = "error"
    workers: int = 1
    cache: Path | None = None
    progress: Callable[[int, int], None] | None = None
    writing: Callable[[int, int], None] | None = None
    indexing: Callable[[int, int], None] | None = None


def split_files(listing: Listing, folds: int | None, source: DataOptions, checks: FileChecks) -> DataSplits:
    """Number the labels, look at every file, and split.

    Samples are ordered by class, then path, whatever the order of the listing: the same images from a folder, a
    manifest or a list give the same run, if their paths are relative to the same folder.

    Raises:
        UserError: labels, files or splits cannot be used; the message says which.
    """
    if folds is not None and listing.splits is not None:
        counts = f"{listing.splits.count('train')} + {listing.splits.count('test')} images"
        note = f"--folds deals all images out anew: the given training and test sets ({counts}) are put together."
        listing = replace(listing, splits=None, notes=(*listing.notes, note))
    if source.group_pattern is not None:
        listing = replace(listing, groups=group_names(listing.paths, source.group_pattern))
    listing, labels, class_names, label_notes = number_labels(listing, source.labels, source.unknown_labels)
    listing = replace(listing, notes=(*listing.notes, *label_notes))
    listing, files, skipped = _look(listing, labels, class_names, source, checks)
    groups = _group_numbers(listing.groups) if listing.groups is not None else None
    together = tie_duplicates(groups, files.digests)
    is_test, test_split, notes = _choose_test(listing, files, folds, source, groups, together)
    duplicates = find_duplicates(files.digests, files.labels, is_test)
    return DataSplits(
        name=listing.name,
        train=files.subset((~is_test).nonzero().squeeze(1)),
        test=files.subset(is_test.nonzero().squeeze(1)),
        mean=(),
        std=(),
        views="",
        test_split=test_split,
        notes=(*listing.notes, *notes, *duplicate_notes(duplicates, listing.paths, class_names)),
        skipped=skipped,
        train_groups=None if together is None else together[~is_test],
    )


def label_known(listing: Listing, class_names: tuple[str, ...], source: DataOptions, checks: FileChecks) -> DataSplits:
    """Label the test images of ``listing`` (all of them, if it is not split) with the classes of a trained model.

    Raises:
        UserError: a class that the model does not know, or files that cannot be read.
    """
    if listing.splits is not None:
        listing = listing.select([index for index, split in enumerate(listing.splits) if split == "test"])
    number = known_labels(listing, class_names, source.labels)
    unknown = sorted(set(listing.labels) - number.keys())
    if unknown and not any(label in number for label in listing.labels):
        raise UserError(
            f"{listing.name} has no image of the model's classes: it has {unknown[0]!r} and the like, the model "
            f"{class_names[0]!r} and the like."
        )
    if unknown:
        classes = counted(len(unknown), "class", "classes")
        images = counted(sum(label not in number for label in listing.labels), "image")
        if source.unknown_labels == "error":
            raise UserError(
                f"{listing.name} has {classes} that the model does not know (first {unknown[0]!r}; "
                f"{images}); add --unknown_labels skip to leave them out."
            )
        listing = listing.select([i for i, label in enumerate(listing.labels) if label in number])
        note = f"{images} of {classes} that the model does not know left out, first {unknown[0]!r}."
        listing = replace(listing, notes=(*listing.notes, note))
    if not len(listing):
        raise UserError(f"{listing.name} has no image to evaluate on.")
    labels = torch.tensor([number[label] for label in listing.labels], dtype=torch.int64)
    listing, files, skipped = _look(replace(listing, splits=None), labels, class_names, source, checks, training=False)
    if not len(files):
        raise UserError(f"{listing.name}: no image can be read; mend the files.")
    empty = files.subset(torch.empty(0, dtype=torch.int64))
    return DataSplits(listing.name, empty, files, (), (), "", notes=listing.notes, skipped=skipped)


def _look(
    listing: Listing,
    labels: Tensor,
    class_names: tuple[str, ...],
    source: DataOptions,
    checks: FileChecks,
    training: bool = True,
) -> tuple[Listing, ImageFiles, tuple[tuple[str, str], ...]]:
    """Order by class and path, look at every file, and leave out what cannot be read, if that is wanted."""
    order = _by_class_and_path(labels, listing.paths)
    listing, labels = listing.select(order.tolist()), labels[order]
    facts = _facts(listing, source, checks)
    good = torch.ones(len(listing), dtype=torch.bool)
    skipped: tuple[tuple[str, str], ...] = ()
    if facts.errors:
        titles = {index: listing.title(index) for index in facts.errors}
        note = bad_image_message(facts.errors, titles, len(listing), skipped=checks.on_bad == "skip")
        if checks.on_bad == "error":
            raise UserError(note)
        skipped = tuple((titles[index], reason) for index, reason in sorted(facts.errors.items()))
        good[list(facts.errors)] = False
        if training:
            _check_still_there(listing, labels, good, class_names)
        listing = replace(listing.select(good.nonzero().squeeze(1).tolist()), notes=(*listing.notes, note))
    files = ImageFiles(
        root=listing.root,
        paths=listing.paths if isinstance(listing.paths, PathTable) else PathTable(listing.paths),
        labels=labels[good],
        class_names=class_names,
        sizes=torch.stack([torch.from_numpy(facts.heights), torch.from_numpy(facts.widths)], 1)[good],
        digests=torch.from_numpy(facts.digests)[good],
        members=listing.members,
    )
    return listing, files, skipped


def _by_class_and_path(labels: Tensor, paths: Sequence[str]) -> Tensor:
    """Return the order of images by class, then path, int64 ``[N]``; one class's paths are text at a time."""
    order = np.argsort(labels.numpy(), kind="stable")
    paths = paths if isinstance(paths, PathTable) else PathTable(paths)
    by_class = iter(paths.select(order))
    start = 0
    for count in torch.bincount(labels).tolist():
        of_class = list(islice(by_class, count))
        order[start : start + count] = order[start : start + count][sorted(range(count), key=of_class.__getitem__)]
        start += count
    return torch.from_numpy(order)


def _facts(listing: Listing, source: DataOptions, checks: FileChecks) -> ImageFacts:
    """Look at every file, or at some of them; what was not looked at is 0."""
    count = len(listing)
    looked_at = range(0, count, 1 if source.check == "full" else max(1, count // _SAMPLE))
    level: Level = "full" if source.check == "full" else "header"
    name = listing.name if source.check == "full" else f"{listing.name} (sample)"
    some = listing if len(looked_at) == count else listing.select(looked_at)
    facts = check_images(
        some.root, some.paths, level, checks.workers, checks.cache, name, checks.progress, place=some.place
    )
    if len(looked_at) == count:
        return facts

    def spread(known: NDArray[Any]) -> NDArray[Any]:
        whole = np.zeros(count, known.dtype)
        whole[looked_at] = known
        return whole

    return ImageFacts(
        widths=spread(facts.widths),
        heights=spread(facts.heights),
        modes=spread(facts.modes),
        frames=spread(facts.frames),
        digests=spread(facts.digests),
        errors={looked_at[index]: reason for index, reason in facts.errors.items()},
    )


def _check_still_there(listing: Listing, labels: Tensor, good: Tensor, class_names: tuple[str, ...]) -> None:
    """Raise if leaving out files leaves a class without a training image, or nothing to test on."""
    in_train = torch.ones_like(good)
    if listing.splits is not None:
        in_train = torch.tensor([split == "train" for split in listing.splits])
        if not bool((good & ~in_train).any()) and not bool(in_train.all()):
            raise UserError(f"{listing.name}: no test image can be read; mend the files.")
    had = torch.bincount(labels[in_train], minlength=len(class_names))
    has = torch.bincount(labels[in_train & good], minlength=len(class_names))
    lost = ((had > 0) & (has == 0)).nonzero().squeeze(1).tolist()
    if lost:
        raise UserError(
            f"{listing.name}: none of the {int(had[lost[0]])} training images of class {class_names[lost[0]]!r} can be "
            "read; mend them, or take the class out."
        )


def _choose_test(
    listing: Listing,
    files: ImageFiles,
    folds: int | None,
    source: DataOptions,
    groups: Tensor | None,
    together: Tensor | None,
) -> tuple[Tensor, str, tuple[str, ...]]:
    """Return which images test (bool ``[N]``), where that comes from in words, and notes.

    ``groups [N]`` are those that were given, ``together [N]`` the same with duplicates tied to them.
    """
    if listing.splits is not None:
        is_test = torch.tensor([split == "test" for split in listing.splits], dtype=torch.bool)
        torn = [] if groups is None else straddling(groups, is_test)
        if groups is None or listing.groups is None or not torn:
            return is_test, "given", ()
        first = listing.groups[groups.tolist().index(torn[0])]
        note = (
            f"{len(torn)} groups lie in both training and test set (first {first!r}): figures flatter the model where "
            "images of a group are alike."
        )
        return is_test, "given", (note,)
    notes: tuple[str, ...] = ()
    keys = path_keys(listing.paths)
    if folds is None:
        is_test = hold_out(files.labels, keys, source.test_share, source.split_seed, together)
        words = f"held out: {100 * source.test_share:g} % of each class, seed {source.split_seed}"
        notes = (
            f"no test split is given: {int(is_test.sum())} of {len(files)} images are held out to test on (about "
            f"{100 * source.test_share:g} % of each class, never its last training image; --source.test_share).",
        )
    else:
        fold = source.fold or 0
        seed = derive_seed(source.split_seed, "repeat", fold // folds)
        is_test = fold_of(files.labels, keys, folds, seed, together) == fold % folds
        words = f"fold {fold % folds + 1} of {folds}"
        words += f", deal {fold // folds + 1} of {source.repeats}" if source.repeats > 1 else ""
    if groups is not None:
        words += f"; {int(groups.max()) + 1} groups kept whole"
    tested = torch.bincount(files.labels[is_test], minlength=files.num_classes)
    without = (tested == 0).nonzero().squeeze(1).tolist()
    if without and folds is None:
        notes += (
            f"{counted(len(without), 'class has', 'classes have')} no test image, because none can be spared (first "
            f"{files.class_names[without[0]]!r}): nothing can be said of {'it' if len(without) == 1 else 'them'}.",
        )
    return is_test, words, notes


def _group_numbers(groups: Sequence[str]) -> Tensor:
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(group, len(numbers)) for group in groups], dtype=torch.int64)
