"""What a look at the data means, in sentences: what spoils figures first, then what costs accuracy."""

from __future__ import annotations

from typing import Any

from longtail.errors import counted
from longtail.reporting.inspect_figures import FEW_TEST_IMAGES

WEAK = 0.7
"""Accuracy on held-out images below which a run's doubts of labels are mostly mistakes of its own."""

Figures = dict[str, Any]


def findings(figures: Figures) -> list[str]:
    """Return a sentence or two for everything worth a look, the most serious first."""
    found = [] if figures["refusal"] is None else [f"Training would refuse this data: {figures['refusal']}"]
    found += [*_leaks(figures), *_contradictions(figures), *_broken(figures), *_tests(figures), *_repeats(figures)]
    suspects = figures.get("label_suspects")
    if suspects and suspects["suspects"]:
        of = (
            f"all {suspects['folds']} folds"
            if suspects["folds"]
            else "the test images alone (a run with --folds tests all)"
        )
        found.append(
            f"{counted(suspects['suspects'], 'image')} may be labelled wrong, says {suspects['run']} on {of}: look at "
            f"{suspects['look_first']} first, the lowest of each class.{trust(suspects)}"
        )
    return found


def trust(suspects: Figures) -> str:
    """Return a warning where most doubts must be the model's own mistakes."""
    if suspects["accuracy"] >= WEAK:
        return ""
    share = f"{100 * suspects['accuracy']:.0f} %"
    return f" It is right on {share} of these images only, so most of its doubts are its own mistakes."


def _leaks(figures: Figures) -> list[str]:
    """Return what of the training set is in the test set too."""
    found = []
    exact, near = figures["exact_duplicates"], figures["near_duplicates"]
    if exact["across"]["groups"]:
        found.append(
            f"Leak: {_tested(exact['across']['test_images'])} also in the training set, pixel by pixel (first: "
            f"{_pair(exact['listed'][0])}); figures flatter the model."
        )
    if near and near["across"]["pairs"]:
        found.append(
            f"Leak: {_tested(near['across']['test_images'])} nearly the same as a training image (first: "
            f"{_pair(near['listed'][0]['images'])}); figures flatter the model."
        )
    torn = figures["groups_torn"]
    if torn and torn["torn"]:
        found.append(
            f"Leak: {torn['torn']} of {counted(torn['groups'], 'group')} lie in both training and test set, with "
            f"{counted(torn['test_images'], 'test image')} (first: {torn['listed'][0]!r}); split by whole groups."
        )
    beside = figures["numbered_neighbours"]
    if beside and beside["bursts"] and beside["test_images_beside_training"]:
        found.append(
            f"A guess, as no groups are given: files look like bursts or videos. Names that count one further look "
            f"alike (median likeness {beside['likeness']:.2f}, other pairs of a class {beside['usual_likeness']:.2f}), "
            f"and {_tested(beside['test_images_beside_training'])} numbered next to a training image (first: "
            f"{_pair(beside['first'])}). If so, give groups: --source.group_pattern, or a column 'group'."
        )
    return found


def _contradictions(figures: Figures) -> list[str]:
    found = []
    exact, near = figures["exact_duplicates"], figures["near_duplicates"]
    if exact["conflicting"]["groups"]:
        first = _first(exact["listed"], lambda images: len({i["class"] for i in images}) > 1)
        found.append(
            f"{counted(exact['conflicting']['groups'], 'image')} (equal pixels) lie under more than one class (first: "
            f"{first}): they cannot both be right."
        )
    if near and near["conflicting"]["pairs"]:
        lists = [entry["images"] for entry in near["listed"]]
        found.append(
            f"{counted(near['conflicting']['pairs'], 'pair')} of nearly equal images lie under two classes (first: "
            f"{_first(lists, lambda images: len({i['class'] for i in images}) > 1)})."
        )
    return found


def _broken(figures: Figures) -> list[str]:
    broken = figures["broken"]
    if not broken["count"]:
        return []
    reasons = ", ".join(f"{reason} {count}" for reason, count in list(broken["reasons"].items())[:5])
    file = broken["files"][0]
    return [
        f"{counted(broken['count'], 'file')} cannot be read ({reasons}; first: {file['file']}): mend them, or leave "
        "them out with --on_bad_image skip."
    ]


def _tests(figures: Figures) -> list[str]:
    """Return what the test set cannot tell."""
    found = []
    classes, without = figures["class_count"], figures["classes_without_test_images"]
    few = figures["classes_with_few_test_images"]
    single = sum(row["train_images"] + row["test_images"] == 1 for row in figures["classes"])
    empty = sum(row["train_images"] == 0 for row in figures["classes"])
    if empty:
        found.append(f"{counted(empty, 'class has', 'classes have')} no training image that can be read.")
    if single:
        found.append(
            f"{counted(single, 'class has', 'classes have')} a single image: it can be trained on, not tested."
        )
    if without:
        have, their = ("has", "its") if without == 1 else ("have", "their")
        found.append(f"{without} of {classes} classes {have} no test image: nothing can be said of {their} accuracy.")
    if few:
        held_out = (figures["test_split"] or "").startswith("held out")
        advice = " --folds 5 tests every image once." if held_out else ""
        found.append(
            f"{few} of {classes} classes {'has' if few == 1 else 'have'} fewer than {FEW_TEST_IMAGES} test images: "
            f"accuracy there is a rough guess.{advice}"
        )
    return found


def _repeats(figures: Figures) -> list[str]:
    """Return what counts more than once."""
    found = []
    exact, near = figures["exact_duplicates"], figures["near_duplicates"]
    for kind, word in (("within_train", "training"), ("within_test", "test")):
        if exact[kind]["groups"]:
            found.append(f"{counted(exact[kind]['repeats'], f'{word} image')} repeat another pixel by pixel.")
        if near and near[kind]["pairs"]:
            found.append(f"{counted(near[kind]['pairs'], 'pair')} of {word} images are nearly the same.")
    return found


def _tested(number: int) -> str:
    return f"{counted(number, 'test image')} {'is' if number == 1 else 'are'}"


def _pair(images: list[Figures]) -> str:
    """Return two of the images, of different sides or classes if there are such."""
    first = images[0]
    other = next((i for i in images if i["side"] != first["side"]), None)
    other = other or next((i for i in images if i["class"] != first["class"]), images[1])
    return f"{first['file']} = {other['file']}"


def _first(lists: list[Any], wanted: Any) -> str:
    images = next((images for images in lists if wanted(images)), None)
    return "beyond those listed" if images is None else " = ".join(f"{i['file']} as {i['class']}" for i in images[:2])
