"""The options of a run as the command that trains it again, and as a table."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longtail.config import TrainConfig, flatten
from longtail.methods import is_read
from longtail.training.run_folder import may_change

_PATHS = (
    "data",
    "root",
    "source.test",
    "pretrained",
    "teacher.run",
    "teacher.pretrained",
    "decoupled.run",
    "start.prompts",
    "segmentation.palette",
)
_NO_PATH = ("hf-hub:", "hf:", "open_clip:")


def reproduce_command(
    config: dict[str, Any], short_paths: bool = False, reads: Callable[[str, str], bool] = is_read
) -> str:
    """Return the command that trains this run again: every option that is not the program's own default.

    What changes no figure (where it runs, who is told) and what its method does not read are left out.

    Args:
        config: nested options of a ``config.yaml``.
        short_paths: give the last part of paths only, for what is published.
        reads: says whether the method of that name reads the option of that one.
    """
    defaults, options = flatten(TrainConfig()), _options(config)
    if short_paths:
        options |= {key: _last_part(options[key]) for key in _PATHS if options.get(key)}
    words = [
        f"longtail train {shlex.quote(str(options.get('data') or 'DATA'))}",
        f"--method {shlex.quote(str(config.get('method')))}",
    ]
    for key, value in options.items():
        if key in ("data", "method", "seed") or may_change(key) or not reads(str(config.get("method")), key):
            continue
        if key not in defaults or value != defaults[key]:
            words.append(f"--{key} {shlex.quote(as_text(value))}")
    return " \\\n  ".join([*words, f"--seed {config.get('seed', 0)}"])


def _last_part(value: Any) -> str:
    text = str(value)
    return text if text.startswith(_NO_PATH) else Path(text).name or text


def _options(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options as ``{dotted name: value}``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _options(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def settings(config: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (group of options, its names and values); the ungrouped come first."""
    groups: dict[str, list[tuple[str, str]]] = {"run": []}
    for key, value in _options(config).items():
        group, _, name = key.rpartition(".")
        groups.setdefault(group or "run", []).append((name, as_text(value)))
    return list(groups.items())


def as_text(value: Any) -> str:
    """Return a value as the command line and YAML read it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
