"""Files that are whole or not there: written to a new name, fsynced, renamed, and checked by SHA-256 when read.

Tensors go into safetensors, everything else into JSON; nothing in a run folder is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as dump_safetensors
from torch import Tensor

from longtail.errors import UserError

FORMAT_VERSION = 1
"""Version of everything this package writes; raised when an older reader would misread it."""

_STAMP = ("format_version", "sha256", "meta_sha256")


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable: without this a crash may undo them."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(fresh, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinities are refused: they are not JSON."""
    write_bytes(path, as_json(value))


def as_json(value: Any) -> bytes:
    """Return ``value`` as indented JSON; NaN and infinities are refused: they are not JSON."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def check_output(path: Path, overwrite: bool, endings: Sequence[str] = (), option: str = "--out") -> Path:
    """Return ``path``, a file that ``option`` names, if it may be written; looked at before the work is done.

    Args:
        path: the file; folders above it need not be there.
        overwrite: whether it may be replaced.
        endings: one of which it must have; () = any.
        option: as the user knows it.

    Raises:
        UserError: another ending, a folder, a file that is not to be overwritten, or nothing can be written there.
    """
    if endings and path.suffix not in endings:
        raise UserError(f"{option} {path} must end in {' or '.join(endings)}.")
    if os.path.isdir(path):
        raise UserError(f"{option} {path} is a folder; name a file.")
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"{option} {path} exists; add --overwrite or choose another file.")
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not os.path.isdir(above):
        raise UserError(f"{option} {path} cannot be written: {above} is not a folder.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path} cannot be written: Permission denied in {above}.")
    return path


def write_output(path: Path, data: bytes) -> None:
    """Write a file that ``--out`` names, whole or not at all; a full disk is a :class:`UserError`."""
    try:
        write_bytes(path, data)
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror}.") from None


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one is a :class:`UserError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); it was cut off or changed.") from None


def save_tensors(folder: Path, stem: str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write ``stem.safetensors`` and ``stem.json`` (``meta`` plus SHA-256 of both and a version)."""
    data = dump_safetensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    write_bytes(folder / f"{stem}.safetensors", data)
    stamp = {
        "format_version": FORMAT_VERSION,
        "sha256": hashlib.sha256(data).hexdigest(),
        "meta_sha256": _digest(meta),
    }
    write_json(folder / f"{stem}.json", {**stamp, **meta})


def _digest(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True, allow_nan=False).encode()).hexdigest()


def load_meta(folder: Path, stem: str) -> dict[str, Any]:
    """Read ``stem.json`` of :func:`save_tensors`: ``meta``, without the stamp.

    Raises:
        UserError: the file is missing, cut off, changed since it was written, or of another format version.
    """
    return _read_stamped(folder, stem)[0]


def load_tensors(folder: Path, stem: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote: ``(tensors, meta)``, tensors on the CPU.

    Raises:
        UserError: a file is missing, cut off, changed since it was written, or of another format version.
    """
    path = folder / f"{stem}.safetensors"
    meta, digest = _read_stamped(folder, stem)
    try:
        data = path.read_bytes()
    except OSError:
        raise UserError(f"no such file: {path}") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise UserError(f"{path} does not match the SHA-256 in {stem}.json; it was cut off or changed.")
    try:
        return parse_safetensors(data), meta
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file ({error}).") from None


def _read_stamped(folder: Path, stem: str) -> tuple[dict[str, Any], str]:
    """Return ``(meta, SHA-256 of the tensors)`` of a checked ``stem.json``."""
    path = folder / f"{stem}.json"
    record = read_json(path)
    if not isinstance(record, dict) or "sha256" not in record:
        raise UserError(f"{path} is not a file of this program.")
    if record.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {record.get('format_version')}, this program reads version "
            f"{FORMAT_VERSION}; use the longtail release that wrote it."
        )
    meta = {key: value for key, value in record.items() if key not in _STAMP}
    if _digest(meta) != record.get("meta_sha256"):
        raise UserError(f"{path} does not match its own SHA-256; it was changed.")
    return meta, str(record["sha256"])
