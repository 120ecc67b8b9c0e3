"""One tar shard of samples (KEY.jpg beside KEY.cls or KEY.json), read once: where images lie and what their labels are.

Headers and the small label members are read, images are not.
"""

from __future__ import annotations

import contextlib
import json
import os
import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from longtail.data.listing import IMAGE_ENDINGS
from longtail.data.multi_label import multi_label_error
from longtail.errors import UserError

_MOST_BYTES = 1 << 20
"""Of a label member: no label is as long, and it is read whole."""
_BUFFER = 1 << 16
_FORM = "a sample is KEY.jpg (or .png, .webp ...) with KEY.cls, or with KEY.json that holds its label"


@dataclass
class ShardSamples:
    """The samples of one shard, in the order of its images; label and group are "" where they were not asked for.

    Attributes:
        names: of the image members, without a leading ``./``.
        offsets, lengths: of their bytes in the tar file.
        labels, groups: one a sample, as written.
        others: members that are no part of a sample.
        first_other: name of the first of them, "" if there are none.
    """

    names: list[str] = field(default_factory=list)
    offsets: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    labels: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    others: int = 0
    first_other: str = ""


@dataclass
class _Sample:
    """What members of one key say: ``found`` maps a kind of member (``image``, ``cls``, ``json``) to its name."""

    found: dict[str, str] = field(default_factory=dict)
    span: tuple[int, int] = (0, 0)
    label: str | None = None
    group: str | None = None


def scan_shard(shard: str, label_field: str, group_field: str, labelled: bool = True) -> ShardSamples:
    """Return the samples of a tar file.

    As in WebDataset, a member's key is its name up to the first dot after the last slash. Members of a key need not be
    neighbours. Other members (captions, masks, metadata) are counted and left aside.

    Args:
        shard: the file, an ordinary tar that is not compressed.
        label_field, group_field: of JSON members; numbers count as their text.
        labelled: whether labels are needed; if not, only images are looked for.

    Raises:
        UserError: no such file, no tar, compressed, cut off or damaged; a sample without label or image, with two
            labels, or a key that occurs twice. The message names shard and member.
    """
    samples: dict[str, _Sample] = {}
    result = ShardSamples()
    with _members(shard) as (file, members):
        for member in members:
            name = member.name.removeprefix("./")
            kind, key = _kind(name, labelled)
            if kind and not (member.isreg() and not member.issparse()):
                raise UserError(
                    f"{shard}: {name} is a link or has holes, so its bytes are not in the shard; write it again with "
                    "ordinary files (tar --hard-dereference -h)."
                )
            if not kind:
                result.others += member.isreg()
                result.first_other = result.first_other or (name if member.isreg() else "")
                continue
            sample = samples.setdefault(key, _Sample())
            if kind in sample.found:
                what = f"{sample.found[kind]} and {name}" if sample.found[kind] != name else f"{name} twice"
                raise UserError(f"{shard}: sample {key!r} occurs twice ({what}); give every sample a key of its own.")
            sample.found[kind] = name
            if kind == "image":
                sample.span = member.offset_data, member.size
            else:
                if member.size > _MOST_BYTES:
                    raise UserError(f"{shard}: {name} has {member.size} bytes, too many for a label; write it again.")
                file.seek(member.offset_data)
                _read_label(shard, name, kind, file.read(member.size), sample, (label_field, group_field))
    for key, sample in samples.items():
        _add(result, shard, key, sample, labelled, label_field)
    return result


def _kind(name: str, labelled: bool) -> tuple[str, str]:
    """Return ``image``, ``cls``, ``json`` or "" (no part of a sample), and the key."""
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    ending = f".{ending.lower()}" if stem and dot else ""
    kind = "image" if ending in IMAGE_ENDINGS else {".cls": "cls", ".json": "json"}.get(ending, "")
    return (kind if labelled or kind == "image" else ""), folder + slash + stem


