"""What a look at the data found, as plain figures ready for JSON, a terminal and a page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longtail.data.duplicates import find_duplicates
from longtail.data.image_set import ImageFiles
from longtail.data.name_counters import numbered_neighbours
from longtail.data.near_duplicates import LIKENESS, find_near_duplicates
from longtail.data.survey import LEFT_OUT, TEST, TRAIN, Survey
from longtail.metrics import GROUPS
from longtail.metrics.groups import group_index
from longtail.metrics.label_errors import label_errors
from longtail.training.held_out import HeldOut, image_keys

MOST_LISTED = 200
"""Pairs, files and suspects of a kind that are listed one by one; all are counted."""
FEW_TEST_IMAGES = 10
"""Below this number of test images an accuracy of a class says little."""
SUSPECTS_A_CLASS = 20
LOOK_FIRST_SHARE = 0.1
"""Of a class's images, the most that are told to be looked at first: a weak model doubts most of what it is shown."""
_TOLD = (
    "cannot be read and",
    "also in the training set",
    "there under more than one class",
    "pixel by pixel",
    "groups lie in both",
)
"""Of notes on reading the data: those that the findings tell in more detail."""

Figures = dict[str, Any]


def data_figures(survey: Survey, edges: tuple[int, int]) -> Figures:
    """Return every figure that needs the images alone; ``edges`` divide many, medium and few."""
    counted = {side: _class_counts(survey, survey.sides == side) for side in (TRAIN, TEST)}
    broken = np.zeros(len(survey), np.bool_)
    broken[list(survey.facts.errors)] = True
    train, names = counted[TRAIN], survey.images.class_names
    groups = group_index(torch.from_numpy(train), edges).tolist()
    not_read = _class_counts(survey, broken)
    order = np.lexsort((np.arange(len(names)), -train)).tolist()
    columns = (train, counted[TEST], not_read)
    classes = [
        {"class": names[k], "group": GROUPS[groups[k]]}
        | dict(zip(("train_images", "test_images", "broken_files"), (int(c[k]) for c in columns), strict=True))
        for k in order
    ]
    least, most = int(train.min()), int(train.max())
    notes = survey.splits.notes if survey.splits else ()
    return {
        "data": survey.name,
        "images": len(survey),
        "train_images": int(train.sum()),
        "test_images": int(counted[TEST].sum()),
        "left_out_images": int((survey.sides == LEFT_OUT).sum()) - len(survey.facts.errors),
        "test_split": survey.splits.test_split if survey.splits else None,
        "class_count": len(names),
        "largest_class": most,
        "smallest_class": least,
        "imbalance_factor": most / least if least else None,
        "group_edges": list(edges),
        "groups": {group: _group_row(classes, group) for group in GROUPS},
        "classes_without_test_images": sum(row["test_images"] == 0 for row in classes),
        "classes_with_few_test_images": sum(0 < row["test_images"] < FEW_TEST_IMAGES for row in classes),
        "classes": classes,
        "refusal": survey.refusal,
        "notes": [note for note in notes if not any(words in note for words in _TOLD)],
        "pixels": pixel_figures(survey),
        "broken": broken_files(survey),
        "exact_duplicates": exact_duplicates(survey),
        "near_duplicates": near_duplicates(survey),
        "groups_torn": torn_groups(survey),
        "numbered_neighbours": neighbours(survey),
    }


def _class_counts(survey: Survey, which: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.bincount(survey.labels[which], minlength=survey.images.num_classes)


def _group_row(classes: Sequence[Figures], group: str) -> dict[str, int]:
    rows = [row for row in classes if row["group"] == group]
    return {"classes": len(rows)} | {key: sum(row[key] for row in rows) for key in ("train_images", "test_images")}


def pixel_figures(survey: Survey) -> Figures:
    """Return sizes (pixels), kinds of pixels and file endings; of files that were looked at."""
    facts = survey.facts
    looked = facts.widths > 0
    sides = np.sort(np.stack([facts.widths[looked], facts.heights[looked]], 1), axis=1)

    def spread(values: NDArray[np.int32]) -> dict[str, float] | None:
        if not len(values):
            return None
        return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}

    modes = Counter(facts.mode_names[mode] for mode in facts.modes[looked].tolist())
    endings: Counter[str] = Counter()
    if isinstance(survey.images, ImageFiles):
        paths = survey.images.paths
        endings.update(PurePosixPath(paths[i]).suffix.lower() for i in range(len(paths)))
    return {
        "looked_at": int(looked.sum()),
        "shorter_side": spread(sides[:, 0]),
        "longer_side": spread(sides[:, 1]),
        "modes": dict(modes.most_common()),
        "endings": dict(endings.most_common()),
        "several_frames": int((facts.frames > 1).sum()),
    }


