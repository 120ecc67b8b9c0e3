"""The look at every image file before training: which cannot be read, how large they are, which have equal pixels.

What it finds is kept between runs (``check_cache.py``).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longtail.data.check_cache import Records, load_records, save_records
from longtail.data.decode import BadImage, opened, orientation, upright_rgb
from longtail.data.tar_members import member_at

Level = Literal["full", "header", "none"]

MODES = tuple(" 1 L LA La P PA RGB RGBA RGBa RGBX CMYK YCbCr LAB HSV I I;16 I;16L I;16B I;16N F other".split(" "))
"""Names of the kinds of pixels that a file can hold, as Pillow calls them; the first, empty, is for "not known"."""

_HEADER, _WHOLE = 1, 2  # how far a file was looked at: opened, or decoded

_MODE_NUMBER = {name: number for number, name in enumerate(MODES)}
_ANIMATED = frozenset(("GIF", "PNG", "WEBP", "TIFF", "AVIF"))  # JPEG is not: phones add a preview as a second picture
_FILES_AT_A_TIME = 64
_SAVE_EVERY = 60.0  # seconds
_HASH_BYTES = 1 << 22
_LARGE = 1 << 24  # pixels; larger images are decoded one at a time, each takes several bytes a pixel


class Paths(Protocol):
    """A list of paths, or anything that gives one at a position."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> str: ...


@dataclass(frozen=True)
class ImageFacts:
    """What is known of N image files.

    Attributes:
        widths, heights: int32 ``[N]``, pixels as displayed (EXIF orientation applied); 0 where not known.
        modes: uint8 ``[N]``, positions in ``mode_names``: how the file stores its pixels.
        frames: int32 ``[N]``, frames of an animation or pages; 0 where not known.
        digests: int64 ``[N]``, a hash of size and decoded RGB pixels; 0 where not computed.
        errors: for each file that cannot be read its position and the reason, in order.
        mode_names: :data:`MODES`.
    """

    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    modes: NDArray[np.uint8]
    frames: NDArray[np.int32]
    digests: NDArray[np.int64]
    errors: dict[int, str]
    mode_names: tuple[str, ...] = MODES


def check_images(
    root: Path,
    paths: Paths,
    level: Level,
    workers: int,
    cache: Path | None,
    name: str = "",
    progress: Callable[[int, int], None] | None = None,
    seen: Callable[[int, Image.Image], None] | None = None,
    place: Callable[[int], str] | None = None,
) -> ImageFacts:
    """Look at every file.

    What is found out about good files is kept with their size and modification time, so that the next run looks only at
    new and changed ones. Bad files are looked at again each time: a reason may go away without a change of the file.

    Args:
        root: folder that relative paths belong to.
        paths: N paths.
        level: ``"full"`` decodes every file and hashes its pixels, ``"header"`` opens it (finds missing files and those
            that are no images), ``"none"`` touches nothing.
        workers: threads; Pillow decodes outside Python's lock, so a full check scales with cores (500x375 JPEG on two
            cores: 2.1 ms a file with one thread, 1.1 ms with two).
        cache: folder of the cache (see :func:`default_cache`); None = no cache.
        name: the data source. Each root and name has a cache file of its own, which holds the files listed last.
        progress: called now and then, and at the end, with (files looked at, N).
        seen: called, from any of the threads, with the position of each good file and its pixels, upright RGB. Every
            file is then decoded, at level ``"full"``, whatever the cache knows.
        place: what opens the image at a position, if not root and path; paths are what the cache knows it by.

    Raises:
        KeyboardInterrupt: Ctrl-C; the threads have stopped and what they saw is cached.
    """
    if level == "none":
        empty = Records.empty(len(paths))
        return ImageFacts(empty.widths, empty.heights, empty.modes, empty.frames, empty.digests, {})
    wanted = _WHOLE if level == "full" else _HEADER
    keys = _path_keys(paths)
    records, stale = load_records(cache, root, name, keys)
    check = _Check(paths, records, wanted, seen, place or (lambda index: os.path.join(root, paths[index])))
    try:
        check.run(max(1, workers), progress, lambda: save_records(cache, root, name, keys, records))
    finally:
        if stale or check.changed:
            save_records(cache, root, name, keys, records)
    if wanted == _HEADER:  # the answer must not depend on what an earlier, full check left in the cache
        records.digests[:] = 0
    errors = dict(sorted(check.errors.items()))
    return ImageFacts(records.widths, records.heights, records.modes, records.frames, records.digests, errors)


def _path_keys(paths: Paths) -> NDArray[np.int64]:
    """Return a 64-bit hash of each path ``[N]``."""
    hashes = (hashlib.blake2b(os.fsencode(paths[index]), digest_size=8).digest() for index in range(len(paths)))
    return np.fromiter((int.from_bytes(digest, "little", signed=True) for digest in hashes), np.int64, len(paths))


