"""Masks of new images by a finished run: class numbers as PNG, colours over the image, a table of shares."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Resampling
from torch import Tensor

from longtail.config import TrainConfig
from longtail.data.decode import BadImage, opened, read_image
from longtail.deployment.image_inputs import ArrayImages, find_images
from longtail.deployment.priors import find_prior
from longtail.deployment.result_table import Column, ResultTable, Row
from longtail.deployment.run_records import find_run
from longtail.errors import UserError, counted, unknown_name
from longtail.options import make_config, parse_values
from longtail.segmentation.mask_folder import (
    CLASSES,
    MASKS,
    OVERLAYS,
    SHARES,
    check_apart,
    check_place,
    class_table,
    clear_place,
    mask_names,
    write_file,
)
from longtail.segmentation.models import Segmenter, TestView, largest_at_size
from longtail.segmentation.overlays import class_overlay, index_png, jpeg, picture
from longtail.segmentation.result import load_segmenter
from longtail.segmentation.run import test_view, with_view
from longtail.training.devices import pick_device
from longtail.training.progress import ProgressReporter
from longtail.training.run_folder import read_config

_FIXED: dict[str, Column] = {"image": "text", "mask": "text", "confidence": "number"}
_ERROR = "error"
_WORDS = ("none", "uniform", "train")
_AHEAD = 2


@dataclass(frozen=True)
class MaskPredictions:
    """What :func:`predict_masks` did.

    Attributes:
        images: how many were given.
        skipped: (file, reason) of those that could not be read.
        out: the folder with ``masks``, ``overlays``, ``classes.csv`` and ``shares.csv``.
    """

    images: int
    skipped: tuple[tuple[str, str], ...]
    out: Path


def predict_masks(
    run: str | Path,
    images: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    masks_only: bool = False,
    prior: str = "none",
    window: Sequence[int] | None = None,
    stride: float | None = None,
    scales: Sequence[float] | None = None,
    mirror: bool = False,
    device: str = "auto",
    overwrite: bool = False,
    on_bad_image: str = "error",
    quiet: bool = False,
) -> MaskPredictions:
    """Write the mask of every image into the folder ``out``, image by image.

    ``masks/NAME.png`` holds class numbers 0..C-1 in the model's order, which ``classes.csv`` lists with names and
    colours, at the image's own size, upright (EXIF orientation is applied). ``overlays/NAME.jpg`` shows them in colour
    over the image. ``shares.csv`` has a row for each image: the share of each class in its pixels, and the mean
    probability of the class that a pixel was given. NAME is the image's name without its ending, and where two are
    alike also that of its folder.

    Args:
        run: the run's folder, or hf-hub:owner/name.
        images: files, folders (with all below), patterns such as 'photos/*.jpg', or - for one path a line on standard
            input; of any size, each predicted at the size that training brought images to, if it did.
        out: folder for the results; new, or written by an earlier call.
        masks_only: write no overlays.
        prior: how frequent the classes are among the pixels: none (as the model has learned to expect), uniform, train
            (as in the training data), or a table with the columns class and prior.
        window: height and width of a sliding window in pixels; default: as the run was tested, like the next three.
        stride: share of the window that the next one is moved by.
        scales: sizes that are averaged, relative to the image, such as 0.75,1,1.25.
        mirror: average with the mirror image.
        device: where to compute.
        overwrite: replace what an earlier call wrote into ``out``.
        on_bad_image: error (stop at a file that cannot be read) or skip (list it in shares.csv).
        quiet: print nothing.

    Raises:
        UserError: an option, the run or an image cannot be used, or ``out`` holds something that must stay.
    """
    if on_bad_image not in ("error", "skip"):
        raise unknown_name("--on_bad_image", on_bad_image, ("error", "skip"))
    if out is None:
        raise UserError("--out is missing; name the folder for masks and overlays.")
    path, place = find_run(run), Path(out).expanduser()
    check_place(place, overwrite)
    segmenter = load_segmenter(path)
    view = _view(path, window, stride, scales, mirror)
    weights = _prior(prior, segmenter)
    files = _listed([images] if isinstance(images, str | Path) else images)
    check_apart(files, place)
    if on_bad_image == "error":  # told at once, not after hours: what is no image at all
        for file in files:
            _check_opens(file)
    names = mask_names(files)
    where, say = pick_device(device), ProgressReporter(quiet)
    segmenter = segmenter.to(where)
    show, skipped = say.counter("predicting"), list[tuple[str, str]]()
    clear_place(place)
    write_file(place / CLASSES, class_table(segmenter.class_names, segmenter.palette))
    columns = _columns(segmenter.class_names)
    with ResultTable(place / SHARES, "csv", columns) as table:
        for done, (file, name, read) in enumerate(zip(files, names, _read_ahead(files), strict=True), start=1):
            if isinstance(read, BadImage):
                if on_bad_image == "error":
                    raise _unreadable(file, read)
                skipped.append((file, read.reason))
                table.write([{**dict.fromkeys(columns), "image": file, _ERROR: read.reason}])
            else:
                labels, confidence = predict_image(segmenter, read, view, weights)
                write_file(place / MASKS / f"{name}.png", index_png(labels, segmenter.palette))
                if not masks_only:
                    drawn = class_overlay(read, labels, segmenter.palette.cpu())
                    write_file(place / OVERLAYS / f"{name}.jpg", jpeg(drawn))
                table.write([_row(file, f"{MASKS}/{name}.png", labels, confidence, segmenter.class_names)])
            show(done, len(files))
        if len(skipped) == len(files):
            file, reason = skipped[0]
            raise UserError(f"none of {counted(len(files), 'image')} can be read, first {file} ({reason}).")
    left_out = f"; {len(skipped)} skipped, first {skipped[0][0]} ({skipped[0][1]})" if skipped else ""
    say.say(f"{counted(len(files) - len(skipped), 'mask')} in {place / MASKS} ({view.describe()}){left_out}")
    return MaskPredictions(len(files), tuple(skipped), place)


def predict_image(
    segmenter: Segmenter, image: Tensor, view: TestView | None = None, prior: str | Tensor | None = None
) -> tuple[Tensor, float]:
    """Return the classes of an image of any size, int64 ``[H, W]`` on the CPU, and the mean probability of them.

    An image that training would have brought to another size is predicted at that one; its probabilities are brought
    back to the image's own size (bilinear) before a pixel's class is chosen.

    Args:
        segmenter: computes where it lies.
        image: uint8 ``[3, H, W]``.
        view: sliding window, scales and mirror; None = the whole image, once.
        prior: see ``Segmenter.predict``.
    """
    height, width = image.shape[1:]
    shown = image if segmenter.size in (None, (height, width)) else resized(image, segmenter.size)
    probabilities = segmenter.predict(shown[None].to(segmenter.mean.device), prior, view)
    best, labels = largest_at_size(probabilities[0], (height, width))
    return labels.cpu(), float(best.float().mean())


def resized(image: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Return ``image`` (uint8 ``[3, H, W]``) at another height and width, as training reads images."""
    assert size is not None
    return _pixels(picture(image).resize((size[1], size[0]), Resampling.BILINEAR))


