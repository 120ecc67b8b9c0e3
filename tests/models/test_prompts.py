import json

import pytest

from longtail.errors import UserError
from longtail.models import class_prompts
from longtail.models.prompts import TEMPLATES

NAMES = ("great_white_shark", "dog")


def write(folder, name, content):
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_sets_by_name():
    assert class_prompts("simple", NAMES) == [["a photo of a great white shark."], ["a photo of a dog."]]
    sharks, dogs = class_prompts("ensemble", NAMES)
    assert len(sharks) == len(dogs) == len(set(dogs)) >= 20
    assert all("great white shark" in sentence for sentence in sharks)
    assert all(template.count("{}") == 1 for templates in TEMPLATES.values() for template in templates)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("p.txt", "# of fur and fins\na painting of a {}.\n\n  one {}  \n"),
        ("p.yaml", "- a painting of a {}.\n- 'one {}'\n"),
        ("p.json", '["a painting of a {}.", "one {}"]'),
    ],
)
def test_a_file_of_templates(tmp_path, file, content):
    assert class_prompts(write(tmp_path, file, content), NAMES) == [
        ["a painting of a great white shark.", "one great white shark"],
        ["a painting of a dog.", "one dog"],
    ]


@pytest.mark.parametrize("file", ["p.yaml", "p.json"])
def test_a_file_of_sentences_for_each_class(tmp_path, file):
    content = {"dog": ["a pet that barks", "a {} on a lead"], "great white shark": "a large fish"}
    assert class_prompts(write(tmp_path, file, json.dumps(content)), NAMES) == [
        ["a large fish"],
        ["a pet that barks", "a dog on a lead"],
    ]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("p.txt", "a photo of a {}.\na photo.\n", r"p\.txt: the template 'a photo\.' has no \{\}"),
        ("p.txt", "\n# nothing\n", r"p\.txt: the list of templates must hold sentences, one or more"),
        ("p.yaml", "", r"p\.yaml: the list of templates must hold sentences"),
        ("p.yaml", "- 3\n", "must hold sentences"),
        ("p.yaml", "dog: a pet", r"p\.yaml has no prompt for class 'great_white_shark'; add one"),
        (
            "p.yaml",
            "{dog: a pet, great_white_shark: a fish, cat: a pet}",
            "has prompts for class 'cat', which the data",
        ),
        ("p.yaml", "{dog: [], great_white_shark: a fish}", r"class 'dog' must hold sentences"),
        ("p.yaml", "dog: [a", r"p\.yaml is not YAML: line 1"),
        ("p.json", '{"dog": ', r"p\.json is not JSON"),
        ("p.json", "{}", "no prompt for classes 'great_white_shark', 'dog'"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path, file, content, words):
    with pytest.raises(UserError, match=words) as caught:
        class_prompts(write(tmp_path, file, content), NAMES)
    assert "\n" not in str(caught.value)


def test_what_is_neither_a_set_nor_a_file(tmp_path):
    with pytest.raises(UserError, match=r"unknown --start\.prompts set 'ensembel'; did you mean 'ensemble'"):
        class_prompts("ensembel", NAMES)
    with pytest.raises(UserError, match=r"nix\.yaml cannot be read: No such file"):
        class_prompts(str(tmp_path / "nix.yaml"), NAMES)
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        class_prompts(str(tmp_path / "p.txt"), NAMES)


def test_many_missing_classes_are_not_all_listed(tmp_path):
    names = [f"class {number}" for number in range(500)]
    with pytest.raises(UserError, match=r"'class 1', 'class 2', 'class 3' and 496 more"):
        class_prompts(write(tmp_path, "p.yaml", "class 0: a thing"), names)


def test_identifiers_are_told_from_words_and_imagenets_are_known():
    from longtail.models.prompts import first_identifier

    assert class_prompts("simple", ["n01440764", "n02127052"]) == [["a photo of a tench."], ["a photo of a lynx."]]
    assert first_identifier(["n01440764", "n02127052"]) is None
    assert first_identifier(["Plantae/5432", "Animalia/12"]) == "Plantae/5432"
    assert first_identifier(["0", "1", "cat"]) == "0"
    assert first_identifier(["cat", "sea_otter", "7"]) is None
    assert first_identifier(["猫", "犬"]) is None
