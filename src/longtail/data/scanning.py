"""What one folder holds: folders, images and the rest, without a look at the files themselves."""

from __future__ import annotations

import os
from collections import deque

from longtail.data.listing import IMAGE_ENDINGS
from longtail.errors import UserError

_SILENT = frozenset(("__MACOSX", "Thumbs.db", "desktop.ini"))
_SEARCH_DEPTH = 5


def scan(folder: str) -> tuple[list[str], list[str], list[str]]:
    """Return the names of folders, images and other files in ``folder``, each sorted; hidden ones left out."""
    folders, images, files = [], [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                entry_name = entry.name
                if entry_name[0] == "." or entry_name in _SILENT:
                    continue
                try:
                    is_folder = entry.is_dir()
                except OSError:  # a link that leads to itself
                    is_folder = False
                if is_folder:
                    folders.append(entry_name)
                elif entry_name[entry_name.rfind(".") :].lower() in IMAGE_ENDINGS:
                    images.append(entry_name)
                else:
                    files.append(entry_name)
    except FileNotFoundError:
        raise UserError(f"no such folder: {folder}") from None
    except NotADirectoryError:
        raise UserError(f"{folder} is a file, not a folder of images.") from None
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read ({error.strerror}); change its permissions.") from None
    return sorted(folders), sorted(images), sorted(files)


def first_image(folder: str) -> str | None:
    """Return the path below ``folder`` of an image nearest to it, by names; None if there is none in reach."""
    queue = deque([("", 0)])
    seen: set[tuple[int, int]] = set()  # links may form a circle
    while queue:
        inner, depth = queue.popleft()
        here = os.path.join(folder, inner)
        try:
            status = os.stat(here)
        except OSError:
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        folders, images, _ = scan(here)
        if images:
            return inner + images[0]
        if depth < _SEARCH_DEPTH:
            queue.extend((f"{inner}{below}/", depth + 1) for below in folders)
    return None