def broken_files(survey: Survey) -> Figures:
    """Return the files that cannot be read, with reasons."""
    errors = survey.facts.errors
    listed = [
        {"file": survey.title(i), "class": _class(survey, i), "reason": errors[i]} for i in list(errors)[:MOST_LISTED]
    ]
    return {"count": len(errors), "reasons": dict(Counter(errors.values()).most_common()), "files": listed}


def exact_duplicates(survey: Survey) -> Figures:
    """Return the groups of images with the same pixels, leaks first."""
    digests = np.where(survey.sides == LEFT_OUT, 0, survey.facts.digests)
    found = find_duplicates(digests, survey.labels, survey.sides == TEST)
    kinds = {kind: {tuple(group) for group in getattr(found, kind)} for kind in ("across", "conflicting")}

    def rank(group: list[int]) -> tuple[bool, bool, int]:
        return tuple(group) not in kinds["across"], tuple(group) not in kinds["conflicting"], group[0]

    listed = [_images(survey, group[:10]) for group in sorted(found.groups, key=rank)[:MOST_LISTED]]
    return {
        "groups": len(found.groups),
        "across": {
            "groups": len(found.across),
            "test_images": sum(int((survey.sides[group] == TEST).sum()) for group in found.across),
        },
        "conflicting": {"groups": len(found.conflicting)},
        "within_train": {"groups": len(found.within_train), "repeats": sum(len(g) - 1 for g in found.within_train)},
        "within_test": {"groups": len(found.within_test), "repeats": sum(len(g) - 1 for g in found.within_test)},
        "listed": listed,
    }


def near_duplicates(survey: Survey) -> Figures | None:
    """Return the pairs of images that are nearly the same, leaks first; None where pixels were not looked at."""
    if not len(survey.signatures.known):
        return None
    found = find_near_duplicates(survey.signatures, survey.facts.digests)
    kept = (survey.sides[found.pairs] != LEFT_OUT).all(1)
    pairs, likeness = found.pairs[kept], found.likeness[kept]
    sides, labels = survey.sides[pairs], survey.labels[pairs]
    across, conflicting = sides[:, 0] != sides[:, 1], labels[:, 0] != labels[:, 1]
    order = np.lexsort((-likeness, ~conflicting, ~across))[:MOST_LISTED].tolist()
    tested = pairs[across][sides[across] == TEST]
    return {
        "pairs": len(pairs),
        "least_likeness": LIKENESS,
        "compared": found.compared,
        "not_compared": {
            "too_small": found.too_small - len(survey.facts.errors),
            "plain": found.plain,
            "crowded": found.crowded,
        },
        "across": {"pairs": int(across.sum()), "test_images": len(np.unique(tested))},
        "conflicting": {"pairs": int(conflicting.sum())},
        "within_train": {"pairs": int(((sides == TRAIN).all(1)).sum())},
        "within_test": {"pairs": int(((sides == TEST).all(1)).sum())},
        "listed": [
            {"likeness": round(float(likeness[k]), 4), "images": _images(survey, pairs[k].tolist())} for k in order
        ],
    }


def torn_groups(survey: Survey) -> Figures | None:
    """Return the given groups that lie on both sides of the split; None without groups."""
    if survey.groups is None:
        return None
    sides: dict[str, set[int]] = {}
    for group, side in zip(survey.groups, survey.sides.tolist(), strict=True):
        if side != LEFT_OUT:
            sides.setdefault(group, set()).add(side)
    torn = [group for group, found in sides.items() if len(found) > 1]
    both = set(torn)
    tested = sum(g in both for g, s in zip(survey.groups, survey.sides.tolist(), strict=True) if s == TEST)
    return {"groups": len(sides), "torn": len(torn), "test_images": tested, "listed": torn[:MOST_LISTED]}


