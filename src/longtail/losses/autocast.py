"""Full precision in the middle of autocast, on every device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Switch autocast off for the device of ``x``, only where it is on, so that an exported graph holds no trace of it.

    A device that has no autocast (meta, on which shapes are computed without values) is left alone.
    """
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()
