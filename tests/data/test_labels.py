"""Labels as written to class numbers: against a plain loop, and one sentence for everything wrong with labels."""

import random
from pathlib import Path

import pytest
import torch

from longtail.data.labels import number_labels
from longtail.data.listing import Listing
from longtail.errors import UserError


def _listing(train, test=None, **options):
    labels = [*train, *(test or [])]
    splits = None if test is None else ["train"] * len(train) + ["test"] * len(test)
    paths = [f"{i}.jpg" for i in range(len(labels))]
    return Listing("photos", Path("."), paths, labels, splits, options.pop("groups", None), **options)


def _sentence(listing, *words, how="auto", unknown="error"):
    with pytest.raises(UserError) as caught:
        number_labels(listing, how, unknown)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert message.startswith("photos: ")
    assert "\n" not in message


def test_names_against_a_plain_loop():
    draw = random.Random(0)
    names = [f"kind {c}" for c in range(30)]
    train = names + draw.choices(names, k=500)
    test = draw.choices(names, k=200)
    _, labels, classes, _ = number_labels(_listing(train, test))
    assert classes == tuple(sorted(names))
    assert [classes[label] for label in labels.tolist()] == train + test
    assert labels.dtype == torch.int64


@pytest.mark.parametrize("start", [0, 1])
def test_numbers_in_order_of_value(start):
    written = [str(number) for number in range(start, start + 12)]
    listing, labels, classes, notes = number_labels(_listing(list(reversed(written))))
    assert classes == tuple(written)
    assert labels.tolist() == list(reversed(range(12)))
    assert notes == ()
    assert listing.labels == list(reversed(written))


def test_numbers_in_other_spellings_are_one():
    _, labels, classes, notes = number_labels(_listing(["0", "01", "1", "2.0"]))
    assert (labels.tolist(), classes) == ([0, 1, 1, 2], ("0", "1", "2"))
    assert "'01' and '1' are taken as one number" in notes[0]


def test_numbers_as_names_may_have_gaps():
    _, labels, classes, _ = number_labels(_listing(["10", "9", "500"]), "names")
    assert (labels.tolist(), classes) == ([1, 0, 2], ("9", "10", "500"))


def test_names_among_numbers_make_names():
    assert number_labels(_listing(["0", "1", "none"]))[2] == ("0", "1", "none")
    _sentence(_listing(["0", "1", "none"]), "label 'none' is no whole number", "--source.labels numbers", how="numbers")


@pytest.mark.parametrize(
    ("labels", "missing"),
    [(["0", "1", "3"], 2), (["1", "2", "4", "7"], 3), (["5", "6"], 1), (["0", "2", "9"], 1), (["2", "3"], 1)],
)
def test_gaps(labels, missing):
    _sentence(_listing(labels), f"no image has {missing}", "--source.labels names")
    assert len(number_labels(_listing(labels), "names")[2]) == len(labels)


def test_negative_numbers():
    _sentence(_listing(["-1", "0", "1"]), "label -1 is no class number", "--source.labels names")


def test_numbered_listing_starts_at_0_and_takes_its_names():
    listing = _listing(["2", "0", "1"], ["1"], numbered=True, class_names=("zebra", "ant", "mole"))
    _, labels, classes, _ = number_labels(listing)
    assert (labels.tolist(), classes) == ([2, 0, 1, 1], ("zebra", "ant", "mole"))
    _sentence(_listing(["1", "2"], numbered=True), "no image has 0", "are 0..C-1;")
    _sentence(_listing(["0", "2"], numbered=True), "no image has 1")
    assert number_labels(_listing(["5", "2"], numbered=True), "names")[2] == ("2", "5")


def test_folder_names_keep_their_order_and_are_not_taken_for_numbers():
    listing = _listing(["10", "2"], class_names=("10", "2"))
    assert number_labels(listing)[1].tolist() == [0, 1]
    with_gap = _listing(["1", "2", "10"], class_names=("1", "10", "2"))
    _sentence(with_gap, "no image has 3", how="numbers")
    counted = _listing(["0", "1", "2"], class_names=("0", "1", "2"))
    assert number_labels(counted, "numbers")[1].tolist() == [0, 1, 2]
    assert number_labels(_listing(["a|b", "a", "b"], class_names=("a", "a|b", "b")))[2] == ("a", "a|b", "b")


def test_blanks_around_labels_do_not_count():
    _, labels, classes, notes = number_labels(_listing(["cat", " cat", "dog ", "dog"]))
    assert (labels.tolist(), classes, notes) == ([0, 0, 1, 1], ("cat", "dog"), ())


def test_names_that_differ_by_case_or_inner_blanks_are_told():
    _, _, classes, notes = number_labels(_listing(["Cat", "cat", "great dane", "great  dane", "eel"]))
    assert len(classes) == 5
    assert len(notes) == 1
    assert "'Cat' and 'cat'" in notes[0]
    assert "1 more such pair" in notes[0]


