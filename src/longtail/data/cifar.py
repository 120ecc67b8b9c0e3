"""Long-tailed CIFAR-10 and CIFAR-100 (Cao et al. 2019), made from the official files."""

from __future__ import annotations

import http.client
import pickle
import tarfile
from pathlib import Path
from typing import Any

import torch

from longtail.data.counts import check_imbalance, class_profile, long_tailed_indices
from longtail.data.image_set import DataSplits, ImageSet
from longtail.errors import UserError

# Published long-tailed results normalise both data sets with the statistics of CIFAR-10.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)
_ARCHIVES = {10: "cifar-10-python.tar.gz", 100: "cifar-100-python.tar.gz"}


def cifar_lt(
    num_classes: int,
    root: str | Path,
    imbalance: float = 100,
    profile: str = "exponential",
    download: bool = True,
) -> DataSplits:
    """Return CIFAR-10-LT or CIFAR-100-LT: a long-tailed training set and the whole official test set.

    The kept images are those of the published protocol (see ``long_tailed_indices``, seed 0), in its order.

    Args:
        num_classes: 10 or 100.
        root: folder that holds the official archive or its unpacked files.
        imbalance: largest over smallest class; published results use 100, 50 and 10.
        profile: ``"exponential"`` or ``"step"``.
        download: fetch the archive if ``root`` does not hold it.

    Raises:
        UserError: the official files are neither in ``root`` nor to be downloaded, or a bad option.
    """
    if num_classes not in _ARCHIVES:
        raise ValueError(f"num_classes must be 10 or 100, not {num_classes}")
    check_imbalance(imbalance)
    train, test = _official(num_classes, Path(root).expanduser(), download)
    counts = class_profile(profile, train.class_counts.tolist(), num_classes, imbalance)
    kept = train.subset(long_tailed_indices(train.labels, counts))
    return DataSplits(f"cifar{num_classes}-lt", kept, test, CIFAR10_MEAN, CIFAR10_STD, views="cifar")


def _official(num_classes: int, root: Path, download: bool) -> tuple[ImageSet, ImageSet]:
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
        raise UserError(
            f"CIFAR-{num_classes} is not in {root} and could not be downloaded ({reason.rstrip('.')}); put "
            f"the official archive {_ARCHIVES[num_classes]} into {root}, or pass the images as an .npz file "
            "instead."
        ) from error
    return _image_set(parts[0]), _image_set(parts[1])


def _image_set(part: Any) -> ImageSet:
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.tensor(part.targets, dtype=torch.int64), tuple(part.classes))
