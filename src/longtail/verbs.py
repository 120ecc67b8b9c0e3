"""The commands beside ``train`` and ``recipes``: each is one function, whose signature and docstring are its options.

They are read from the source, not imported: torch takes seconds to load, and ``--help`` must not wait for it.
"""

from __future__ import annotations

import ast
import glob
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from longtail.errors import UserError, unknown_name


@dataclass(frozen=True)
class Verb:
    """A command that calls the function of its name.

    Attributes:
        module: where the function is, below ``longtail``. Its keyword-only parameters are the options, the others are
            given in order without a name; a ``Sequence`` takes all that follow. Types: str, int, float, bool (a flag).
            One that takes ``**options`` takes every option of ``train`` too.
        usage: the words that stand before the options.
        text: what it does, in a line.
        function: the function's name, where it is not the command's.
    """

    module: str
    usage: str
    text: str
    function: str = ""


VERBS = {
    "inspect": Verb("reporting.inspection", "DATA", "look at images before training: classes, leaks, what is broken"),
    "embed": Verb(
        "deployment.embed", "DATA", "every image through a frozen encoder once: features to train heads on in seconds"
    ),
    "evaluate": Verb(
        "deployment.evaluate", "RUN [DATA]", "figures of a finished run, on its test set or on other data"
    ),
    "predict": Verb("deployment.predict", "RUN IMAGES...", "a table of what a finished run says of new images"),
    "export": Verb("deployment.export", "RUN", "a run's model as ONNX, torch.export or safetensors, with a model card"),
    "push": Verb("deployment.push", "RUN OWNER/NAME", "a run's model and card to the Hugging Face hub", "push_to_hub"),
    "compare": Verb("reporting.compare", "RUN RUN ...", "finished runs in one table, with paired differences"),
    "study": Verb(
        "studies.study", "[NAME]", "methods or options side by side over seeds, resumed; without NAME, a list"
    ),
    "plan": Verb("planning.plan", "[DATA]", "what a run would take on other hardware: memory, time, network, cost"),
}

DENSE = " (segmentation)"
"""Ending of the names of commands as they are for runs of segmentation."""

VERBS |= {
    f"evaluate{DENSE}": Verb(
        "segmentation.evaluate",
        "RUN [DATA]",
        "figures of a finished run, on its test set or on other data",
        "evaluate_masks",
    ),
    f"predict{DENSE}": Verb(
        "segmentation.predict",
        "RUN IMAGES...",
        "what a finished run says of every pixel of new images",
        "predict_masks",
    ),
    f"export{DENSE}": Verb(
        "segmentation.export_run", "RUN", "a run's model as ONNX, torch.export or safetensors", "export_segmenter"
    ),
    f"push{DENSE}": Verb(
        "segmentation.export_run", "RUN OWNER/NAME", "a run's model and card to the Hugging Face hub", "push_segmenter"
    ),
    f"compare{DENSE}": Verb(
        "segmentation.compare", "RUN RUN ...", "finished runs in one table, with paired differences", "compare_dense"
    ),
}


def of_run(name: str, places: Sequence[str]) -> str:
    """Return the command that is meant by ``name``: that of segmentation where its run is of that kind.

    ``places`` are the words without options; the first of them, or what it matches or names on the hub, is the run.
    """
    if f"{name}{DENSE}" not in VERBS or not places:
        return name
    from longtail.deployment.run_records import is_dense

    run = Path(places[0])
    if not run.is_dir() and places[0].startswith("hf-hub:"):
        from longtail.deployment.run_records import find_run

        run = find_run(places[0])
    elif not run.is_dir() and glob.has_magic(places[0]):
        run = next((Path(path) for path in sorted(glob.glob(places[0], recursive=True)) if Path(path).is_dir()), run)
    return f"{name}{DENSE}" if is_dense(run) else name


@dataclass(frozen=True)
class Parameter:
    """One parameter of a command's function.

    Attributes:
        name: as in Python; ``default`` is None where it must be given.
        annotation: its type, as written.
        default: its default value, as written.
        option: whether it is given by name.
        text: what the docstring says of it.
    """

    name: str
    annotation: str
    default: str | None
    option: bool
    text: str

    @property
    def flag(self) -> bool:
        """Whether it takes no value."""
        return self.annotation == "bool"

    @property
    def many(self) -> bool:
        """Whether it takes all words that follow, up to the next option."""
        return self.annotation.startswith("Sequence")


def parameters(name: str) -> list[Parameter]:
    """Return the parameters of the command ``name``, read from the source of its function."""
    function = _definition(name)
    documented = (ast.get_docstring(function) or "").partition("Args:\n")[2].partition("\n\n")[0]
    texts = {
        key: " ".join(text.split()).replace("``", "")
        for key, text in re.findall(r"^    (\w+): ((?:.*\n?)(?:^        .*\n?)*)", documented, re.MULTILINE)
    }
    arguments = function.args
    missing: list[ast.expr | None] = [None] * (len(arguments.args) - len(arguments.defaults))
    named = [
        *((item, value, False) for item, value in zip(arguments.args, [*missing, *arguments.defaults], strict=True)),
        *((item, value, True) for item, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)),
    ]
    return [
        Parameter(
            item.arg,
            ast.unparse(item.annotation) if item.annotation is not None else "str",
            None if value is None else ast.unparse(value),
            option,
            texts.get(item.arg, ""),
        )
        for item, value, option in named
    ]