def test_unknown_labels_of_the_test_set():
    listing = _listing(["a", "b"], ["a", "x", "y", "y", "z", "w", "b"])
    words = (
        "4 test labels that no training image has: 'w' (1 image), 'x' (1 image), 'y' (2 images) and 1 more",
        "skip to",
    )
    _sentence(listing, *words, "leave 5 images out")


def test_unknown_labels_skipped():
    listing = _listing(["a", "b"], ["a", "x", "b"], groups=["g0", "g1", "g2", "g3", "g4"])
    kept, labels, classes, notes = number_labels(listing, unknown="skip")
    assert kept.paths == ["0.jpg", "1.jpg", "2.jpg", "4.jpg"]
    assert kept.splits == ["train", "train", "test", "test"]
    assert kept.groups == ["g0", "g1", "g2", "g4"]
    assert (labels.tolist(), classes) == ([0, 1, 0, 1], ("a", "b"))
    assert "1 image left out of the test set" in notes[0]
    folder = _listing(["a", "c"], ["b"], class_names=("a", "b", "c"))
    assert number_labels(folder, unknown="skip")[2] == ("a", "c")


def test_unknown_numbers_skipped():
    listing = _listing(["0", "1"], ["1", "7"])
    _sentence(listing, "1 test label that no training image has: '7'")
    assert number_labels(listing, unknown="skip")[2] == ("0", "1")
    _, labels, classes, _ = number_labels(_listing(["0", "2"], ["1", "2"], numbered=True), unknown="skip")
    assert (labels.tolist(), classes) == ([0, 1, 1], ("0", "2"))


def test_class_without_any_image():
    folder = _listing(["a", "c"], ["a"], class_names=("a", "b", "c"))
    _sentence(folder, "class 'b' has no training image and no test image")
    _sentence(_listing(["a", "c"], class_names=("a", "b", "c")), "class 'b' has no image;")


def test_class_with_test_images_only_says_how_many():
    folder = _listing(["a", "c"], ["b", "b"], class_names=("a", "b", "c"))
    _sentence(folder, "no training image has: 'b' (2 images)")


def test_classes_without_test_image_are_told():
    notes = number_labels(_listing(["a", "b", "c"], ["b"]))[3]
    assert len(notes) == 1
    assert "2 of 3 classes have no test image" in notes[0]
    assert "first 'a'" in notes[0]


def test_one_class_none_and_bad_names():
    _sentence(_listing(["a", "a"]), "one label, 'a'", "at least 2")
    _sentence(_listing(["a", "a"], ["b"]), "one label, 'a'", unknown="skip")
    _sentence(_listing([]), "no labelled images")
    _sentence(_listing([], ["a"]), "no training images")
    _sentence(_listing(["a", "b\x07"]), "not printable")
    _sentence(_listing(["a", "  "]), "label is empty")


def test_unknown_options():
    with pytest.raises(UserError, match=r"unknown source\.labels 'name'; did you mean 'names'"):
        number_labels(_listing(["a", "b"]), "name")
    with pytest.raises(UserError, match=r"unknown source\.unknown_labels 'skp'"):
        number_labels(_listing(["a", "b"]), unknown="skp")


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        (["cat|dog", "cat", "dog"], "'cat|dog'"),
        (["Effusion", "Hernia", "Effusion|Mass", "Hernia|Mass"], "'Effusion|Mass'"),
        (["a|b", "a|c", "d"], "'a|b'"),
        (["cat;dog", "cat", "dog"], "';'"),
        (["cat, dog", "cat", "dog"], "','"),
        (["a,b", "b,c", "a,c"], "','"),
        (["0,1", "1", "0"], "','"),
        (["['cat', 'dog']", "['cat']"], "is a list"),
        (["[0, 1, 0]", "[1, 0, 0]"], "is a list"),
        (["{'a', 'b'}", "{'a'}"], "is a list"),
    ],
)
def test_multi_label(labels, word):
    _sentence(_listing(labels), word, "multi-label", "keep the main label", "one binary manifest a label")


@pytest.mark.parametrize(
    "labels",
    [
        ["Rose, red", "Rose, white", "Tulip"],
        ["Rose, red", "Rose, white", "Tulip, red"],
        ["Oak, white", "Oak"],
        ["crane, bird", "crane"],
        ["a;b", "c"],
        ["what|ever", "else"],
        # Of ImageNet's own class names some share words at different places; most do not.
        ["cougar, puma, panther", "jaguar, panther, Panthera onca", "tench, Tinca tinca", "cock", "ram, tup",
         "goldfish, Carassius auratus", "vizsla, Hungarian pointer"],
        ["Rose (red, dark)", "Rose"],
        ["Berlin, 1", "Berlin, 2"],
    ],
)  # fmt: skip
def test_names_with_separators_are_single_labels(labels):
    assert number_labels(_listing(labels))[2] == tuple(sorted(labels))
