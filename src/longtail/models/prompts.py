"""Sentences that describe a class to a text tower: named sets of templates, or a file of one's own.

Several templates a class, averaged, describe it better than one (Radford et al., ICML 2021, Section 3.1.4).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from longtail.errors import UserError, unknown_name

TEMPLATES: dict[str, tuple[str, ...]] = {
    "simple": ("a photo of a {}.",),
    # How a picture may have been taken, how good it is, how its object looks, and what kind of picture it is.
    "ensemble": (
        "a photo of a {}.",
        "a photo of the {}.",
        "a photo of one {} among other things.",
        "a photo of several {}.",
        "a snapshot of a {}.",
        "a sharp picture of a {}.",
        "a blurry picture of a {}.",
        "a dark picture of a {}.",
        "a brightly lit picture of a {}.",
        "a small, grainy image of a {}.",
        "a black-and-white image of a {}.",
        "a close view of a {}.",
        "a distant view of a {}.",
        "a view of a {} from the side.",
        "a view of a {} from above.",
        "a partly hidden {}.",
        "a typical {}.",
        "an unusual {}.",
        "a small {}.",
        "a large {}.",
        "a drawing of a {}.",
        "a {} in front of a plain background.",
        "a {} in its usual surroundings.",
    ),
}
"""Templates by name of the set; ``{}`` stands for the class."""
_SUFFIXES = (".yaml", ".yml", ".json", ".txt")
_PLACE = "{}"


def class_prompts(wanted: str, class_names: Sequence[str]) -> list[list[str]]:
    """Return the sentences that describe each class: C lists of one sentence or more, in class order.

    Args:
        wanted: name of a set in :data:`TEMPLATES`, or a file: ``.txt`` with a template a line (``#`` starts a comment),
            or ``.yaml`` or ``.json`` that hold a list of templates, or a mapping of every class to its sentences (one
            or a list; ``{}`` in them is the class's name).
        class_names: C names. Underscores in them are read as spaces.

    Raises:
        UserError: there is no such set or file, it cannot be read, a template has no ``{}``, a class has no sentence,
            or there is no such class.
    """
    if wanted in TEMPLATES:
        return [[_filled(template, name) for template in TEMPLATES[wanted]] for name in class_names]
    path = Path(wanted)
    if not path.exists() and not wanted.endswith(_SUFFIXES):
        raise unknown_name("--start.prompts set", wanted, [*TEMPLATES, "a file of templates (.txt, .yaml, .json)"])
    content = _read(path)
    if isinstance(content, dict):
        return _of_mapping(path, content, class_names)
    templates = _sentences(path, content, "the list of templates")
    for template in templates:
        if _PLACE not in template:
            raise UserError(f"{path}: the template {template!r} has no {{}}, where the class's name goes; add it.")
    return [[_filled(template, name) for template in templates] for name in class_names]


def first_identifier(class_names: Sequence[str]) -> str | None:
    """Return the first name that is a number or an identifier, if most are; None if they are words.

    Those of ImageNet (``n01440764``) are words: it is known what they stand for.
    """
    word = re.compile(r"[^\W\d_]{3}|[^\W\d_a-zA-Z]")  # three letters, or one of a script that needs no more
    found = [name for name in class_names if not word.search(_spoken(name).rpartition("/")[2])]
    return found[0] if 2 * len(found) > len(class_names) else None


def _of_mapping(path: Path, content: dict[Any, Any], class_names: Sequence[str]) -> list[list[str]]:
    given = {_spoken(str(key)): value for key, value in content.items()}
    spoken = [_spoken(name) for name in class_names]
    missing = [name for name, said in zip(class_names, spoken, strict=True) if said not in given]
    if missing:
        raise UserError(f"{path} has no prompt for {_listed(missing, 'class')}; add one for every class.")
    unknown = [str(key) for key in content if _spoken(str(key)) not in spoken]
    if unknown:
        raise UserError(
            f"{path} has prompts for {_listed(unknown, 'class')}, which the data does not have; correct or remove it."
        )
    return [
        [_filled(sentence, name) for sentence in _sentences(path, given[said], f"class {name!r}")]
        for name, said in zip(class_names, spoken, strict=True)
    ]


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"--start.prompts {path} cannot be read: {reason}.") from None
    if path.suffix not in (".yaml", ".yml", ".json"):
        lines = [line.strip() for line in text.splitlines()]
        return [line for line in lines if line and not line.startswith("#")]
    try:
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        where = getattr(error, "problem_mark", None)
        place = f"line {where.line + 1}" if where is not None else " ".join(str(error).split())[:80]
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise UserError(f"--start.prompts {path} is not {kind}: {place}; correct it.") from None


def _sentences(path: Path, value: Any, of: str) -> list[str]:
    """Return ``value``, a sentence or a list of such, as a list that is not empty."""
    sentences = [value] if isinstance(value, str) else value
    sound = isinstance(sentences, list) and all(isinstance(entry, str) and entry.strip() for entry in sentences)
    if not sound or not sentences:
        raise UserError(f"{path}: {of} must hold sentences, one or more; write them as text (in quotes where needed).")
    return [sentence.strip() for sentence in sentences]


def _filled(template: str, class_name: str) -> str:
    return template.replace(_PLACE, _spoken(class_name))


def _spoken(name: str) -> str:
    """Return a class's name as it is said: words apart, and ImageNet's identifiers as what they stand for."""
    if re.fullmatch(r"n\d{8}", name):
        name = _imagenet().get(name, name)
    return " ".join(name.replace("_", " ").split())


@cache
def _imagenet() -> dict[str, str]:
    """Return the first word that ImageNet (the 1000 classes of 2012) has for each of its identifiers."""
    from timm.data.imagenet_info import ImageNetInfo

    known = ImageNetInfo("imagenet-1k")
    names: list[str] = known.label_names()  # type: ignore[no-untyped-call]
    return {name: known.label_name_to_description(name).split(",")[0] for name in names}


def _listed(names: Sequence[str], what: str) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what if len(names) == 1 else 'classes'} {', '.join(repr(name) for name in names[:3])}{more}"
