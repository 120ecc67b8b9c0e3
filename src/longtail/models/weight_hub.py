"""Published weights fetched: from the hub, from its local cache, or from a plain address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from longtail.hub import HUB, quiet
from longtail.models.open_clip_encoder import (
    HUB_FILES,
    OPEN_CLIP,
    hub_place,
    is_open_clip,
)
from longtail.models.timm_encoder import (
    timm_config,
)

RUN_FILE = "model.safetensors"


_TIMEOUT = 10.0  # seconds until the hub must have answered


def hub_file(weights: str) -> Path:
    """Return the local file of hub weights, ``architecture.tag`` or ``hf-hub:owner/name``, downloaded if need be.

    Names of open_clip's weights start with ``open_clip:``, both ``open_clip:architecture.tag`` and
    ``open_clip:hf-hub:owner/name``, since a repository may hold one model for timm and for open_clip.
    A copy in the local cache is taken without asking the network.

    Raises:
        Exception: of the hub's client or the network, whatever kind it is.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    repository, files, address = _hub_address(weights)
    if not repository:
        return _url_file(address)
    repository, _, revision = repository.partition("@")
    where: dict[str, Any] = {"repo_id": repository, "revision": revision or None}
    with quiet():
        for file in files:
            try:
                return Path(hf_hub_download(filename=file, local_files_only=True, **where))
            except EntryNotFoundError:  # not in the cache
                continue
        for file in files:
            try:
                # Fails at once where there is no network; the download itself would try again for half a minute.
                get_hf_file_metadata(hf_hub_url(filename=file, **where), timeout=_TIMEOUT)
            except EntryNotFoundError:
                continue
            return Path(hf_hub_download(filename=file, **where))
    raise FileNotFoundError(f"{repository} holds none of {', '.join(files)}")


def _hub_address(weights: str) -> tuple[str, list[str], str]:
    """Return repository, files to look for in it, and the plain address of weights that lie in no repository ("")."""
    ours = weights.removeprefix(OPEN_CLIP)
    if ours.startswith(HUB):
        files = list(HUB_FILES) if is_open_clip(weights) else [RUN_FILE, "pytorch_model.bin"]
        return ours.removeprefix(HUB), files, ""
    if is_open_clip(weights):
        repository, file, address = hub_place(weights)
        # A file of another name mostly has a safe copy beside it, which open_clip looks for first, too.
        safe = [str(Path(file).with_suffix(".safetensors"))] if file and not file.endswith(".safetensors") else []
        return repository, [*safe, file] if file else list(HUB_FILES), address
    config = timm_config(weights)
    if config is None:
        return weights, [RUN_FILE, "pytorch_model.bin"], ""
    named = config.hf_hub_filename
    return config.hf_hub_id or "", [named] if named else [RUN_FILE, "pytorch_model.bin"], config.url or ""


def _url_file(url: str) -> Path:
    """Return the local copy of a file that timm takes from a plain address, as torch.hub keeps it."""
    from urllib.request import urlopen

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rsplit("/", 1)[-1]
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        urlopen(url, timeout=_TIMEOUT).close()  # the download itself has no time limit
        torch.hub.download_url_to_file(url, str(path))
    return path
