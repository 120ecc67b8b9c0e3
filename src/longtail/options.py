"""From words (command line, YAML, keyword arguments) to a checked :class:`TrainConfig`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace

from longtail.config import TrainConfig, flatten, replace_options
from longtail.errors import UserError, unknown_name

OPTION_NAMES = tuple(flatten(TrainConfig()))
"""Every option's dotted name; a test lists them, so that they do not multiply unnoticed."""


class _Parser(ArgumentParser):
    """Turns every complaint into a :class:`UserError`."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(_plain(message)) from None


def option_parser() -> ArgumentParser:
    """Return a parser of all options of a run; groups are dotted."""
    parser = _Parser(prog="longtail train", add_help=False, exit_on_error=False)
    parser.add_class_arguments(TrainConfig, None, skip={"data"}, as_group=False)
    return parser


def parse_words(words: Sequence[str]) -> dict[str, Any]:
    """Return the options that ``words`` (command line) set, by dotted name, with their types checked."""
    for word in words:
        if word.startswith("--"):
            _check_name(word[2:].split("=", 1)[0])
    return _parsed(lambda parser: parser.parse_args(list(words), defaults=False))


def parse_values(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return nested or dotted ``values`` (YAML, keyword arguments) by dotted name, with their types checked.

    Raises:
        UserError: an option is unknown or of the wrong type; ``where`` says what held it.
    """
    flat = _dotted(values)
    data = flat.pop("data", None)
    try:
        for key in flat:
            _check_name(key)
        checked = _parsed(lambda parser: parser.parse_object(_nested(flat), defaults=False)) if flat else {}
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return checked if data is None else {"data": str(data), **checked}


def make_config(given: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration with the options ``given`` by dotted name; the others keep their defaults."""
    return replace_options(TrainConfig(), dict(given))


def recipe_files() -> dict[str, Traversable]:
    """Return the recipes that come with the package, by name."""
    folder = files("longtail") / "recipes"
    found = [entry for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    return {entry.name.removesuffix(".yaml"): entry for entry in sorted(found, key=lambda entry: entry.name)}


def recipe_text(name: str) -> str:
    """Return the YAML of a recipe: a name that comes with the package, or a file's path."""
    known = recipe_files()
    if name in known:
        return known[name].read_text(encoding="utf-8")
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--recipe {name} cannot be read ({getattr(error, 'strerror', error)}).") from None
    raise unknown_name("recipe", name, known)


def read_recipe(name: str) -> dict[str, Any]:
    """Return a recipe's options by dotted name."""
    try:
        values = yaml.safe_load(recipe_text(name))
    except yaml.YAMLError as error:
        raise UserError(f"recipe {name} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"recipe {name} must be a mapping of options.")
    return parse_values(values, f"recipe {name}")


def _parsed(parse: Any) -> dict[str, Any]:
    try:
        namespace: Namespace = parse(option_parser())
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # jsonargparse has no single base class for its complaints
        raise UserError(_plain(str(error))) from None
    return {key: value for key, value in _dotted(namespace.as_dict()).items() if key in OPTION_NAMES}


def _check_name(key: str) -> None:
    if key not in OPTION_NAMES:
        groups = sorted({name.rsplit(".", 1)[0] for name in OPTION_NAMES if "." in name})
        near = difflib.get_close_matches(key, OPTION_NAMES, n=3, cutoff=0.5)
        near = near or [name for name in OPTION_NAMES if name.endswith("." + key)]
        near = near or difflib.get_close_matches(key, groups, n=1)
        hint = f"did you mean {' or '.join('--' + name for name in near)}?" if near else "see longtail train --help."
        raise UserError(f"unknown option --{key}; {hint}")


def _plain(message: str) -> str:
    """Return jsonargparse's message as one line, without its advice on usage."""
    text = " ".join(str(message).split())
    found = re.match(r'(?:Parser key|Validation failed: Parser key) "([^"]+)": (.*)', text)
    if found:
        return f"--{found[1]}: {found[2].rstrip('.')}."
    return text


def _dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_dotted(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, last = key.split(".")
        level = nested
        for group in groups:
            level = level.setdefault(group, {})
        level[last] = value
    return nested
