"""What a source of image files says, before labels are class numbers and splits are made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from longtail.data.path_table import PathTable
from longtail.data.tar_members import Member, Members

IMAGE_ENDINGS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .tif .tiff .bmp .gif .ppm .pgm .pbm .jp2 .avif".split(),
)
"""File name endings, in lower case, that count as images."""


@dataclass(frozen=True)
class Listing:
    """Labelled image files as a folder, a manifest or a split list names them.

    Attributes:
        name: what the user called the source.
        root: folder that the paths are relative to.
        paths: one a file, with forward slashes; relative to ``root``, or absolute where the source says so.
        labels: one a file, as written.
        splits: ``"train"`` or ``"test"`` for each file; None if the source does not say.
        groups: what must not be torn apart by a split (patient, site, burst), one a file; None if not given.
        class_names: the classes in order, where the source fixes them, also those without a file.
        numbered: whether the labels are class numbers 0..C-1.
        notes: sentences for the user.
        members: where the images lie, if in tar shards; None: they are files of their own.
    """

    name: str
    root: Path
    paths: Sequence[str]
    labels: list[str]
    splits: list[str] | None
    groups: list[str] | None
    class_names: tuple[str, ...] | None = None
    numbered: bool = False
    notes: tuple[str, ...] = ()
    members: Members | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def place(self, index: int) -> str:
        """Return what opens image ``index``: its file's path, or shard and bytes (see ``tar_members``)."""
        path = self.paths[index]
        return os.path.join(self.root, path) if self.members is None else self._member(self.members, index).place()

    def title(self, index: int) -> str:
        """Return what people read of image ``index``: its path as listed, with its shard."""
        return self.paths[index] if self.members is None else self._member(self.members, index).title()

    def _member(self, members: Members, index: int) -> Member:
        return members.member(self.root, index, self.paths[index])

    def select(self, indices: Sequence[int]) -> Listing:
        """Return the files at ``indices``, in that order."""

        def pick(values: Sequence[str]) -> list[str]:
            return [values[index] for index in indices]

        return replace(
            self,
            paths=self.paths.select(indices) if isinstance(self.paths, PathTable) else pick(self.paths),
            labels=pick(self.labels),
            splits=None if self.splits is None else pick(self.splits),
            groups=None if self.groups is None else pick(self.groups),
            members=None if self.members is None else self.members.select(indices),
        )