class _Check:
    """Threads that fill ``records`` from the files, and a caller that waits for them."""

    def __init__(
        self,
        paths: Paths,
        records: Records,
        wanted: int,
        seen: Callable[[int, Image.Image], None] | None,
        place: Callable[[int], str],
    ) -> None:
        self.paths, self.records, self.wanted, self.seen, self.place = paths, records, wanted, seen, place
        self.errors: dict[int, str] = {}
        self.changed = False
        self._next = self._done = 0
        self._lock, self._one_large = threading.Lock(), threading.Lock()
        self._stop = threading.Event()
        self._failure: BaseException | None = None

    def run(self, workers: int, progress: Callable[[int, int], None] | None, save: Callable[[], None]) -> None:
        """Look at all files. Any exception, Ctrl-C among them, stops the threads before it goes on."""
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        saved = time.monotonic()
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.1)
                    if progress is not None:
                        progress(self._done, len(self.paths))
                    if self.changed and time.monotonic() - saved > _SAVE_EVERY:
                        save()
                        saved = time.monotonic()
        finally:
            self._stop.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
        if self._failure is not None:
            raise self._failure
        if progress is not None:
            progress(len(self.paths), len(self.paths))

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    start, self._next = self._next, self._next + _FILES_AT_A_TIME
                if start >= len(self.paths):
                    return
                self._look_at(range(start, min(start + _FILES_AT_A_TIME, len(self.paths))))
        except BaseException as error:
            self._failure = error
            self._stop.set()

    def _look_at(self, positions: range) -> None:
        records, part = self.records, slice(positions.start, positions.stop)
        places = [self.place(index) for index in positions]
        stamps = np.array([_stamp(place) for place in places], dtype=np.int64)
        known = (stamps == np.stack([records.bytes[part], records.times[part]], 1)).all(1)
        known &= (records.levels[part] >= self.wanted) & (self.seen is None)
        self._count(int(known.sum()))
        for offset in np.flatnonzero(~known).tolist():
            if self._stop.is_set():
                return
            self._look(positions[offset], places[offset], stamps[offset])
            self._count(1)

    def _count(self, files: int) -> None:
        with self._lock:
            self._done += files

    def _look(self, index: int, place: str, stamp: NDArray[np.int64]) -> None:
        records = self.records
        self.changed = True
        records.forget(index)
        try:
            with opened(place) as image:
                width, height = image.size
                mode = _MODE_NUMBER.get(image.mode, len(MODES) - 1)
                frames = _count_frames(image)
                # A TIFF reader reports the size as displayed, the others as stored.
                if image.format != "TIFF" and orientation(image) >= 5:
                    width, height = height, width
                digest = self._decode(index, image) if self.wanted == _WHOLE else 0
        except BadImage as error:
            self.errors[index] = error.reason
            return
        records.bytes[index], records.times[index] = stamp
        records.widths[index], records.heights[index] = width, height
        records.modes[index], records.frames[index], records.digests[index] = mode, frames, digest
        records.levels[index] = self.wanted  # last: a copy taken meanwhile has the rest of a record that has a level

    def _decode(self, index: int, image: Image.Image) -> int:
        with self._one_large if image.width * image.height > _LARGE else contextlib.nullcontext():
            pixels = upright_rgb(image)
            if self.seen is not None:
                self.seen(index, pixels)
            return pixel_digest(pixels)


def _stamp(place: str) -> tuple[int, int]:
    """Return size in bytes and modification time in nanoseconds; -1 for a file that is not there."""
    try:
        member = member_at(place)
        if member is not None:
            return member.stamp()
        status = os.stat(place)
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _count_frames(image: Image.Image) -> int:
    if image.format not in _ANIMATED:
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # later frames may be damaged; only the first is used
        image.seek(0)
        return 1


def pixel_digest(image: Image.Image) -> int:
    """Return a 64-bit hash of an RGB image's size and pixels, never 0."""
    digest = hashlib.blake2b(f"{image.width}x{image.height}".encode(), digest_size=8)
    rows = max(1, _HASH_BYTES // (3 * image.width))
    for top in range(0, image.height, rows):  # in strips: a copy of a very large image would double its memory
        digest.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
    return int.from_bytes(digest.digest(), "little", signed=True) or 1


def bad_image_message(
    errors: Mapping[int, str], paths: Paths, total: int, limit: int = 5, *, skipped: bool = False
) -> str:
    """Return one sentence that names the first ``limit`` files that cannot be read, and what to do.

    Args:
        errors: position and reason of each.
        paths: paths by position.
        total: how many files there are.
        limit: how many are named.
        skipped: whether they are left out (a note) or stop the run (an error).
    """
    named = ", ".join(f"{paths[index]} ({errors[index]})" for index in sorted(errors)[:limit])
    more = f" and {len(errors) - limit} more" if len(errors) > limit else ""
    count = f"{len(errors)} of {total} images cannot be read"
    if skipped:
        return f"{count} and {'is' if len(errors) == 1 else 'are'} left out: {named}{more}."
    them = "it" if len(errors) == 1 else "them"
    return f"{count}: {named}{more}; mend or delete {them}, or leave {them} out with --on_bad_image skip."
