"""The command line: one verb a job. ``train`` and ``recipes`` are here, the others in :mod:`longtail.verbs`.

Exit codes: 0 done, 1 training failed (state kept), 2 something to mend, 128 + signal if stopped.
Heavy imports wait until a verb needs them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import dataclasses
import errno
import inspect
import os
import re
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial

import longtail
from longtail import verbs
from longtail.errors import UserError, unknown_name

_TRAIN = "longtail train DATA [--recipe NAME] [--resume | --overwrite] [--quiet] [--OPTION VALUE ...]"
_RECIPES = "longtail recipes [NAME]"
_OWN = {
    "train": "train on DATA: teacher, student, figures, report",
    "recipes": "list the recipes, or show one",
}

# How often a thread that waits for work looks again before it sleeps (GNU OpenMP; read when torch is loaded). Its
# default is so often that on a busy machine those that wait take the time of those that work (benchmarks/busy.py).
SPINS = "30000"

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line ``words`` (default: the process's) and return the exit code."""
    words = list(sys.argv[1:] if words is None else words)
    if "RANK" in os.environ:
        # DistributedDataParallel says of every run that all its parameters were used.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    try:
        return _run(words)
    except UserError as error:
        _tell(error)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except KeyboardInterrupt:
        _tell("stopped.")
        return 130
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        place = f" ({error.filename})" if error.filename else ""
        _tell(f"{error.strerror}{place}. What was saved is kept: make room, then go on with --resume.")
        return 1
    except (MemoryError, RuntimeError) as error:
        stopped = getattr(error, "exit_code", None)  # longtail.training.guard.Interrupted, which is not imported here
        if isinstance(stopped, int):
            _tell(error)
            return stopped
        if not _out_of_memory(error):
            raise
        _tell("out of memory; try a smaller --batch_size, --queue.capacity or encoder. What was saved is kept.")
        return 1


def _tell(text: object) -> None:
    """Say a sentence: of several processes that train together (torchrun) the first one does."""
    if os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1":
        print(f"longtail: {text}", file=sys.stderr, flush=True)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"longtail {longtail.__version__}")
        return 0
    verb, rest = words[0], words[1:]
    known = [*_OWN, *(name for name in verbs.VERBS if not name.endswith(verbs.DENSE))]
    if verb not in known:
        raise unknown_name("command", verb, known)
    if verb != "train" and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(f"longtail {verb} runs in one process; of all commands only train is started by torchrun.")
    if "-h" in rest or "--help" in rest:
        recipes = f"usage: {_RECIPES}\n\n{_OWN['recipes']}"
        print(verbs.help_of(verb) if verb in verbs.VERBS else _train_help() if verb == "train" else recipes)
        return 0
    if verb in _OWN:
        return {"train": _train, "recipes": _recipes}[verb](rest)
    places, flags, pairs = split_words(
        rest, partial(verbs.check_either, verb), verbs.flags_of(verb), verbs.lists_of(verb)
    )
    meant = verbs.of_run(verb, places)
    for option in (*flags, *pairs):
        verbs.check_option(meant, option)
    return int(getattr(verbs.call(meant, places, flags, pairs), "exit_code", 0))


def _train(words: list[str]) -> int:
    from longtail.options import check_name, parse_words

    own = ("recipe", "resume", "overwrite", "quiet")
    places, flags, pairs = split_words(words, flags=own[1:], check=lambda name: check_name(name, own))
    if len(places) > 1:
        quoted = " (a pattern of tar shards goes in quotation marks)" if places[0].endswith(".tar") else ""
        raise UserError(f"one DATA at a time{quoted}, got {' and '.join(places)}; usage: {_TRAIN}")
    if {"resume", "overwrite"} <= flags:
        raise UserError("--resume and --overwrite exclude each other.")
    recipe = pairs.pop("recipe", None)
    given = parse_words([f"--{name}={value}" for name, value in pairs.items()])
    from longtail import api
    from longtail.training.guard import Diverged, Interrupted

    try:
        api.train(
            places[0] if places else None,
            recipe=recipe,
            resume="resume" in flags,
            overwrite="overwrite" in flags,
            quiet="quiet" in flags,
            **given,
        )
    except Interrupted as stop:
        again = [word for word in words if word not in ("--resume", "--overwrite")]
        # A launcher is not among the words.
        command = f": longtail train {shlex.join(again)}" if "WORLD_SIZE" not in os.environ else " the same command and"
        _tell(f"{stop} Go on with{command} --resume")
        return stop.exit_code
    except Diverged as error:
        _tell(error)
        return 1
    return 0


