"""Images from one ``.npz`` file of arrays, in the layout of MedMNIST (Yang et al. 2023), checked."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longtail.data.image_set import DataSplits, ImageSet
from longtail.errors import UserError

REQUIRED_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_SMALLEST_STD = 1.0 / 255.0  # one gray level: a constant channel is centred, not blown up


def load_arrays(path: str | Path) -> DataSplits:
    """Return the training and the test set of an ``.npz`` file.

    The file holds ``train_images`` and ``test_images`` (uint8 ``[N, H, W]``, ``[N, H, W, 1]`` or ``[N, H, W,
    3]``), ``train_labels`` and ``test_labels`` (integers ``[N]`` or ``[N, 1]``, 0..C-1), and may hold
    ``class_names`` ``[C]``; other arrays are not read. Nothing is unpickled. C is the number of class names
    or, without them, the largest training label + 1. Mean and standard deviation are those of the training
    pixels.

    Raises:
        UserError: the file or an array in it is not as described; the message names both.
    """
    path = Path(path).expanduser()
    arrays = _read(path)
    train_images, train_labels = _pair(path, arrays, "train")
    test_images, test_labels = _pair(path, arrays, "test")
    if train_images.shape[1:] != test_images.shape[1:]:
        raise UserError(
            f"{path}: 'train_images' are {_size(train_images)} but 'test_images' are {_size(test_images)} "
            "(channels x height x width); both must have one size."
        )
    names = _class_names(path, arrays, train_labels)
    for part, labels in (("train", train_labels), ("test", test_labels)):
        if "class_names" in arrays and int(labels.max()) >= len(names):
            raise UserError(
                f"{path}: '{part}_labels' holds label {int(labels.max())}, but 'class_names' names only "
                f"{len(names)} classes (0..{len(names) - 1})."
            )
    mean, std = pixel_statistics(train_images)
    splits = DataSplits(
        name=str(path),
        train=ImageSet(train_images, train_labels, names),
        test=ImageSet(test_images, test_labels, names),
        mean=mean,
        std=std,
        views=_fitting_views(train_images),
    )
    check_splits(splits)
    return splits


def pixel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of each channel of ``images`` (uint8 ``[N, C, H, W]``), on 0..1.

    Computed from the histogram of the 256 values, so the result does not depend on summation order. A
    standard deviation below one gray level (1/255) is raised to it.
    """
    value = torch.arange(256, dtype=torch.float64) / 255.0
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean = float((share * value).sum())
        variance = float((share * (value - mean) ** 2).sum())
        means.append(mean)
        stds.append(max(variance**0.5, _SMALLEST_STD))
    return tuple(means), tuple(stds)


def check_splits(splits: DataSplits) -> None:
    """Raise ``UserError`` unless ``splits`` can be trained on and evaluated.

    That is: at least 2 classes, a training image for each, a test set, and no test label that training does
    not know.
    """
    names = splits.train.class_names
    if len(names) < 2:
        raise UserError(f"{splits.name}: the training set has one class only; at least 2 are needed.")
    present = torch.unique(splits.train.labels)
    if len(present) < len(names):
        known = set(present.tolist())
        missing = next(label for label in range(len(names)) if label not in known)
        raise UserError(
            f"{splits.name}: class {names[missing]!r} (label {missing}) has no training image; give it at "
            "least one or number the labels from 0 without it."
        )
    if len(splits.test) == 0:
        raise UserError(f"{splits.name}: the test set is empty.")
    largest = int(splits.test.labels.max())
    if largest >= len(names):
        raise UserError(
            f"{splits.name}: the test set has label {largest}, but the training labels are 0..{len(names) - 1}."
        )


def _read(path: Path) -> dict[str, Any]:
    """Read the arrays we use, refusing anything that would need pickle."""
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    not_an_archive = UserError(
        f"{path}: not an .npz archive, or cut off; write it again with numpy.savez(path, train_images=..., ...)."
    )
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise not_an_archive
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    arrays: dict[str, Any] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in REQUIRED_ARRAYS if name not in archive.files]
            if missing:
                raise UserError(
                    f"{path}: array {missing[0]!r} is missing; found: {', '.join(archive.files) or 'nothing'}."
                )
            for name in (*REQUIRED_ARRAYS, "class_names"):
                if name in archive.files:
                    arrays[name] = _member(path, archive, name)
    except (zipfile.BadZipFile, OSError):
        raise not_an_archive from None
    return arrays


