"""From words (command line, YAML, keyword arguments) to a checked :class:`TrainConfig`."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace

from longtail.config import TrainConfig, flatten, get_option, replace_options
from longtail.errors import UserError, unknown_name

OPTION_NAMES = tuple(flatten(TrainConfig()))
"""Every option's dotted name; a test lists them, so that they do not multiply unnoticed."""

_GROUPS = frozenset(name.split(".")[0] for name in OPTION_NAMES if "." in name)


class _Parser(ArgumentParser):
    """Turns every complaint into a :class:`UserError`."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(message) from None


def option_parser() -> ArgumentParser:
    """Return a parser of all options of a run; groups are dotted."""
    parser = _Parser(prog="longtail train", add_help=False, exit_on_error=False)
    parser.add_class_arguments(TrainConfig, None, skip={"data"}, as_group=False)
    return parser


def parse_words(words: Sequence[str]) -> dict[str, Any]:
    """Return the options that ``words`` (each ``--name=value``) set, by dotted name, with their types checked."""
    given = dict(word.removeprefix("--").split("=", 1) for word in words)
    for key in given:
        check_name(key)
    if "data" in given:
        raise UserError(f"DATA is given without --data: longtail train {given['data']} ...")
    return _parsed(lambda parser: parser.parse_args(list(words), defaults=False), given)


def parse_values(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return nested or dotted ``values`` (YAML, keyword arguments) by dotted name, with their types checked.

    Raises:
        UserError: an option is unknown or of the wrong type; ``where`` says what held it.
    """
    # A group whose every line is commented out reads as None.
    flat = {key: value for key, value in _dotted(values).items() if value is not None or key not in _GROUPS}
    data = flat.pop("data", None)
    try:
        for key in flat:
            check_name(key)
        checked = _parsed(lambda parser: parser.parse_object(_nested(flat), defaults=False), flat) if flat else {}
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
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"recipe {name} is not YAML: {where}{getattr(error, 'problem', error)}.") from None
    if not isinstance(values, dict):
        raise UserError(f"recipe {name} must be a mapping of options.")
    return parse_values(values, f"recipe {name}")


_OTHER_WORDS = {"encoder": "backbone", "model": "backbone", "arch": "backbone", "learning_rate": "optimiser.lr"}
"""What an option may be called elsewhere."""


def check_name(key: str, others: Collection[str] = ()) -> None:
    """Raise :class:`UserError` with near matches unless ``key`` is an option's dotted name or one of ``others``."""
    known = [*OPTION_NAMES, *others]
    if key in known:
        return
    near = [name for name in OPTION_NAMES if name.startswith(key + ".")] if key in _GROUPS else []
    near = near or [name for word, name in _OTHER_WORDS.items() if word == key]
    near = near or difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    near = near or [name for name in OPTION_NAMES if name.endswith("." + key)]
    hint = f"did you mean {' or '.join('--' + name for name in near[:3])}?" if near else "see longtail train --help."
    raise UserError(f"unknown option --{key}; {hint}")


def _parsed(parse: Callable[[ArgumentParser], Namespace], given: Mapping[str, Any]) -> dict[str, Any]:
    """Run ``parse`` on a fresh parser; ``given`` are the values that it gets, to name the one it refuses."""
    try:
        namespace = parse(option_parser())
    except (Exception, SystemExit) as error:  # jsonargparse has no single base class for its complaints
        message = " ".join(str(error).split())
        key = next((name for name in re.findall(r'"([\w.]+)"', message) if name in given), None)
        if key is not None:
            message = f"--{key} must be {_kind(key)}, got {given[key]!s}."
        raise UserError(message) from None
    return {key: value for key, value in _dotted(namespace.as_dict()).items() if key in OPTION_NAMES}


def _kind(key: str) -> str:
    """Return what an option takes, in words."""
    *groups, name = key.split(".")
    owner = get_option(TrainConfig(), ".".join(groups)) if groups else TrainConfig()
    hint = get_type_hints(type(owner))[name]
    # The optional ones are unions with None, which nobody needs to type.
    choices = [hint] if get_origin(hint) in (Literal, list) else [t for t in get_args(hint) if t is not NoneType]
    kind = choices[0] if choices else hint
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is list:
        return "a list of numbers such as [0.8, 0.9]"
    return {int: "a whole number", float: "a finite number", bool: "true or false"}.get(kind, "text")


def _dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + str(key).replace("-", "_")
        if isinstance(value, Mapping):
            flat.update(_dotted(value, f"{name}."))
        else:
            flat[name] = os.fspath(value) if isinstance(value, os.PathLike) else value
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
