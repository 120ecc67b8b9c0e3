"""Images inside tar files, named by one text and read by their byte offset: nothing is unpacked."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_PLACE = re.compile(r"(?P<tar>.+?\.tar)::(?P<offset>\d{1,18}):(?P<length>\d{1,18}):(?P<name>.*)", re.DOTALL)


@dataclass(frozen=True)
class Member:
    """Bytes ``offset .. offset + length`` of the file ``tar``, which its header calls ``name``."""

    tar: str
    offset: int
    length: int
    name: str

    def place(self) -> str:
        """Return the text that :func:`member_at` understands: ``TAR::OFFSET:LENGTH:NAME``."""
        return f"{self.tar}::{self.offset}:{self.length}:{self.name}"

    def title(self) -> str:
        """Return what people read: the tar file and the name in it."""
        return f"{self.tar}: {self.name}"

    def stamp(self) -> tuple[int, int]:
        """Return the member's bytes and the tar file's modification time in nanoseconds.

        Raises:
            OSError: the tar file is not there.
        """
        return self.length, os.stat(self.tar).st_mtime_ns

    def read(self) -> bytes:
        """Return the member's bytes by one read; fewer than ``length`` where the tar file ends before.

        Raises:
            OSError: the tar file cannot be read.
        """
        with open(self.tar, "rb", buffering=0) as file:
            file.seek(self.offset)
            data = file.read(self.length) or b""
            while len(data) < self.length and (more := file.read(self.length - len(data))):
                data += more
        return data


def member_at(path: str | os.PathLike[str]) -> Member | None:
    """Return the member that ``TAR::OFFSET:LENGTH:NAME`` names; None for the path of a file."""
    text = os.fspath(path)
    if "::" not in text or os.path.lexists(text):  # a file may have any name
        return None
    found = _PLACE.fullmatch(text)
    return found and Member(found["tar"], int(found["offset"]), int(found["length"]), found["name"])


def shown(path: str | os.PathLike[str]) -> str:
    """Return a file's path as it is, and tar file and name where it is that of a member."""
    member = member_at(path)
    return os.fspath(path) if member is None else member.title()


@dataclass(frozen=True)
class Members:
    """Where N images lie in tar files.

    Attributes:
        shards: the tar files, relative to the same root as paths are, or absolute.
        spans: int64 ``[N, 3]``: position in ``shards``, first byte, and length in bytes.
    """

    shards: tuple[str, ...]
    spans: Tensor

    def member(self, root: str | os.PathLike[str], index: int, path: str) -> Member:
        """Return image ``index``, whose path as listed (with or without its shard in front) is ``path``."""
        shard, offset, length = self.spans[index].tolist()
        tar = self.shards[shard]
        return Member(os.path.join(root, tar), offset, length, path.removeprefix(f"{tar}/"))

    def select(self, indices: Tensor | Sequence[int]) -> Members:
        """Return the images at ``indices``, in that order."""
        return replace(self, spans=self.spans[torch.as_tensor(indices, dtype=torch.int64)])
