"""Files of pretrained weights: their tensors by name, whichever program wrote them, and nothing but tensors."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from longtail.errors import UserError
from longtail.hub import quiet

_NESTS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Where training programs keep the tensors in a file that holds more; the averaged ones first."""
_PICKLE_START = b"\x80"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors`` file, or of any other file as ``torch.save`` writes it, on the CPU.

    Of the latter only tensors and plain records are read: what would run code is refused.

    Raises:
        UserError: the file is damaged, no weight file, or holds more than tensors.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from None
    content = _read_pickled(path)
    for nest in _NESTS:
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            content = content[nest]
    named = content.items() if isinstance(content, dict) else ()
    tensors = {str(key): value for key, value in named if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"--pretrained {path} holds no tensors with names; give a file of an encoder's weights.")
    return tensors


def _read_pickled(path: Path) -> Any:
    zipped = zipfile.is_zipfile(path)
    try:
        # timm's own checkpoints hold their options as a Namespace, which is a plain record.
        with quiet(), torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # bytes of any kind make the reader fail in any way
        if "TorchScript" in str(error):
            raise UserError(
                f"--pretrained {path} is a TorchScript archive, which holds code beside its tensors (OpenAI's own CLIP "
                "files are such); name published weights by their tag instead, such as openai, or convert it to "
                "safetensors with a program that you trust."
            ) from None
        refused = isinstance(error, pickle.UnpicklingError) and (zipped or _starts_as_pickle(path))
        if refused:
            raise UserError(
                f"--pretrained {path} holds more than tensors, which could run code when read; convert it to "
                "safetensors with a program that you trust."
            ) from None
        raise _unreadable(path, error) from None


def _starts_as_pickle(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(1) == _PICKLE_START


def _unreadable(path: Path, error: Exception) -> UserError:
    # torch's own words on this are a page about how to switch the protection off.
    said = " ".join(str(error).split())
    reason = "" if isinstance(error, pickle.UnpicklingError) or not said else f" ({said[:120].rstrip('.')})"
    return UserError(
        f"--pretrained {path} cannot be read as a file of weights{reason}; it is empty, cut off or something else: "
        "fetch or save it again."
    )
