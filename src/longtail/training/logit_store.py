"""Logits of many images of many classes: in memory where they are few, else in a file that goes with the last reader.

25,000 images of 100,000 classes have 10 GB of logits. Figures read them a block of rows at a time, so that they may lie
on disk.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from longtail.errors import UserError

IN_MEMORY = 2**30
"""Bytes up to which logits are kept in memory."""


def logit_store(images: int, classes: int, folder: Path | None = None) -> Tensor:
    """Return room for logits, float32 ``[images, classes]`` on the CPU, with arbitrary content.

    Beyond 1 GiB it is a file in ``folder`` (if there is none, or it is read-only, in the system's folder for temporary
    files, which may itself lie in memory), without a name, so that nothing is left behind however the process ends.

    Raises:
        UserError: the file does not fit on the disk, or cannot be made.
    """
    size = 4 * images * classes
    if size <= IN_MEMORY:
        return torch.empty(images, classes)
    usable = folder is not None and os.access(folder, os.W_OK)
    place = str(folder if usable else tempfile.gettempdir())
    try:
        number, name = tempfile.mkstemp(prefix=".logits.", suffix=".tmp", dir=place)
        try:
            # Room is taken now: a disk that fills up later would kill the process instead of failing a write.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(number, 0, size)
            kept = torch.from_file(name, shared=True, size=images * classes, dtype=torch.float32)
        finally:
            os.close(number)
            os.unlink(name)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UserError(
            f"the logits of {images} images and {classes} classes need {size / 2**30:.1f} GiB in {place} ({reason}); "
            "make room there."
        ) from None
    return kept.view(images, classes)
