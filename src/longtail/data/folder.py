"""Image folders: one folder a class, with or without split folders above, to a list of labelled files."""

from __future__ import annotations

import os
from pathlib import Path

from longtail.data.labels import in_order
from longtail.data.listing import Listing
from longtail.data.scanning import first_image, scan
from longtail.errors import UserError, counted

SPLIT_WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "val"
)
"""Folder names, in lower case, that name a split."""

_OPTION = "--source.test"


def read_folder(root: Path, name: str, test: Path | None = None, training: bool = True) -> Listing:
    """Return the images of ``root/CLASS/*``, or of ``root/train/CLASS/*`` with ``root/test`` or ``root/val``.

    Split folders may be written in any letter case; where both a test and a validation folder exist, the
    validation images are left aside and counted in a note. Class names are the sorted folder names of
    training and test together. Hidden files are passed over, other files that are no images are counted in
    a note. A split word that holds images itself, beside other class folders, is a class (``train`` among
    vehicles). Linked folders are followed.

    Args:
        root: the folder.
        name: what the user called it.
        test: a second folder ``CLASS/*`` that holds the test images; their paths are absolute if it lies
            outside of ``root``.
        training: whether something is to be trained on it: it must then hold training images of 2 classes or more.

    Raises:
        UserError: the folder has another layout; the message names what was found and what to do.
    """
    root = root.expanduser()
    tree = _Tree(name, training)
    folders, images, files = scan(str(root))
    if test is not None:
        test = test.expanduser()
        if _same(root, test):
            raise UserError(f"{test}: {_OPTION} names the folder of the training images itself; name another one.")
        folders = [folder for folder in folders if not _same(root / folder, test)]
    if not folders:
        raise _no_folders(root, images, files)
    split_folders = _split_folders(tree, root, folders, given_test=test is not None)
    if split_folders is None:
        if images:
            raise UserError(
                f"{root} holds {counted(len(images), 'image')} beside its class folders (first {images[0]}), whose "
                "class is not known; put them into class folders or elsewhere."
            )
        tree.read_classes(str(root), "", folders, None if test is None else "train")
    else:
        _read_splits(tree, root, split_folders, given_test=test is not None)
        if images:
            tree.notes.append(
                f"{name}: {counted(len(images), 'image')} beside the split folders left out, first {images[0]}."
            )
    if test is not None:
        _read_test(tree, root, test)
    return tree.listing(root)


_MASKS = frozenset(("masks", "annotations"))
"""Folders that beside ``images`` hold no class but the classes of pixels."""


class _Tree:
    """The images gathered so far."""

    def __init__(self, name: str, training: bool) -> None:
        self.name = name
        self.training = training
        self.paths: list[str] = []
        self.labels: list[str] = []
        self.splits: list[str] = []
        self.classes: set[str] = set()
        self.notes: list[str] = []
        self.others = 0
        self.first_other = ""

    def read_classes(self, folder: str, prefix: str, classes: list[str], split: str | None) -> None:
        """Add the images of each class folder in ``folder``; paths start with ``prefix``."""
        for label in classes:
            below, images, files = scan(os.path.join(folder, label))
            for inner in below:
                self._refuse_images_in(folder, label, inner, classes, split)
            if files:
                self.first_other = self.first_other or f"{prefix}{label}/{files[0]}"
                self.others += len(files)
            start = f"{prefix}{label}/"
            self.paths += [start + image for image in images]
            self.labels += [label] * len(images)
            if split is not None:
                self.splits += [split] * len(images)
        self.classes.update(classes)

    def _refuse_images_in(self, folder: str, label: str, inner: str, classes: list[str], split: str | None) -> None:
        image = first_image(os.path.join(folder, label, inner))
        if image is None:
            return
        found = (
            f"{os.path.join(folder, label)} holds the folder {inner!r} with images (such as {label}/{inner}/{image})"
        )
        if label.lower() in SPLIT_WORDS and split is None and len(classes) > 1:
            other = next(c for c in classes if c != label)
            raise UserError(
                f"{found} beside the folder {other!r}: to take {label!r} as the test set pass {_OPTION} "
                f"{os.path.join(folder, label)}, or put the classes into a folder 'train' beside it."
            )
        hint = f"give {os.path.join(folder, label)} as the folder, or " if len(classes) == 1 else ""
        raise UserError(
            f"{found}, so it is not clear which level names the class: {hint}let each class folder hold its "
            "images directly, or list the images in a manifest."
        )

    def listing(self, root: Path) -> Listing:
        """Return what was gathered, checked."""
        classes = in_order(self.classes)
        masks = sorted(_MASKS.intersection(classes))
        if len(classes) == 2 and "images" in classes and masks:
            raise UserError(
                f"{root} holds images and {masks[0]}, as segmentation has them: train on them with --task "
                "segmentation. If they are two classes of images, give the folders other names."
            )
        if not self.paths:
            raise UserError(
                f"{root}: no image in its {counted(len(classes), 'class folder')} "
                f"(first {classes[0]!r}); images end in .jpg, .png, .webp, .tif, .bmp or the like."
            )
        if self.training and self.splits and "train" not in self.splits:
            raise UserError(f"{root}: no training image in its class folders; add some.")
        if self.training and len(classes) == 1:
            raise UserError(
                f"{root}: only one class folder, {classes[0]!r}; at least 2 are needed, each named after its class."
            )
        try:
            "".join(classes).encode()
            "".join(self.paths).encode()
        except UnicodeEncodeError:
            bad = next(path for path in self.paths + classes if any("\ud800" <= sign <= "\udfff" for sign in path))
            raise UserError(f"{root}: the name {bad!a} is not UTF-8 text; rename the file or folder.") from None
        if self.others:
            self.notes.append(
                f"{self.name}: {counted(self.others, 'file that is no image', 'files that are no images')} left out, "
                f"first {self.first_other}."
            )
        return Listing(
            self.name,
            root,
            self.paths,
            self.labels,
            self.splits or None,
            None,
            class_names=tuple(classes),
            notes=tuple(self.notes),
        )