@contextlib.contextmanager
def _members(shard: str) -> Iterator[tuple[BinaryIO, Iterator[tarfile.TarInfo]]]:
    """Open a tar file and its members; whatever is wrong with it is a ``UserError`` that names it."""
    again = "copy or write it again"
    try:
        with open(shard, "rb", buffering=_BUFFER) as file:
            start = file.read(6)
            if start[:2] == b"\x1f\x8b" or start[:3] == b"BZh" or start == b"\xfd7zXZ\0" or start[:4] == b"(\xb5/\xfd":
                raise UserError(
                    f"{shard} is compressed, so its images cannot be read one by one; uncompress it (images hardly "
                    "get smaller by compression)."
                )
            file.seek(0)
            last = [""]
            try:
                with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                    yield file, _each(tar, last)
                    # tarfile takes a damaged header, or none, for the end; a whole file ends with blocks of zeros.
                    file.seek(tar.offset)
                    end = file.read(tarfile.BLOCKSIZE)
            except tarfile.ReadError as error:
                if not last[0] and "unexpected end" not in str(error):
                    raise UserError(f"{shard} is no tar file ({error}); {again}.") from None
                raise UserError(f"{shard} is cut off in {last[0] or 'its first member'}; {again}.") from None
            if len(end) < tarfile.BLOCKSIZE:
                raise UserError(f"{shard} is cut off after {last[0]}; {again}.")
            if end.strip(b"\0"):
                raise UserError(f"{shard} is damaged after {last[0]} (no tar header there); {again}.")
    except FileNotFoundError:
        raise UserError(f"no such shard: {shard}") from None
    except OSError as error:
        raise UserError(f"shard {shard} cannot be read ({error.strerror or error}).") from None


def _each(tar: tarfile.TarFile, last: list[str]) -> Iterator[tarfile.TarInfo]:
    """Yield the members in order, none kept in memory; ``last`` holds the name of the latest."""
    held: Any = tar
    while (member := tar.next()) is not None:
        last[0] = member.name
        held.members = []  # tarfile would keep them all
        yield member


def _read_label(shard: str, name: str, kind: str, data: bytes, sample: _Sample, fields: tuple[str, str]) -> None:
    """Take label and group out of a ``.cls`` or ``.json`` member."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{shard}: {name} is not UTF-8 text; write it again.") from None
    if kind == "cls":
        values: list[str | None] = [text.strip(), None]
        if not values[0] or "\n" in text.strip():
            what = "is empty" if not values[0] else "has several lines"
            raise UserError(f"{shard}: {name} {what}; it must hold one class number or name.")
    else:
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            raise UserError(f"{shard}: {name} is not JSON; write it again.") from None
        if not isinstance(record, dict):
            raise UserError(f"{shard}: {name} is no JSON object ({{...}}); write it again.")
        values = [_text(shard, name, key, record.get(key)) for key in fields]
    label, group = values
    if label is not None and sample.label is not None and label != sample.label:
        other = sample.found["json" if kind == "cls" else "cls"]
        raise multi_label_error(f"{shard}, {name}", f"label {label!r}, but {sample.label!r} in {other}")
    sample.label = sample.label if label is None else label
    sample.group = sample.group if group is None else group


def _text(shard: str, name: str, key: str, value: Any) -> str | None:
    if isinstance(value, str) and value.strip() and "\0" not in value:
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None:
        return None
    if isinstance(value, list | dict):
        raise multi_label_error(
            f"{shard}, {name}", f"field {key!r} holds {'a list' if isinstance(value, list) else 'an object'}"
        )
    raise UserError(f"{shard}: {name} has {value!r} as {key!r}, which is no class number or name; write it again.")


def _add(result: ShardSamples, shard: str, key: str, sample: _Sample, labelled: bool, label_field: str) -> None:
    image = sample.found.get("image")
    if image is None:
        if sample.label is None:  # JSON of something else
            result.others += 1
            result.first_other = result.first_other or next(iter(sample.found.values()))
            return
        raise UserError(
            f"{shard}: sample {key!r} has a label ({next(iter(sample.found.values()))}) but no image; {_FORM}."
        )
    if labelled and sample.label is None:
        why = (
            f" (its JSON has no {label_field!r}; name the field by --source.label_column)"
            if "json" in sample.found
            else ""
        )
        raise UserError(f"{shard}: sample {key!r} ({image}) has no label{why}; {_FORM}.")
    if not image.isprintable():
        raise UserError(f"{shard}: the name {image!a} is not printable UTF-8 text; write the shard with other names.")
    result.names.append(image)
    result.offsets.append(sample.span[0])
    result.lengths.append(sample.span[1])
    result.labels.append(sample.label or "")
    result.groups.append(sample.group or "")


def shard_time(shard: str) -> tuple[int, int]:
    """Return a shard's size in bytes and modification time in nanoseconds.

    Raises:
        UserError: it is not there.
    """
    try:
        status = os.stat(shard)
    except FileNotFoundError:
        raise UserError(f"no such shard: {shard}") from None
    except OSError as error:
        raise UserError(f"shard {shard} cannot be looked at ({error.strerror}).") from None
    return status.st_size, status.st_mtime_ns
