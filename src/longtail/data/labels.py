"""Labels as written to class numbers 0..C-1, and everything that can be wrong with labels."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from longtail.data.listing import Listing
from longtail.data.multi_label import refuse_multi_label
from longtail.errors import UserError, counted, unknown_name

_WHOLE = re.compile(r"[+-]?[0-9]+(\.0+)?")
_AS_NAMES = "pass --source.labels names to take them as names"


def number_labels(
    listing: Listing, how: str = "auto", unknown: str = "error"
) -> tuple[Listing, Tensor, tuple[str, ...], tuple[str, ...]]:
    """Return the class number of each listed image.

    Names are sorted (by value if all are whole numbers) unless the listing fixes the order of its classes.
    Whole numbers must be 0..C-1 or 1..C without gaps; those of a numbered listing 0..C-1. Blanks around a
    label do not count.

    Args:
        listing: images with labels as written.
        how: ``"names"``, ``"numbers"``, or ``"auto"``: numbers if every label is a whole number.
        unknown: what becomes of test images whose label no training image has: ``"error"`` or ``"skip"``.

    Returns:
        The listing (without the skipped test images), int64 labels ``[N]``, the C class names, and notes.

    Raises:
        UserError: several labels an image, a gap in numbers, a class without training image, labels that
            only the test set has, or fewer than 2 classes.
    """
    if how not in ("auto", "names", "numbers"):
        raise unknown_name("source.labels", how, ("auto", "names", "numbers"))
    if unknown not in ("error", "skip"):
        raise unknown_name("source.unknown_labels", unknown, ("error", "skip"))
    if not len(listing):
        raise UserError(f"{listing.name}: no labelled images.")
    notes: list[str] = []
    keys, as_numbers = _keys(listing, how, notes)
    train, test = _counts(listing, keys)
    unknown_keys = in_order(key for key in test if key not in train)
    if unknown_keys:
        notes.append(_unknown_labels(listing, unknown_keys, test, unknown))
        kept = [i for i, text in enumerate(listing.labels) if keys[text] in train]
        listing = listing.select(kept)
    if as_numbers:
        _check_gaps(listing, train, [*train, *unknown_keys])
    classes, names = _classes(listing, as_numbers, train, set(unknown_keys))
    _check_classes(listing, classes, names, train)
    if listing.splits is not None:
        notes += _without_test_images(listing, classes, names, test)
    notes += _near_duplicates(listing, names)
    number_of = {key: number for number, key in enumerate(classes)}
    of_text = {text: number_of[key] for text, key in keys.items() if key in number_of}
    numbers = np.fromiter((of_text[text] for text in listing.labels), np.int64, len(listing))
    labels = torch.from_numpy(numbers)
    return listing, labels, names, tuple(notes)


def known_labels(listing: Listing, class_names: Sequence[str], how: str = "auto") -> dict[str, int]:
    """Return the class number of each label text of ``listing`` that means one of a trained model's classes.

    Whole numbers are known in any spelling (``03`` is class ``3``), unless ``how`` is ``"names"``. The numbers of a
    split list mean the model's class of that name; where its names are no numbers, of the name that the list's own
    folders give them; and only where those say nothing, of that position.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    if listing.numbered and not all(_WHOLE.fullmatch(name) for name in class_names):
        own = dict(enumerate(listing.class_names or ()))
        by_folder = {str(place): numbers[name] for place, name in own.items() if name in numbers}
        numbers = by_folder or {str(number): number for number in range(len(class_names))}
    found: dict[str, int] = {}
    for text in set(listing.labels):
        key = text.strip()
        if text not in numbers and key not in numbers and how != "names" and _WHOLE.fullmatch(key):
            key = str(int(key.split(".")[0]))
        if text in numbers or key in numbers:
            found[text] = numbers[text if text in numbers else key]
    return found


def _keys(listing: Listing, how: str, notes: list[str]) -> tuple[dict[str, str], bool]:
    """Return what each label text means (stripped; a plain number if labels are numbers), and whether they are."""
    texts = set(listing.labels)
    if listing.class_names is not None and not listing.numbered:  # folder names, taken to the letter
        keys = {text: text for text in texts}
    else:
        keys = {text: text.strip() for text in texts}
        if not listing.numbered and how != "names":
            refuse_multi_label(listing.name, set(keys.values()))
    fixed = listing.class_names is not None and not listing.numbered
    meant = listing.class_names if fixed and listing.class_names else sorted(keys.values())
    strange = next((key for key in meant if not _WHOLE.fullmatch(key)), None)
    if how == "names" or (how == "auto" and (strange is not None or fixed)):
        return keys, False
    if strange is not None:
        raise UserError(f"{listing.name}: label {strange!r} is no whole number, as --source.labels numbers asks for.")
    numbers = {text: str(int(key.split(".")[0])) for text, key in keys.items()}
    first: dict[str, str] = {}
    for text in sorted(texts):
        other = first.setdefault(numbers[text], text)
        if keys[other] != keys[text]:
            notes.append(f"{listing.name}: labels {keys[other]!r} and {keys[text]!r} are taken as one number.")
            break
    return numbers, True