def _definition(name: str) -> ast.FunctionDef:
    file = Path(__file__).parent.joinpath(*VERBS[name].module.split(".")).with_suffix(".py")
    return next(
        node
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == (VERBS[name].function or name)
    )


def takes_train_options(name: str) -> bool:
    """Return whether the command ``name`` takes the options of ``train`` beside its own."""
    return _definition(name).args.kwarg is not None


def call(name: str, places: Sequence[str], flags: set[str], pairs: Mapping[str, str]) -> Any:
    """Call the function of the command ``name`` with what the command line gave, and return what it returns.

    Raises:
        UserError: too few or too many words, or a value of another type.
    """
    known = parameters(name)
    given: dict[str, Any] = dict.fromkeys(flags, True)
    rest = list(places)
    for item in known:
        if item.option:
            continue
        if item.many:
            given[item.name], rest = rest, []
        elif rest:
            given[item.name] = rest.pop(0)
        if item.default is None and not given.get(item.name):
            raise UserError(f"{item.name.upper()} is missing; usage: {usage(name)}")
    if rest:
        raise UserError(f"one word too many: {rest[0]}; usage: {usage(name)}")
    types = {item.name: item.annotation for item in known}
    given |= {key: _value(key, value, types[key]) for key, value in pairs.items() if key in types}
    if any(key not in types for key in pairs):
        from longtail.options import parse_words

        given |= parse_words([f"--{key}={value}" for key, value in pairs.items() if key not in types])
    return getattr(import_module(f"longtail.{VERBS[name].module}"), VERBS[name].function or name)(**given)


def check_option(name: str, option: str) -> None:
    """Raise unless the command ``name`` has ``option``."""
    known = _options(name)
    if option not in known and takes_train_options(name):
        from longtail.options import check_name

        check_name(option, known)
    elif option not in known:
        raise unknown_name("option", f"--{option}", [f"--{other}" for other in (*known, "help")])


def check_either(name: str, option: str) -> None:
    """Raise unless the command ``name`` has ``option``, for whichever kind of run."""
    if option not in _options(f"{name}{DENSE}"):
        check_option(name, option)


def _options(name: str) -> list[str]:
    return [item.name for item in parameters(name) if item.option] if name in VERBS else []


def flags_of(name: str) -> set[str]:
    """Return the options of the command ``name`` that take no value."""
    return {item.name for item in _of_either(name) if item.option and item.flag}


def lists_of(name: str) -> set[str]:
    """Return the options of the command ``name`` that take all words up to the next option."""
    return {item.name for item in _of_either(name) if item.option and item.many}


def _of_either(name: str) -> list[Parameter]:
    """Return the parameters of a command for both kinds of runs: words are split before it is known which is meant."""
    return [item for kind in (name, f"{name}{DENSE}") if kind in VERBS for item in parameters(kind)]


def usage(name: str) -> str:
    """Return the line that shows how the command ``name`` is written."""
    return f"longtail {name.removesuffix(DENSE)} {VERBS[name].usage} [--OPTION VALUE ...]"


def help_of(name: str) -> str:
    """Return what ``longtail NAME --help`` prints."""
    lines = [f"usage: {usage(name)}", "", VERBS[name].text, ""]
    for item in parameters(name):
        label = f"--{item.name}" if item.option else item.name.upper()
        shown = "" if item.default in (None, "None", "False", "''") else f" (default {item.default.strip(chr(39))})"
        wrapped = textwrap.wrap(item.text.rstrip(".") + shown, 92)
        lines += [f"  {label:<22} {wrapped[0] if wrapped else ''}", *(" " * 25 + line for line in wrapped[1:])]
    if takes_train_options(name):
        lines.append(f"  {'--...':<22} every option of longtail train: see longtail train --help")
    if f"{name}{DENSE}" in VERBS:
        lines += ["", "for a run of segmentation:", "", *help_of(f"{name}{DENSE}").splitlines()]
    return "\n".join(lines)


def _value(name: str, text: str, annotation: str) -> Any:
    if annotation.startswith("Sequence"):
        kind = "float" if "float" in annotation else "int" if "int" in annotation else "str"
        return [_value(name, word, kind) for word in text.strip("[]").replace(",", " ").split()]
    kinds = {kind.strip() for kind in annotation.split("|")}
    for kind, convert, what in (("int", int, "a whole number"), ("float", float, "a number")):
        if kind in kinds:
            try:
                return convert(text)
            except ValueError:
                if "str" in kinds:
                    return text
                raise UserError(f"--{name} must be {what}, got {text!r}.") from None
    return text