def _listed(words: Sequence[str | Path]) -> list[str]:
    """Return the image files that ``words`` name, each once."""
    arrays = [str(word) for word in words if str(word).lower().endswith(".npz")]
    if arrays:
        raise UserError(f"{arrays[0]} holds arrays, but masks are written for image files; give those.")
    files: dict[str, None] = {}
    for source in find_images(words, 3, (1, 1)):
        if isinstance(source, ArrayImages):  # out of a pattern
            raise UserError(f"{source.file} holds arrays, but masks are written for image files; give those.")
        files |= dict.fromkeys(source)
    return list(files)


def _check_opens(file: str) -> None:
    try:
        with opened(file):
            pass
    except BadImage as error:
        raise _unreadable(file, error) from None


def _unreadable(file: str, error: BadImage) -> UserError:
    return UserError(
        f"{file} cannot be read as an image ({error.reason}); mend or leave it out, or add --on_bad_image skip."
    )


def _view(
    run: Path, window: Sequence[int] | None, stride: float | None, scales: Sequence[float] | None, mirror: bool
) -> TestView:
    """Return how images are looked at: as the run was tested, as far as that is known here, but for what is given."""
    there = (run / "config.yaml").exists()
    config = make_config(parse_values(read_config(run), str(run / "config.yaml"))) if there else TrainConfig()
    return test_view(with_view(config, window, stride, scales, mirror))


def _prior(prior: str, segmenter: Segmenter) -> Tensor | None:
    if prior == "none":
        return None
    if not Path(prior).suffix and not Path(prior).exists() and prior not in _WORDS:
        raise unknown_name("prior", prior, (*_WORDS, "FILE.csv"))
    return find_prior(prior, segmenter)


def _read_ahead(files: Sequence[str]) -> Iterator[Tensor | BadImage]:
    """Yield the images, uint8 ``[3, H, W]``, or why one cannot be read; a few are decoded before they are needed."""

    def read(file: str) -> Tensor | BadImage:
        try:
            return _pixels(read_image(file))
        except BadImage as error:
            return error

    with ThreadPoolExecutor(_AHEAD) as pool:
        waiting: deque[Future[Tensor | BadImage]] = deque()
        try:
            for file in files:
                waiting.append(pool.submit(read, file))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _pixels(image: Any) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _columns(class_names: Iterable[str]) -> dict[str, Column]:
    return {**_FIXED, **{_column(name): "number" for name in class_names}, _ERROR: "text"}


def _column(class_name: str) -> str:
    """Return the name of a class's column: its own, unless the table has such a column already."""
    return f"class {class_name}" if class_name in (*_FIXED, _ERROR) else class_name


def _row(file: str, mask: str, labels: Tensor, confidence: float, class_names: Sequence[str]) -> Row:
    shares = torch.bincount(labels.flatten(), minlength=len(class_names)).double() / labels.numel()
    known: dict[str, Any] = {"image": file, "mask": mask, "confidence": float(f"{confidence:.6g}"), _ERROR: None}
    figures = zip(class_names, shares.tolist(), strict=True)
    return known | {_column(name): float(f"{share:.6g}") for name, share in figures}
