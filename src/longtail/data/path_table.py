"""File paths in one block of bytes: a million of them without a million Python objects."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CHUNK = 1 << 16
"""Paths that are text at a time."""


class PathTable(Sequence[str]):
    """N paths, read as a list of text is read.

    Worker processes share it: reading an entry touches no reference count of the others.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        data, lengths = bytearray(), array("q", [0])
        for path in paths:
            part = path.encode("utf-8", "surrogateescape")
            data += part
            lengths.append(len(part))
        self._bytes: bytes = bytes(data)
        self._offsets: Tensor = torch.from_numpy(np.frombuffer(lengths, np.int64).cumsum())

    @classmethod
    def packed(cls, data: bytes, lengths: NDArray[np.int64]) -> PathTable:
        """Return the table of paths that lie one after another in ``data`` (UTF-8), ``lengths [N]`` bytes long.

        Raises:
            ValueError: the lengths do not add up to the bytes.
        """
        if int(lengths.sum()) != len(data) or (len(lengths) and int(lengths.min()) < 0):
            raise ValueError(f"paths of {int(lengths.sum())} bytes in {len(data)} bytes")
        table = cls(())
        table._bytes = data
        table._offsets = torch.from_numpy(np.concatenate([[0], lengths.astype(np.int64).cumsum()]))
        return table

    def __len__(self) -> int:
        return self._offsets.numel() - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> PathTable: ...
    def __getitem__(self, index: int | slice) -> str | PathTable:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"path {index} of {count}")
        start, end = self._offsets[index % count : index % count + 2].tolist()
        return self._bytes[start:end].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        data = self._bytes
        for first in range(0, len(self), _CHUNK):
            ends = self._offsets[first : first + _CHUNK + 1].tolist()
            for start, end in pairwise(ends):
                yield data[start:end].decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PathTable):
            return self._bytes == other._bytes and torch.equal(self._offsets, other._offsets)
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(mine == yours for mine, yours in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(self._bytes)

    def __add__(self, other: Sequence[str]) -> PathTable:
        more = other if isinstance(other, PathTable) else PathTable(other)
        return PathTable.packed(self._bytes + more._bytes, np.concatenate([self.lengths(), more.lengths()]))

    def data(self) -> bytes:
        """Return the paths one after another, UTF-8."""
        return self._bytes

    def lengths(self) -> NDArray[np.int64]:
        """Return how many bytes each path has, ``[N]``."""
        lengths: NDArray[np.int64] = np.diff(self._offsets.numpy())
        return lengths

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> PathTable:
        """Return the table of the paths at ``indices``, in that order."""
        where = np.asarray(indices, np.int64)
        offsets, source = self._offsets.numpy(), np.frombuffer(self._bytes, np.uint8)
        starts, lengths = offsets[where], offsets[where + 1] - offsets[where]
        data = np.empty(int(lengths.sum()), np.uint8)
        done = 0
        for first in range(0, len(where), _CHUNK):  # the bytes' positions take eight times the bytes
            begin, size = starts[first : first + _CHUNK], lengths[first : first + _CHUNK]
            whole = int(size.sum())
            shift = np.repeat(begin - (size.cumsum() - size), size)
            data[done : done + whole] = source[shift + np.arange(whole)]
            done += whole
        return PathTable.packed(data.tobytes(), lengths)

    def digest(self) -> bytes:
        """Return a SHA-256 over the paths, in order."""
        digest = hashlib.sha256(self._bytes)
        digest.update(self._offsets.numpy().tobytes())
        return digest.digest()