def _split_folders(tree: _Tree, root: Path, folders: list[str], given_test: bool) -> dict[str, str] | None:
    """Return the folder of each split, or None if ``folders`` are classes."""
    words = [folder for folder in folders if folder.lower() in SPLIT_WORDS]
    others = [folder for folder in folders if folder.lower() not in SPLIT_WORDS]
    train = [folder for folder in words if SPLIT_WORDS[folder.lower()] == "train"]
    if others:
        # `train` among vehicles, or `valid` beside `invalid`, holds its images itself; a split holds class folders.
        if not train or scan(str(root / train[0]))[1]:
            return None
        for other in others:
            image = first_image(str(root / other))
            if image is not None:
                raise UserError(
                    f"{root} holds the split folder {train[0]!r} and beside it the folder {other!r} with images (such "
                    f"as {other}/{image}); move {other!r} into {train[0]!r} or out of {root}."
                )
        tree.notes.append(f"{tree.name}: folder {others[0]!r} holds no images and is left aside.")
    by_split: dict[str, str] = {}
    for word in words:
        split = SPLIT_WORDS[word.lower()]
        if split in by_split:
            raise UserError(
                f"{root} holds both {by_split[split]!r} and {word!r}, which mean the same split; join or rename them."
            )
        by_split[split] = word
    if tree.training and "train" not in by_split:
        found = " and ".join(repr(word) for word in words)
        raise UserError(f"{root} holds {found} but no folder 'train'; add one, with one folder a class in it.")
    if list(by_split) == ["train"] and not given_test:
        train_folder = root / by_split["train"]
        raise UserError(
            f"{root} holds {by_split['train']!r} but neither 'test' nor 'val'; give {train_folder} as the folder "
            f"to have test images held out, add {root / 'test'}, or name the test images by {_OPTION}."
        )
    return by_split


def _read_splits(tree: _Tree, root: Path, by_split: dict[str, str], given_test: bool) -> None:
    used = "given" if given_test else "test" if "test" in by_split else "val"
    for split, folder in by_split.items():
        place = str(root / folder)
        classes, images, _ = scan(place)
        if split not in ("train", used):
            count = len(images) + sum(len(scan(os.path.join(place, label))[1]) for label in classes)
            test = "the test images come from another folder" if given_test else f"{by_split[used]!r} is the test set"
            tree.notes.append(f"{tree.name}: {counted(count, 'image')} of {folder!r} left aside, because {test}.")
            continue
        if images:
            raise UserError(
                f"{place} holds {counted(len(images), 'image')} outside of class folders (first {images[0]}), whose "
                f"class is not known; put them into folders named after their class, or move them out of {root}."
            )
        if not classes:
            raise UserError(f"{place} holds no class folders; put the images into one folder a class.")
        tree.read_classes(place, f"{folder}/", classes, "train" if split == "train" else "test")
        if split != "train" and "test" not in tree.splits:
            raise UserError(f"{place} holds no image in its class folders (first {classes[0]!r}).")


def _read_test(tree: _Tree, root: Path, test: Path) -> None:
    classes, images, _ = scan(str(test))
    if images or not classes:
        found = (
            f"{counted(len(images), 'image')} outside of class folders (first {images[0]})"
            if images
            else "no class folders"
        )
        raise UserError(f"{test} holds {found}, but {_OPTION} takes a folder with one folder a class.")
    place = test.resolve()
    inside = place.is_relative_to(root.resolve())
    prefix = place.relative_to(root.resolve()).as_posix() if inside else place.as_posix()
    before = len(tree.paths)
    tree.read_classes(str(test), f"{prefix.rstrip('/')}/", classes, "test")
    if len(tree.paths) == before:
        raise UserError(f"{test} holds no image in its class folders (first {classes[0]!r}).")


def _no_folders(root: Path, images: list[str], files: list[str]) -> UserError:
    table = next((file for file in files if file.lower().endswith((".csv", ".tsv", ".parquet", ".txt"))), None)
    hint = f" (is {root / table} one?)" if table else ""
    advice = f"put each image into a folder named after its class, or give a manifest{hint}"
    if images:
        return UserError(
            f"{root} holds {counted(len(images), 'image')} (first {images[0]}) but no class folders; {advice}."
        )
    return UserError(f"{root} holds {'no folders and no images' if files else 'nothing: it is empty'}; {advice}.")


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
