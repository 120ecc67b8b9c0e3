"""What a user names as images: files, folders, patterns, a list on standard input, arrays; in the order given."""

from __future__ import annotations

import codecs
import glob
import os
import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longtail.data.feature_arrays import holds_features
from longtail.data.feature_files import feature_rows
from longtail.data.listing import IMAGE_ENDINGS
from longtail.data.scanning import scan
from longtail.data.tar_shards import is_shards, shard_images
from longtail.errors import UserError

_STDIN = "-"
_LIST_ENDINGS = (".txt", ".lst", ".list")


@dataclass(frozen=True)
class ArrayImages:
    """Images, or features in place of them, out of one file of arrays.

    Attributes:
        file: the file as it was named.
        images: uint8 ``[N, C, H, W]``, of the size that the model takes; or features, float32 ``[N, D]``.
    """

    file: str
    images: Tensor

    def __len__(self) -> int:
        return len(self.images)


Source = list[str] | ArrayImages
"""Image files, or the images of one file of arrays."""


def find_features(words: Sequence[str | os.PathLike[str]]) -> list[Source] | None:
    """Return the features that ``words`` name, None if they name images.

    Raises:
        UserError: some are features and some are not, or a file cannot be read.
    """
    paths = [os.path.expanduser(os.fspath(word)) for word in words]
    kinds = [word != _STDIN and holds_features(Path(word)) for word in paths]
    if not any(kinds):
        return None
    if not all(kinds):
        raise UserError(
            f"{paths[kinds.index(False)]} holds images and {paths[kinds.index(True)]} features; predict one kind at a "
            "time."
        )
    return [ArrayImages(path, feature_rows(path)) for path in paths]


def find_images(words: Sequence[str | os.PathLike[str]], channels: int, size: tuple[int, int]) -> list[Source]:
    """Return what ``words`` name, in that order; the files of a folder sorted, those of its folders after them.

    A word is a file (whatever its ending), a folder (all images in it and below, by their endings), a pattern with
    ``*``, ``**``, ``?`` or ``[]``, ``-`` for one path a line on standard input, an ``.npz`` file, or tar shards
    (a file, a folder of them or a pattern). A file that does not exist is listed too: it is told of like one that
    cannot be read.

    Args:
        words: at least one.
        channels: of the model, for arrays.
        size: height and width of the model, for arrays.

    Raises:
        UserError: no image at all, a list of paths given as if it were one, a pattern that nothing matches, a folder or
            an array that cannot be read.
    """
    lists = [str(word) for word in words if os.fspath(word).lower().endswith(_LIST_ENDINGS)]
    if lists and len(lists) == len(words) and os.path.isfile(os.path.expanduser(lists[0])):
        raise UserError(f"{lists[0]} is no image; if it lists one path a line, give it so: - < {lists[0]}")
    sources: list[Source] = []
    for word in words:
        for path in _paths_of(os.path.expanduser(os.fspath(word))):
            if path.lower().endswith(".npz"):
                sources.append(ArrayImages(path, read_images(Path(path), channels, size)))
            elif sources and isinstance(sources[-1], list):
                sources[-1].append(path)
            else:
                sources.append([path])
    if not any(len(source) for source in sources):
        if not words or [*words] == ["-"]:
            raise UserError("no image was named.")
        endings = ", ".join(sorted(IMAGE_ENDINGS)[:5])
        raise UserError(f"no image in {' '.join(map(str, words))}; images in folders end in {endings} or the like.")
    return sources


def _paths_of(word: str) -> list[str]:
    if word == _STDIN:
        return _lines_of_stdin()
    if is_shards(word):
        return shard_images(word)
    if os.path.isdir(word):
        return _below(word, ())
    if os.path.lexists(word) or not glob.has_magic(word):
        return [word]
    found = sorted(glob.glob(word, recursive=True))
    if not found:
        raise UserError(f"no file matches {word}; name image files, a folder or another pattern.")
    # `**` gives a folder and what lies in it: such a folder is not opened a second time.
    files = [path for path in found if not os.path.isdir(path)]
    return files if "**" in word else [path for item in found for path in _paths_of(glob.escape(item))]


def _lines_of_stdin() -> list[str]:
    """Return the lines, as file names: any bytes, as names of files may be."""
    # A notebook's, and what stands for it in a test, has no bytes beneath.
    data = sys.stdin.buffer.read() if hasattr(sys.stdin, "buffer") else os.fsencode(sys.stdin.read())
    lines = (line.rstrip(b"\r") for line in data.removeprefix(codecs.BOM_UTF8).split(b"\n"))
    return [os.fsdecode(line) for line in lines if line.strip()]


def _below(folder: str, above: tuple[tuple[int, int], ...]) -> list[str]:
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link that leads back up
        return []
    folders, images, _ = scan(folder)
    inner = (path for name in folders for path in _below(os.path.join(folder, name), (*above, here)))
    return [*(os.path.join(folder, name) for name in images), *inner]


def read_images(file: Path, channels: int, size: tuple[int, int]) -> Tensor:
    """Return the images of an ``.npz`` file, uint8 ``[N, C, H, W]``; nothing is unpickled.

    They are its array ``images``, or else ``test_images``, or else its only array: uint8 ``[N, C, H, W]``, ``[N, H, W,
    C]`` or, gray, ``[N, H, W]``.

    Raises:
        UserError: no such file or array, or images of another type or size than the model takes.
    """
    damaged = UserError(f"{file}: not an .npz archive, or cut off; write it again with numpy.savez.")
    try:
        with np.load(file, allow_pickle=False) as archive:
            names = list(archive.files)
            wanted = [name for name in ("images", "test_images") if name in names] or names
            if len(wanted) != 1 and wanted[:1] != ["images"]:
                raise UserError(f"{file} holds no array 'images'; found: {', '.join(names) or 'nothing'}.")
            name = wanted[0]
            array = archive[name]
    except FileNotFoundError:
        raise UserError(f"no such file: {file}") from None
    except UserError:
        raise
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error):  # TypeError: a .npy file inside
        raise damaged from None
    if not isinstance(array, np.ndarray):
        raise damaged
    if array.dtype != np.uint8:
        raise UserError(f"{file}: {name!r} is {array.dtype}, but images are uint8 (0..255); convert them first.")
    if array.ndim == 3:
        array = array[:, None]
    if array.shape[1:] in ((1, *size), (*size, 1)) and channels == 3:  # gray, as files may be
        array = array.reshape(-1, 1, *size).repeat(3, axis=1)
    if array.shape[1:] == (*size, channels) and array.shape[1:] != (channels, *size):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1:] != (channels, *size):
        height, width = size
        raise UserError(
            f"{file}: {name!r} has shape {list(array.shape)}, but the model takes {height} x {width} pixels with "
            f"{channels} channel{'s' if channels > 1 else ''}; bring the arrays to that, or give image files."
        )
    return torch.from_numpy(np.ascontiguousarray(array))
