"""What a tree of images and masks says, before any file is looked at: pairs, splits, sequences, classes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from longtail.data.listing import IMAGE_ENDINGS
from longtail.errors import UserError
from longtail.segmentation.data.class_files import ClassEntry

_MASK_ENDING = re.compile(r"[_-](masks?|labels?|gt|seg|segmentation|annotations?|L)$", re.IGNORECASE)


@dataclass(frozen=True)
class MaskListing:
    """Pairs of an image and its mask, as a layout finds them.

    Attributes:
        name: what the user called the data.
        root: folder that the paths are relative to.
        images, masks: N paths with forward slashes.
        splits: ``"train"`` or ``"test"`` for each pair; None if the layout does not say.
        groups: what a split must not tear apart, one a pair; None if the layout knows of none.
        frames: whether groups are films, in the order of the paths: blocks of frames are held out, not whole films.
        entries: the classes, where the layout fixes them.
        ignored: mask values that count nowhere in this layout, beside those that the user names.
        zero_is_other: whether masks hold 1..C and 0 counts nowhere, unless the user says otherwise.
        test_split: how the test images were chosen, in words; "" where ``splits`` is None.
        alone: (file, reason) of images without a mask, and of masks without an image.
        left_aside: images of a validation split that is not read.
        notes: sentences for the user.
    """

    name: str
    root: Path
    images: list[str]
    masks: list[str]
    splits: list[str] | None = None
    groups: list[str] | None = None
    frames: bool = False
    entries: tuple[ClassEntry, ...] | None = None
    ignored: tuple[int, ...] = ()
    zero_is_other: bool = False
    test_split: str = ""
    alone: tuple[tuple[str, str], ...] = ()
    left_aside: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def select(self, places: Sequence[int]) -> MaskListing:
        """Return the pairs at ``places``, in that order."""

        def pick(values: list[str] | None) -> list[str] | None:
            return None if values is None else [values[place] for place in places]

        return replace(
            self,
            images=[self.images[place] for place in places],
            masks=[self.masks[place] for place in places],
            splits=pick(self.splits),
            groups=pick(self.groups),
        )


def list_images(root: Path, folder: str) -> list[str]:
    """Return the image files below ``root/folder``, relative to ``root``, sorted; hidden ones are passed over.

    Raises:
        UserError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise UserError(f"folder {error.filename} cannot be read ({error.strerror}); change its permissions.")

    found = []
    for here, folders, files in os.walk(root / folder, onerror=fail, followlinks=True):
        folders[:] = [inner for inner in folders if inner[0] != "." and inner != "__MACOSX"]
        below = Path(here).relative_to(root).as_posix()
        found += [f"{below}/{file}" for file in files if file[0] != "." and Path(file).suffix.lower() in IMAGE_ENDINGS]
    return sorted(found)


def pair_by_stem(
    name: str,
    root: Path,
    image_folder: str,
    mask_folder: str,
    image_ending: str = "",
    mask_ending: str | None = None,
) -> MaskListing:
    """Return images and masks of one name, in the same folder below their two folders, in the order of the images.

    Args:
        name: what the user called the data.
        root: its folder.
        image_folder, mask_folder: below ``root``.
        image_ending: of the images' names before the dot, which does not count; files without it are passed over.
        mask_ending: likewise; None: a mask has its image's name, or that with ``_mask``, ``_label``, ``_gt`` or alike.

    Raises:
        UserError: two images, or two masks, of one name; or there are files but no pair.
    """
    images = _by_stem(root, image_folder, list_images(root, image_folder), image_ending)
    mask_files = list_images(root, mask_folder)
    if mask_ending is not None:
        masks = _by_stem(root, mask_folder, mask_files, mask_ending)
    else:
        masks = _by_stem(root, mask_folder, [file for file in mask_files if _stem(mask_folder, file) in images], "")
        others = [file for file in mask_files if _stem(mask_folder, file) not in images]
        plain = _by_stem(root, mask_folder, others, "", _MASK_ENDING)
        both = next((stem for stem in plain if stem in masks), None)
        if both is not None:
            raise UserError(f"{root / plain[both]} and {root / masks[both]} are both masks of one image; keep one.")
        masks |= plain
    pairs = [stem for stem in images if stem in masks]
    if images and masks and not pairs:
        raise UserError(
            f"no mask in {root / mask_folder} has the name of an image in {root / image_folder} (the first are "
            f"{next(iter(masks.values()))} and {next(iter(images.values()))}); name each mask as its image, with or "
            "without _mask at the end."
        )
    alone = [(path, "an image without a mask") for stem, path in images.items() if stem not in masks]
    alone += [(path, "a mask without an image") for stem, path in masks.items() if stem not in images]
    return MaskListing(name, root, [images[s] for s in pairs], [masks[s] for s in pairs], alone=tuple(alone))


def joined(parts: Sequence[tuple[str, MaskListing]]) -> MaskListing:
    """Return one list of several parts of a tree, each with the split that it is, in order."""
    first = parts[0][1]
    return replace(
        first,
        images=[path for _, part in parts for path in part.images],
        masks=[path for _, part in parts for path in part.masks],
        splits=[split for split, part in parts for _ in part.images],
        alone=tuple(pair for _, part in parts for pair in part.alone),
    )


def _stem(folder: str, path: str) -> str:
    """Return a path without its ending, relative to ``folder``."""
    return path[len(folder) + 1 : path.rfind(".")]


def _by_stem(
    root: Path, folder: str, paths: Sequence[str], ending: str, pattern: re.Pattern[str] | None = None
) -> dict[str, str]:
    """Return the path of each stem, without what does not count of it."""
    found: dict[str, str] = {}
    for path in paths:
        stem = _stem(folder, path)
        if not stem.endswith(ending):
            continue
        stem = stem.removesuffix(ending)
        stem = stem if pattern is None else pattern.sub("", stem)
        if stem in found:
            raise UserError(f"{root / found[stem]} and {root / path} have the same name; keep one of them.")
        found[stem] = path
    return found
