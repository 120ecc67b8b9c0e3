"""Data sets of the Hugging Face hub, ``hf:owner/name[@revision][:subset]``, as ``datasets`` downloads them."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtail.data.embedded_files import Part, as_images
from longtail.errors import UserError
from longtail.hub import hub_reason, in_short, quiet

HUB_SET = "hf:"
"""What stands before the name of a data set on the hub."""
_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^:@\s]+))?(?::(?P<subset>\S+))?")
_WRITTEN = "hf:owner/name, hf:owner/name@revision or hf:owner/name:subset"
_ROWS = 32  # in memory at a time
_ROWS_OF_A_FOLDER = 10_000
_TIMEOUT = 10.0  # seconds until the hub must have answered


@dataclass(frozen=True)
class HubSet:
    """A data set's name, taken apart."""

    name: str
    revision: str | None
    subset: str | None


def parse_hub_set(data: str) -> HubSet:
    """Return what ``hf:owner/name@revision:subset`` names.

    Raises:
        UserError: it is not written so.
    """
    found = _NAME.fullmatch(data.removeprefix(HUB_SET))
    if found is None:
        raise UserError(f"{data} is no data set of the hub, which is written {_WRITTEN}.")
    return HubSet(found["name"], found["revision"], found["subset"])


def hub_parts(data: str) -> list[Part]:
    """Return the rows of all splits of a data set of the hub, some thousands a part; downloaded where need be.

    A copy that ``datasets`` has kept is taken where there is no network.

    Raises:
        UserError: ``datasets`` is not installed, there is no network, no such set, it cannot be read, or a folder of
            that name lies here.
    """
    wanted = parse_hub_set(data)
    if os.path.exists(wanted.name):  # datasets would read it without asking the hub
        raise UserError(
            f"{data} names a set of the hub, but {wanted.name} lies here and would be read in its place; start in "
            f"another folder, or give {wanted.name} without {HUB_SET} if it is meant."
        )
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise UserError(
            f"{data}: data sets of the hub need the package datasets: pip install 'longtail[hf]'."
        ) from None
    kinds = getattr(importlib.import_module("datasets.packaged_modules"), "_PACKAGED_DATASETS_MODULES", ())
    if wanted.name in kinds:  # datasets would read what lies here
        raise UserError(f"{data} is the name of a kind of files, not of a set of the hub, which is written {_WRITTEN}.")
    with quiet(("datasets", "huggingface_hub", "httpx", "fsspec")), _asked(data, wanted, datasets):
        try:
            splits = datasets.load_dataset(wanted.name, wanted.subset, revision=wanted.revision, streaming=False)
        except Exception as error:  # of several libraries and the operating system; they share no base class
            raise UserError(f"{data}: {_reason(error)}; name another one, or a folder of its Parquet files.") from None
    if not isinstance(splits, dict):
        splits = {"": splits}
    hub: Any = importlib.import_module("huggingface_hub")
    places = (datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, hub.constants.HF_HUB_CACHE)
    caches = tuple(Path(place) for place in places)
    return [
        _part(data, str(split), rows, start, min(len(rows), start + _ROWS_OF_A_FOLDER), caches)
        for split, rows in splits.items()
        for start in range(0, len(rows), _ROWS_OF_A_FOLDER)
    ]


@contextmanager
def _asked(data: str, wanted: HubSet, datasets: Any) -> Iterator[None]:
    """Ask the hub for the set at once, and keep ``datasets`` from trying for half a minute where it does not answer.

    Raises:
        UserError: the hub answers that there is no such set.
    """
    hub: Any = importlib.import_module("huggingface_hub")
    errors: Any = importlib.import_module("huggingface_hub.errors")
    try:
        hub.HfApi().dataset_info(wanted.name, revision=wanted.revision, timeout=_TIMEOUT)
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise UserError(f"{data}: {hub_reason(error, _WRITTEN)}; name another one.") from None
    except Exception:  # of whatever kind a network that is not there is: a copy may still be here
        settings = [(module, "HF_HUB_OFFLINE") for module in (datasets.config, hub.constants)]
        before = [getattr(module, name) for module, name in settings]
        try:
            for module, name in settings:
                setattr(module, name, True)
            yield
        finally:
            for (module, name), value in zip(settings, before, strict=True):
                setattr(module, name, value)
    else:
        yield


def _reason(error: Exception) -> str:
    said = in_short(error)
    if type(error).__name__ == "DatasetNotFoundError":
        return f"the hub has no such data set, or gives it only to users who are logged in ({said})"
    if isinstance(error, ConnectionError):
        return "no network for this data set, and no copy of it here"
    if isinstance(error, ValueError) and "onfig" in said:
        return f"which of its subsets is meant? ({said}): write hf:owner/name:subset"
    if isinstance(error, OSError):
        return hub_reason(error, _WRITTEN)
    return f"datasets cannot read it ({said or type(error).__name__})"


def _part(data: str, split: str, rows: Any, start: int, end: int, caches: tuple[Path, ...]) -> Part:
    """Return rows ``start`` to ``end`` of a split, as Arrow holds them: nothing is decoded."""
    plain = rows.with_format("arrow")

    def read(columns: list[str]) -> Any:
        return plain.select_columns(columns)[start:end]

    def images(column: str) -> Iterator[dict[str, Any]]:
        only = plain.select_columns([column])
        for first in range(start, end, _ROWS):
            yield from as_images(only[first : min(end, first + _ROWS)].column(0))

    number = start // _ROWS_OF_A_FOLDER
    name = f"{split or 'all'}/{number:04d}"
    where = f"{data}, split {split}" if split else data
    schema = rows.features.arrow_schema
    stamp = f"{rows._fingerprint} {start}"
    return Part(split, name, where, end - start, start + 1, schema, lambda: stamp, caches, read, images)
