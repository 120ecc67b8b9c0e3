"""Long-tailed CIFAR-10 and CIFAR-100 (Cao et al. 2019), made from the official files or from array files."""

from __future__ import annotations

import http.client
import pickle
import tarfile
from pathlib import Path
from typing import Any

import torch

from longtail.data.arrays import load_arrays
from longtail.data.counts import check_imbalance, class_profile, long_tailed_indices
from longtail.data.image_set import DataSplits, ImageSet
from longtail.errors import UserError

# Published long-tailed results normalise both data sets with the statistics of CIFAR-10.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)
_ARCHIVES = {10: "cifar-10-python.tar.gz", 100: "cifar-100-python.tar.gz"}
_UNPACKED = {10: "cifar-10-batches-py", 100: "cifar-100-python"}


def cifar_lt(
    num_classes: int,
    root: str | Path,
    imbalance: float = 100,
    profile: str = "exponential",
    download: bool = True,
) -> DataSplits:
    """Return CIFAR-10-LT or CIFAR-100-LT: a long-tailed training set and the whole official test set.

    The kept images are those of the published protocol (see ``long_tailed_indices``, seed 0), in its order.
    Official files come first. Without them, array files (see ``load_arrays``) in ``root`` are used, before
    anything is downloaded: ``cifar100.npz`` with all official images in official order, which the protocol then
    cuts, or ``cifar100-lt-50.npz``, already cut to imbalance 50, which is taken as it is.

    Args:
        num_classes: 10 or 100.
        root: folder that holds the official archive, its unpacked files, or one of the array files.
        imbalance: largest over smallest class; published results use 100, 50 and 10.
        profile: ``"exponential"`` or ``"step"``.
        download: fetch the archive if ``root`` does not hold it.

    Raises:
        UserError: no such files are in ``root`` and none can be downloaded, an array file is another data set, or
            a bad option.
    """
    if num_classes not in _ARCHIVES:
        raise ValueError(f"num_classes must be 10 or 100, not {num_classes}")
    check_imbalance(imbalance)
    folder = Path(root).expanduser()
    arrays = _array_file(num_classes, folder, imbalance)
    official = any((folder / name).exists() for name in (_ARCHIVES[num_classes], _UNPACKED[num_classes]))
    if arrays is not None and not official:
        return _from_arrays(arrays, num_classes, imbalance, profile)
    try:
        train, test = _official(num_classes, folder, imbalance, download)
    except UserError:
        if arrays is None:
            raise
        return _from_arrays(arrays, num_classes, imbalance, profile)
    return _protocol(num_classes, train, test, imbalance, profile)


def _protocol(num_classes: int, train: ImageSet, test: ImageSet, imbalance: float, profile: str) -> DataSplits:
    """Cut all training images by the published protocol."""
    counts = class_profile(profile, train.class_counts.tolist(), num_classes, imbalance)
    kept = train.subset(long_tailed_indices(train.labels, counts))
    return _splits(num_classes, kept, test)


def _splits(num_classes: int, train: ImageSet, test: ImageSet) -> DataSplits:
    return DataSplits(f"cifar{num_classes}-lt", train, test, CIFAR10_MEAN, CIFAR10_STD, views="cifar")


def _array_names(num_classes: int, imbalance: float) -> tuple[str, str]:
    """Return the names of the array file of all images, and of the one that is cut already."""
    return f"cifar{num_classes}.npz", f"cifar{num_classes}-lt-{imbalance:g}.npz"


def _array_file(num_classes: int, root: Path, imbalance: float) -> Path | None:
    return next((root / name for name in _array_names(num_classes, imbalance) if (root / name).is_file()), None)


def _from_arrays(file: Path, num_classes: int, imbalance: float, profile: str) -> DataSplits:
    found = load_arrays(file)
    train, test = found.train, found.test
    assert isinstance(train, ImageSet)
    assert isinstance(test, ImageSet)
    if train.num_classes != num_classes or (train.channels, *train.image_size) != (3, 32, 32):
        height, width = train.image_size
        raise UserError(
            f"{file} is not CIFAR-{num_classes}: it has {train.num_classes} classes of {height}x{width} images with "
            f"{train.channels} channels, not {num_classes} of 32x32 with 3; give another file that name, or pass this "
            "one as the data itself."
        )
    whole, _ = _array_names(num_classes, imbalance)
    if file.name == whole:
        return _protocol(num_classes, train, test, imbalance, profile)
    have = train.class_counts.tolist()
    wanted = class_profile(profile, max(have), num_classes, imbalance)
    if have != wanted:
        label = next(label for label in range(num_classes) if have[label] != wanted[label])
        raise UserError(
            f"{file} is not cut to the {profile} profile of imbalance {imbalance:g}: class {label} "
            f"({train.class_names[label]!r}) has {have[label]} images, not {wanted[label]}; cut it again, or put all "
            f"official images into {whole} beside it."
        )
    return _splits(num_classes, train, test)


def _official(num_classes: int, root: Path, imbalance: float, download: bool) -> tuple[ImageSet, ImageSet]:
    from torchvision import datasets  # slow to import, and only this source needs it

    source = datasets.CIFAR10 if num_classes == 10 else datasets.CIFAR100
    try:
        # Files already there are only checked: torchvision downloads what is missing.
        parts = [source(root=str(root), train=train, download=download) for train in (True, False)]
    except (
        OSError,
        RuntimeError,
        EOFError,
        http.client.HTTPException,
        tarfile.TarError,
        pickle.UnpicklingError,
    ) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        whole, cut = _array_names(num_classes, imbalance)
        raise UserError(
            f"CIFAR-{num_classes} is not in {root} and could not be downloaded ({reason.rstrip('.')}); put "
            f"the official archive {_ARCHIVES[num_classes]} into {root}, or all its images in official order as "
            f"{whole}, or its long-tailed cut as {cut}."
        ) from error
    return _image_set(parts[0]), _image_set(parts[1])


def _image_set(part: Any) -> ImageSet:
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.tensor(part.targets, dtype=torch.int64), tuple(part.classes))
