"""Images with masks: a folder or a name, as the user wrote it, to checked training, validation and test sets."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from longtail.errors import UserError, counted, unknown_name
from longtail.option_groups import DataOptions
from longtail.segmentation.data.check_masks import Bad
from longtail.segmentation.data.mask_parts import LabelledPart, MaskPart, label_parts, read_part
from longtail.segmentation.data.mask_set import MaskFiles, MaskSplits
from longtail.segmentation.data.mask_splits import choose_test, choose_validation, with_groups
from longtail.segmentation_options import SegmentationOptions

DEFAULT_ROOT = ".data"
PUBLISHED = {"ade20k": "ADEChallengeData2016", "cityscapes": "cityscapes", "camvid": "camvid"}
"""Data sets known by name, and the folder below ``--root`` that each is looked for in, if not in that itself."""

_STATISTICS_OF = 500
_NAMED = 5


def mask_source_names() -> list[str]:
    """Return the data sets with masks that are known by name."""
    return sorted(PUBLISHED)


def load_masks(
    data: str,
    *,
    root: str | None = None,
    source: DataOptions | None = None,
    options: SegmentationOptions | None = None,
    val_fraction: float = 0.0,
    on_bad: str = "error",
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    test_only: bool = False,
) -> MaskSplits:
    """Return the training, validation and test set that ``data`` names, every image and mask looked at.

    Args:
        data: a folder in one of the layouts of ``layouts/``, or one of :data:`PUBLISHED`.
        root: folder that holds a data set known by name (``.data`` by default).
        source: how to split.
        options: how masks are to be read.
        val_fraction: share of the training images that becomes the validation set; 0 = none.
        on_bad: what to do with pairs that cannot be used: ``"error"`` or ``"skip"``.
        workers: processes that look at the files.
        progress: called with (pairs looked at, of how many).
        test_only: the test images, or all where they are not split, are the ``test`` and the ``train`` of the result.

    Raises:
        UserError: no such folder, another layout, a bad file or option; the message says which.
    """
    source, options = source or DataOptions(), options or SegmentationOptions()
    size = _size(options)
    wanted = "test" if test_only else "train" if source.test is not None else None
    read = [read_part(find_folder(data, root), data, options, wanted, workers, progress)]
    if source.test is not None and not test_only:
        folder = find_folder(source.test, None, "--source.test")
        read.append(read_part(folder, source.test, options, "test", workers, progress))
        _check_apart(read, source.test)
    parts = label_parts(read, options)
    bad = tuple(pair for part in parts for pair in part.bad)
    if bad and on_bad == "error":
        raise UserError(_bad_message(bad, parts, skipped=False))
    first, sets = parts[0], [part.files(size) for part in parts]
    notes = [note for part in parts for note in (*part.listing.notes, *part.classes.notes)]
    notes += [_bad_message(bad, parts, skipped=True)] if bad else []
    if source.check == "sample":
        notes.append("--source.check sample: all masks are read all the same, as their pixels are counted.")
    for part in parts:
        if not len(part.listing):
            raise UserError(f"{part.listing.name}: no image with a mask is left; mend the files.")
    if test_only:
        return MaskSplits(
            data, sets[0], sets[0], None, *pixel_statistics(first.sums, sets[0].sizes), "given", "", tuple(notes), bad
        )
    listing = with_groups(first.listing, source.group_pattern)
    if len(sets) == 2:
        is_test, words = torch.zeros(len(sets[0]), dtype=torch.bool), f"given: {source.test}"
    else:
        is_test, words, test_notes = choose_test(listing, sets[0].pixels > 0, source)
        notes += test_notes
    test = sets[1] if len(sets) == 2 else sets[0].subset(is_test.nonzero().squeeze(1))
    kept = (~is_test).nonzero().squeeze(1)
    _check_sets(data, sets[0].subset(kept), test)
    validation, validation_words = None, ""
    if val_fraction:
        held, validation_words, held_notes = choose_validation(
            listing.select(kept.tolist()), sets[0].pixels[kept] > 0, val_fraction, source
        )
        notes += held_notes
        validation, kept = sets[0].subset(kept[held]), kept[~held]
    train = sets[0].subset(kept)
    notes += _class_notes(data, train, test)
    mean, std = pixel_statistics(first.sums[kept], train.sizes)
    return MaskSplits(data, train, test, validation, mean, std, words, validation_words, tuple(notes), bad)


def pixel_statistics(sums: Tensor, sizes: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of red, green and blue on 0..1, over at most 500 images evenly spread.

    Args:
        sums: int64 ``[N, 6]``, of the channels and of their squares.
        sizes: int64 ``[N, 2]``.
    """
    chosen = torch.linspace(0, len(sums) - 1, min(len(sums), _STATISTICS_OF)).round().long()
    means = sums[chosen].sum(0).double() / sizes[chosen].prod(1).sum()
    mean, squares = means[:3] / 255, means[3:] / 255**2
    return tuple(mean.tolist()), tuple((squares - mean**2).clamp(min=0).sqrt().tolist())