def neighbours(survey: Survey) -> Figures | None:
    """Return what file names that count up tell of bursts; None where groups are given, or without files."""
    images = survey.images
    if survey.groups is not None or not isinstance(images, ImageFiles) or not len(survey.signatures.known):
        return None
    found = numbered_neighbours(images.paths, survey.labels, survey.signatures.thumbs)
    pairs = found.pairs[(survey.sides[found.pairs] != LEFT_OUT).all(1)]
    sides = survey.sides[pairs]
    across = pairs[sides[:, 0] != sides[:, 1]]
    tested = across[survey.sides[across] == TEST]
    return {
        "pairs": len(pairs),
        "likeness": found.likeness,
        "usual_likeness": found.usual,
        "bursts": found.bursts,
        "test_images_beside_training": len(np.unique(tested)),
        "first": _images(survey, across[0].tolist()) if len(across) else None,
    }


def suspect_labels(survey: Survey, held: HeldOut, run: str) -> Figures | None:
    """Return the images whose label a run doubts, by class; None if it was tested on none of the images."""
    place = {key: index for index, key in enumerate(image_keys(survey.images))}
    errors = label_errors(held.logits, held.labels)
    images_of = torch.bincount(held.labels, minlength=len(held.class_names)).tolist()
    rows = []
    for label, (first, of) in enumerate(zip(errors.first(held.labels), images_of, strict=True)):
        if not len(first):
            continue
        most = min(len(first), math.ceil(LOOK_FIRST_SHARE * of), SUSPECTS_A_CLASS)
        look = min(most, max(1, round(float(errors.expected[label]))))
        images = [
            {
                "file": survey.title(place[held.keys[k]]),
                "class": held.class_names[label],
                "likelier": held.class_names[int(errors.likelier[k])],
                "probability": float(errors.given[k]),
                "likelier_probability": float(errors.other[k]),
            }
            for k in first.tolist()[:SUSPECTS_A_CLASS]
            if held.keys[k] in place
        ]
        rows.append({"class": held.class_names[label], "images": of, "suspects": len(first), "look_first": look})
        rows[-1]["expected"] = round(float(errors.expected[label]), 2)
        rows[-1]["listed"] = images
    known = sum(key in place for key in held.keys)
    if not known:
        return None
    rows.sort(key=lambda row: -row["look_first"])
    return {
        "run": run,
        "folds": held.folds,
        "images": len(held.keys),
        "accuracy": float((held.logits.argmax(1) == held.labels).double().mean()),
        "not_in_data": len(held.keys) - known,
        "suspects": sum(row["suspects"] for row in rows),
        "look_first": sum(row["look_first"] for row in rows),
        "classes": rows,
    }


def _class(survey: Survey, index: int) -> str:
    return survey.images.class_names[int(survey.labels[index])]


def _images(survey: Survey, places: Sequence[int]) -> list[dict[str, str]]:
    words = {TRAIN: "train", TEST: "test", LEFT_OUT: "left out"}
    return [{"file": survey.title(i), "class": _class(survey, i), "side": words[int(survey.sides[i])]} for i in places]


def size_bins(counts: Sequence[int]) -> list[tuple[str, int]]:
    """Return how many classes have 0, 1, 2-4, 5-9, 10-19, 20-49 ... images, without the empty bins at both ends."""
    edges = [0, 1, 2]
    while edges[-1] <= max(counts, default=0):
        power = 10 ** math.floor(math.log10(edges[-1]))
        edges.append({2: 5, 5: 10, 1: 2}[edges[-1] // power] * power)
    names = [f"{a}" if b == a + 1 else f"{a}-{b - 1}" for a, b in pairwise(edges)]
    inside = np.histogram(counts, bins=edges)[0].tolist() if len(edges) > 1 else []
    bins = list(zip(names, inside, strict=True))
    while bins and not bins[0][1]:
        bins.pop(0)
    while bins and not bins[-1][1]:
        bins.pop()
    return bins