def _counts(listing: Listing, keys: dict[str, str]) -> tuple[Counter[str], Counter[str]]:
    """Return the images of each label in training and test; without splits all count as training."""
    train: Counter[str] = Counter()
    test: Counter[str] = Counter()
    if listing.splits is None:
        for text, count in Counter(listing.labels).items():
            train[keys[text]] += count
    else:
        for (text, split), count in Counter(zip(listing.labels, listing.splits, strict=True)).items():
            (train if split == "train" else test)[keys[text]] += count
        if not train:
            raise UserError(f"{listing.name}: no training images.")
    return train, test


def _unknown_labels(listing: Listing, unknown: list[str], test: Counter[str], what: str) -> str:
    names = listing.class_names if listing.numbered else None
    shown = ", ".join(f"{_name(key, names)!r} ({_images(test[key])})" for key in unknown[:3])
    more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
    total = sum(test[key] for key in unknown)
    if what == "error":
        raise UserError(
            f"{listing.name}: {counted(len(unknown), 'test label')} that no training image has: {shown}{more}"
            f"; give them training images, or pass --source.unknown_labels skip to leave {_images(total)} out."
        )
    return (
        f"{listing.name}: {_images(total)} left out of the test set, because no training image has their label: "
        f"{shown}{more}."
    )


def _check_gaps(listing: Listing, train: Iterable[str], everything: Iterable[str]) -> None:
    """Raise unless the numbers of training, or of training and test, run 0..C-1 (or 1..C) without gaps."""
    starts = (0,) if listing.numbered else (0, 1)
    for keys in (train, everything):
        numbers = sorted(int(key) for key in keys)
        if numbers[0] in starts and numbers[-1] - numbers[0] + 1 == len(numbers):
            return
    if numbers[0] < 0:
        raise UserError(f"{listing.name}: label {numbers[0]} is no class number, which start at 0; {_AS_NAMES}.")
    start = min(numbers[0], starts[-1])
    missing = next(start + i for i, number in enumerate([*numbers, -1]) if number != start + i)
    allowed = "0..C-1" if listing.numbered else "0..C-1 or 1..C"
    raise UserError(
        f"{listing.name}: labels are numbers from {numbers[0]} to {numbers[-1]} with gaps (no image has {missing}), "
        f"but class numbers are {allowed}; number the classes without gaps, or {_AS_NAMES}."
    )


def _classes(
    listing: Listing, as_numbers: bool, train: Counter[str], unknown: set[str]
) -> tuple[list[str], tuple[str, ...]]:
    """Return the keys of the classes in order, and their names."""
    fixed = listing.class_names
    if fixed is None or listing.numbered:
        keys = in_order(train)
    elif as_numbers:
        keys = in_order({*train, *(str(int(name)) for name in fixed)})
    else:
        keys = list(fixed)
    keys = [key for key in keys if key not in unknown]
    names = tuple(_name(key, fixed if listing.numbered else None) for key in keys)
    return keys, names if len(set(names)) == len(names) else tuple(keys)


def _name(key: str, by_number: Sequence[str] | None) -> str:
    """Return the name of a class: where names are given by number, that of its number."""
    if by_number is None or not key.isdecimal() or int(key) >= len(by_number):
        return key
    return by_number[int(key)]


def _check_classes(listing: Listing, classes: list[str], names: tuple[str, ...], train: Counter[str]) -> None:
    for key, name in zip(classes, names, strict=True):
        if any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name):
            raise UserError(f"{listing.name}: the class name {name!a} is not printable text; write another.")
        if not name:
            raise UserError(f"{listing.name}: a label is empty; name the class of every image.")
        if key not in train:
            kind = "training image and no test image" if listing.splits is not None else "image"
            raise UserError(f"{listing.name}: class {name!r} has no {kind}; give it some, or remove the class.")
    if len(classes) < 2:
        raise UserError(
            f"{listing.name}: all training images have one label, {names[0]!r}; a classifier needs at least 2 classes."
        )


def _without_test_images(listing: Listing, classes: list[str], names: tuple[str, ...], test: Counter[str]) -> list[str]:
    lacking = [name for key, name in zip(classes, names, strict=True) if key not in test]
    if not lacking or not test:
        return []
    return [
        f"{listing.name}: {len(lacking)} of {len(classes)} classes {'has' if len(lacking) == 1 else 'have'} no test "
        f"image, so no accuracy can be given there (first {lacking[0]!r})."
    ]


def _near_duplicates(listing: Listing, names: tuple[str, ...]) -> list[str]:
    """Tell of class names that differ only by letter case, inner blanks or the way accents are stored."""
    seen: dict[str, str] = {}
    pairs = []
    for name in names:
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        other = seen.setdefault(plain, name)
        if other != name:
            pairs.append((other, name))
    if not pairs:
        return []
    more = f" (and {len(pairs) - 1} more such pairs)" if len(pairs) > 1 else ""
    return [
        f"{listing.name}: classes {pairs[0][0]!r} and {pairs[0][1]!r} differ only by letter case or blanks, and are "
        f"taken as two classes{more}."
    ]


def in_order(keys: Iterable[str]) -> list[str]:
    """Sort whole numbers by value, anything else by code points."""
    listed = list(keys)
    if all(_WHOLE.fullmatch(key) for key in listed):
        return sorted(listed, key=lambda key: (int(key.split(".")[0]), key))
    return sorted(listed)


def _images(number: int) -> str:
    return counted(number, "image")