def _member(path: Path, archive: Any, name: str) -> Any:
    try:
        array = archive[name]
    except MemoryError:
        raise UserError(f"{path}: {name!r} does not fit in memory.") from None
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        if "pickle" in str(error):
            raise UserError(
                f"{path}: {name!r} is an object array, which would need pickle and is not read; "
                "store plain numbers or strings."
            ) from None
        raise UserError(f"{path}: {name!r} cannot be read, the file is damaged; write it again.") from None
    if not isinstance(array, np.ndarray):  # a zip member that is no .npy file comes back as bytes
        raise UserError(f"{path}: {name!r} is not a numpy array; write the file with numpy.savez.")
    return array


def _pair(path: Path, arrays: dict[str, Any], part: str) -> tuple[Tensor, Tensor]:
    """Return the checked images ``[N, C, H, W]`` and labels ``[N]`` of one part."""
    images = _images(path, f"{part}_images", arrays[f"{part}_images"])
    labels = _labels(path, f"{part}_labels", arrays[f"{part}_labels"])
    if len(images) != len(labels):
        raise UserError(f"{path}: {len(images)} '{part}_images' but {len(labels)} '{part}_labels'.")
    return images, labels


def _images(path: Path, name: str, array: Any) -> Tensor:
    if array.dtype != np.uint8:
        fix = (
            "convert values in 0..1 with (images * 255).round().astype('uint8')"
            if array.dtype.kind == "f"
            else "convert with images.astype('uint8')"
        )
        raise UserError(f"{path}: {name!r} is {array.dtype}, but images are uint8 (0..255); {fix}.")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        shown = list(array.shape)
        raise UserError(f"{path}: {name!r} has shape {shown}, but images are [N, H, W], [N, H, W, 1] or [N, H, W, 3].")
    if array.size == 0:
        raise UserError(f"{path}: {name!r} is empty (shape {list(array.shape)}).")
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def _labels(path: Path, name: str, array: Any) -> Tensor:
    if array.ndim == 2 and array.shape[1] > 1:
        raise UserError(
            f"{path}: {name!r} has shape {list(array.shape)}, which is multi-label; "
            "only one label an image ([N] or [N, 1]) is supported."
        )
    if array.ndim not in (1, 2):
        raise UserError(f"{path}: {name!r} has shape {list(array.shape)}, but labels are [N] or [N, 1].")
    if array.dtype.kind not in "iu":
        raise UserError(
            f"{path}: {name!r} is {array.dtype}, but labels are integers 0..C-1; convert with labels.astype('int64')."
        )
    if array.size == 0:
        raise UserError(f"{path}: {name!r} is empty (shape {list(array.shape)}).")
    if array.min() < 0:
        raise UserError(f"{path}: {name!r} holds the negative label {array.min()}; labels are 0..C-1.")
    if array.max() > np.iinfo(np.int32).max:
        raise UserError(f"{path}: {name!r} holds label {array.max()}, which is no class number; labels are 0..C-1.")
    return torch.from_numpy(array.reshape(-1).astype(np.int64))


def _class_names(path: Path, arrays: dict[str, Any], train_labels: Tensor) -> tuple[str, ...]:
    if "class_names" not in arrays:
        present = torch.unique(train_labels)
        count = int(present[-1]) + 1
        if len(present) < count:  # told here, before a stray large label makes a name for each number below
            missing = next(i for i, label in enumerate(present.tolist()) if i != label)
            raise UserError(
                f"{path}: class '{missing}' (label {missing}) has no training image, though 'train_labels' "
                f"goes up to {count - 1}; number the labels from 0 without gaps."
            )
        return tuple(str(label) for label in range(count))
    array = arrays["class_names"]
    if array.ndim != 1 or array.dtype.kind not in "USiu":
        raise UserError(
            f"{path}: 'class_names' is {array.dtype} with shape {list(array.shape)}, but it must be a list of strings."
        )
    names = tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in array)
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{path}: 'class_names' names {name!r} twice.")
        if not name.isprintable():  # control characters, and halves of characters that no file can hold
            raise UserError(f"{path}: 'class_names' holds {name!a}, which is not printable text.")
        seen.add(name)
    return names


def _fitting_views(images: Tensor) -> str:
    """Name the view recipe by image size and channels."""
    if max(images.shape[2:]) <= 16:
        return "tiny"
    return "light" if images.shape[1] == 3 else "shift"


def _size(images: Tensor) -> str:
    return "x".join(str(side) for side in images.shape[1:])
