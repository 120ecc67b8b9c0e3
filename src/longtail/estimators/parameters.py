"""From an estimator's parameters to a run's options, with mistakes told in the words of the parameters."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from longtail.config import TrainConfig, replace_options
from longtail.errors import UserError

_WHOLE = ("epochs", "batch_size", "queue_size", "min_per_class", "projection_dim")
_SWITCHES = ("adapter", "learn_temperature")


def options_of(estimator: Any, names: Mapping[str, str], fixed: Mapping[str, Any]) -> TrainConfig:
    """Return the options that an estimator's parameters say, those that are None left open.

    Args:
        estimator: whose attributes they are.
        names: each parameter's dotted option.
        fixed: options that are no parameters.

    Raises:
        ValueError: a parameter cannot be meant.
    """
    given: dict[str, Any] = {**fixed, "pretrained": "none", "teacher.pretrained": "none"}
    given["backbone"] = "residual_adapter" if _plain("adapter", estimator.adapter) else "features"
    for name, option in names.items():
        value = _plain(name, getattr(estimator, name))
        if value is not None:
            given[option] = value
    with in_words_of(names):
        return replace_options(TrainConfig(), given)


@contextmanager
def in_words_of(names: Mapping[str, str]) -> Iterator[None]:
    """Turn a :class:`UserError` that names options into a ValueError that names the parameters they come from."""
    parameters = {option: name for name, option in names.items()} | {"backbone": "adapter"}
    try:
        yield
    except UserError as error:
        text = re.sub(r"--([a-z_.]*[a-z_])", lambda found: parameters.get(found[1], found[0]), str(error))
        raise ValueError(text) from None


def seed_of(random_state: Any) -> int:
    """Return the seed that a ``random_state`` says: a number is the seed itself, a generator or None draws one.

    Raises:
        ValueError: it is none of them.
    """
    generator = check_random_state(random_state)
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(generator.randint(np.iinfo(np.int32).max))


def _plain(name: str, value: Any) -> Any:
    """Return a parameter as a Python number, or raise ValueError if it is not of its kind."""
    if value is None and name not in _SWITCHES:
        return None
    if name in _SWITCHES:
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} must be True or False, got {value!r}.")
        return bool(value)
    if name == "device":
        return str(value)
    if not isinstance(value, bool | np.bool_):
        if name in _WHOLE and isinstance(value, Integral):
            return int(value)
        if name not in _WHOLE and isinstance(value, Real) and math.isfinite(value):
            return float(value)
    raise ValueError(f"{name} must be {'a whole number' if name in _WHOLE else 'a finite number'}, got {value!r}.")