def find_folder(data: str, root: str | None, option: str = "data") -> Path:
    """Return the folder that ``data`` names.

    Raises:
        UserError: there is none.
    """
    path = Path(data).expanduser()
    if data in PUBLISHED and not path.is_dir():
        base = Path(root or DEFAULT_ROOT).expanduser()
        candidates = [base / PUBLISHED[data], base / data, *([] if root is None else [base])]
        for folder in candidates:
            if folder.is_dir():
                return folder
        raise UserError(f"{data} is not in {base}; unpack it there, or name its folder with --root.")
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{option} {data} is a file; give a folder that holds images and their masks.")
    if "/" in data or "." in data:
        raise UserError(f"no such folder: {data}; give one that holds images and their masks.")
    raise UserError(f"{unknown_name('data', data, PUBLISHED)} There is no folder of that name either.")


def _size(options: SegmentationOptions) -> tuple[int, int] | None:
    if options.resize is None:
        return None
    if len(options.resize) != 2 or min(options.resize) < 1:
        raise UserError(
            f"--segmentation.resize must be a height and a width in pixels, such as [512,512], got {options.resize}."
        )
    return options.resize[0], options.resize[1]


def _check_apart(parts: Sequence[MaskPart], test: str) -> None:
    """Raise if an image is in both trees."""
    train, tested = ({os.path.abspath(p.listing.root / file): file for file in p.listing.images} for p in parts)
    both = sorted(train.keys() & tested.keys())
    if both:
        raise UserError(
            f"--source.test {test} holds {counted(len(both), 'image')} to train on (first {train[both[0]]}); give "
            "others to test on."
        )


def _bad_message(bad: Sequence[Bad], parts: Sequence[LabelledPart], *, skipped: bool) -> str:
    """Return one sentence that names the first files that cannot be used, and what to do."""
    named = ", ".join(f"{file} ({reason})" for file, reason in bad[:_NAMED])
    more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    total = sum(len(part.listing) + len(part.bad) for part in parts)
    count = f"{parts[0].listing.name}: {len(bad)} of {total} images and masks cannot be used"
    if skipped:
        return f"{count} and {'is' if len(bad) == 1 else 'are'} left out: {named}{more}."
    them = "it" if len(bad) == 1 else "them"
    return f"{count}: {named}{more}; mend or delete {them}, or leave {them} out with --on_bad_image skip."


def _check_sets(data: str, train: MaskFiles, test: MaskFiles) -> None:
    for files, what in ((train, "training"), (test, "test")):
        if not len(files):
            raise UserError(f"{data} holds no {what} image with a mask.")
    trained = [name for name, count in zip(train.class_names, train.class_counts.tolist(), strict=True) if count]
    if len(trained) < 2:
        only = f"only {trained[0]!r}" if trained else "no class at all"
        raise UserError(f"{data}: the training masks hold {only}; segmentation needs two classes or more.")
    if not int(test.class_counts.sum()):
        raise UserError(f"{data}: no pixel of the test masks counts, so nothing can be tested.")


def _class_notes(data: str, train: MaskFiles, test: MaskFiles) -> list[str]:
    """Return sentences on classes without pixels, and on masks in which nothing counts."""
    notes = []
    absent = [name for name, count in zip(train.class_names, train.class_counts.tolist(), strict=True) if not count]
    if absent:
        tested = "; the test masks hold pixels of some" if int(test.class_counts[train.class_counts == 0].sum()) else ""
        notes.append(
            f"{data}: {counted(len(absent), 'class has', 'classes have')} no pixel in the training masks "
            f"({_some(absent)}), so that nothing can be learnt of {'it' if len(absent) == 1 else 'them'}{tested}."
        )
    for files, what in ((train, "training"), (test, "test")):
        empty = [files.masks[place] for place in (files.pixels.sum(1) == 0).nonzero().squeeze(1).tolist()]
        if empty:
            notes.append(
                f"{data}: in {counted(len(empty), f'{what} mask')} no pixel counts ({_some(empty)}); nothing is learnt "
                "or tested there."
            )
    return notes


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