def _recipes(words: list[str]) -> int:
    places, _, _ = split_words(words, check=_no_option)
    if len(places) > 1:
        raise UserError(f"one recipe at a time; usage: {_RECIPES}")
    from longtail.options import recipe_files, recipe_text

    if places:
        print(recipe_text(places[0]).rstrip())
        return 0
    for name, file in recipe_files().items():
        head = file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        print(f"{name:<32} {head}")
    print("\nlongtail recipes NAME shows one; longtail train --recipe NAME runs it.")
    return 0


def _no_option(name: str) -> None:
    raise unknown_name("option", f"--{name}", ["--help"])


def split_words(
    words: Sequence[str], check: Callable[[str], None], flags: Collection[str] = (), lists: Collection[str] = ()
) -> tuple[list[str], set[str], dict[str, str]]:
    """Split a command line into (places, flags that were set, options with their values).

    Every option but the ``flags`` takes one value, ``--name value`` or ``--name=value``; those of ``lists`` take all
    words up to the next option, joined by spaces. Hyphens in names count as underscores. ``check`` raises for a name
    that is no option.
    """
    places: list[str] = []
    found: set[str] = set()
    pairs: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            if word.startswith("-") and len(word) > 1:
                raise UserError(f"unknown option {word}; options are written --name.")
            places.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        check(name)
        if name in flags:
            if equals:
                raise UserError(f"--{name} takes no value.")
            found.add(name)
            continue
        if not equals and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        while name in lists and rest and not rest[0].startswith("--"):
            value += f" {rest.pop(0)}"
        if not value:
            raise UserError(f"--{name} needs a value.")
        pairs[name] = value
    return places, found, pairs


def _out_of_memory(error: Exception) -> bool:
    """Whether ``error`` is torch's or Python's way to say so (torch is not imported here: see the module's head)."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def _help() -> str:
    texts = {name: verb.text for name, verb in verbs.VERBS.items() if not name.endswith(verbs.DENSE)}
    every = {"train": _OWN["train"], **texts, "recipes": _OWN["recipes"]}
    shown = "\n".join(f"  {name:<10} {text}" for name, text in every.items())
    return (
        "usage: longtail COMMAND ...\n\nTrain image classifiers and segmenters that are good on rare classes too.\n\n"
        f"commands:\n{shown}\n\n"
        "try it:\n  longtail train digits-lt            a minute on two cores, ends with a report\n"
        "  longtail train FOLDER               your own images, in one folder a class\n"
        "  longtail train FOLDER --task segmentation   your own images with a mask each\n"
        "  longtail COMMAND --help             the options of a command"
    )


def _train_help() -> str:
    """Return the options of ``train``, their meaning taken from the dataclasses' docstrings."""
    from longtail.config import TrainConfig

    lines = [
        f"usage: {_TRAIN}",
        "",
        "  --recipe NAME            options of a recipe (longtail recipes), or of a YAML file; others go before it",
        "  --resume                 go on with the run in --out",
        "  --overwrite              delete the run in --out first",
        "  --quiet                  print nothing",
        "",
        "options (default: none = chosen from the data):",
    ]
    config = TrainConfig()
    _describe_group(config, "", lines)
    for item in dataclasses.fields(config):
        group = getattr(config, item.name)
        if dataclasses.is_dataclass(group):
            title = (inspect.getdoc(group) or "").splitlines()[0].replace("``", "")
            lines += ["", title]
            _describe_group(group, f"{item.name}.", lines)
    return "\n".join(lines)


def _describe_group(group: object, prefix: str, lines: list[str]) -> None:
    text = (inspect.getdoc(group) or "").partition("Attributes:\n")[2]
    for name, meaning in re.findall(r"^    ([\w, ]+): ((?:.*\n?)(?:^        .*\n?)*)", text, re.MULTILINE):
        if hasattr(group, name) and not dataclasses.is_dataclass(getattr(group, name)):
            value = getattr(group, name)
            default = "" if value is None or value == "" else f" (default {value})"
            label = "DATA" if name == "data" else f"--{prefix}{name}"
            lines.append(f"  {label:<33} {' '.join(meaning.split()).replace('``', '')}{default}")
