"""Which encoder made a file of features, as the record beside it says."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from longtail.data.feature_arrays import INDEX
from longtail.data.feature_set import (
    FeatureOrigin,
)
from longtail.data.image_set import Framing
from longtail.errors import UserError
from longtail.files import load_meta


def origin_record(origin: FeatureOrigin) -> dict[str, Any]:
    """Return the record of an encoder, JSON-able; its file by name alone, as it lies beside the record."""
    return asdict(origin) | {"file": None if origin.file is None else origin.file.name}


def read_origin(record: Any, folder: Path) -> FeatureOrigin:
    """Return the encoder of a record that lies in ``folder``; ``file`` is None where it is not there any more.

    Raises:
        KeyError, TypeError, ValueError: it is no such record.
    """
    framing = record["framing"]
    height, width = (int(side) for side in framing["size"])
    file = None if record["file"] is None else folder / str(record["file"])
    return FeatureOrigin(
        encoder=str(record["encoder"]),
        in_channels=int(record["in_channels"]),
        mean=tuple(map(float, record["mean"])),
        std=tuple(map(float, record["std"])),
        framing=Framing((height, width), int(framing["resize"]), framing["interpolation"]),
        weights=str(record["weights"]),
        file=file if file is not None and file.is_file() else None,
        digest=None if record.get("digest") is None else str(record["digest"]),
    )


def origin_of(path: str | Path) -> FeatureOrigin | None:
    """Return the encoder that a file or folder of features says it is of; None if it does not say.

    Raises:
        UserError: its record cannot be read.
    """
    path = Path(path).expanduser()
    folder, stem = (path, INDEX.removesuffix(".json")) if path.is_dir() else (path.parent, path.stem)
    if path.suffix.lower() == ".npz" or not (folder / f"{stem}.json").is_file():
        return None
    return origin_in(path, load_meta(folder, stem))


def origin_in(path: Path, meta: dict[str, Any]) -> FeatureOrigin | None:
    """Return the encoder that ``meta``, the record of the file or folder ``path``, names; None if it names none.

    Raises:
        UserError: it cannot be read.
    """
    if meta.get("origin") is None:
        return None
    try:
        return read_origin(meta["origin"], path if path.is_dir() else path.parent)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: the record of its encoder cannot be read ({error!r}); embed the images again."
        ) from None
