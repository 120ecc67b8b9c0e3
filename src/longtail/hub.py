"""The Hugging Face hub: folders to and from it, and in a few words why it gave nothing.

The client is imported when it is needed. Nothing here asks for or stores a token: the client knows who is logged in.
"""

from __future__ import annotations

import errno
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from longtail.errors import UserError

HUB = "hf-hub:"
"""What stands before the name of a model on the hub."""
HUB_NAME = re.compile(r"(hf-hub:)?[\w.-]+/[\w.-]+(@\S+)?")
MODEL_FILES = ("model.safetensors", "model.json", "calibration.json", "validation.safetensors", "validation.json")
"""What is fetched of a model: what ``longtail export --format safetensors`` writes, without the card."""
_LOG_IN = "log in by hf auth login, or set HF_TOKEN"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


@contextmanager
def quiet(names: Sequence[str] = ("timm", "huggingface_hub", "httpx")) -> Iterator[None]:
    """Keep libraries, by the names of their loggers, from stderr: what the user must know is said in our own words."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def hub_reason(error: Exception, written: str = "hf-hub:owner/name") -> str:
    """Say in a few words why the hub gave or took nothing; ``written`` is how its names are written there."""
    from urllib.error import HTTPError

    from huggingface_hub import errors

    said = in_short(error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return "the hub gives it only to users who are logged in and have accepted its terms"
    if isinstance(error, errors.LocalTokenNotFoundError) or (
        status in (401, 403) and not isinstance(error, errors.RepositoryNotFoundError)
    ):
        return f"the hub does not know you as someone who may do this: {_LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
        return "the hub has no such repository or revision"
    if isinstance(error, errors.HFValidationError):
        return f"this is no hub name, which is written {written}"
    if isinstance(error, errors.HfHubHTTPError | HTTPError):
        return f"the hub refused it ({said})"
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return f"it cannot be stored here ({said})"
    if type(error) is FileNotFoundError:
        return f"the repository has no weight file that can be read ({said})"
    return f"no network for this hub name ({said or type(error).__name__})"


def in_short(error: BaseException) -> str:
    """Return the words of another library's error, as part of a sentence of ours."""
    return " ".join(str(error).split())[:160].rstrip(". ").replace("; ", ", ")


def fetch_model(name: str) -> Path:
    """Return the local folder of the model ``hf-hub:owner/name[@revision]``, in the hub's own cache.

    Only the model's files are fetched (:data:`MODEL_FILES`); without a network a copy that is there is taken.

    Raises:
        UserError: no network, no such repository, or it holds no model of this package.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = name.removeprefix(HUB).partition("@")
    try:
        with quiet():
            folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(MODEL_FILES)))
    except Exception as error:  # of several libraries and the operating system; they share no base class
        raise UserError(f"{name}: {hub_reason(error)}; name the folder of a run or another model.") from None
    missing = [file for file in MODEL_FILES[:2] if not (folder / file).is_file()]
    if missing:
        raise UserError(f"{name} holds no model of longtail (no {missing[0]}); longtail push RUN owner/name makes one.")
    return folder


def push_folder(folder: Path, name: str, private: bool, token: str | None, keep_card: bool = False) -> str:
    """Put all files of ``folder`` into the model repository ``owner/name``, made if need be, and return its address.

    Args:
        folder: what to upload; other files of the repository stay, but for those of a model that this one has not.
        name: of the repository, with or without ``hf-hub:``.
        private: whether a new repository is seen by its owners only.
        token: None: that of who is logged in.
        keep_card: leave a ``README.md`` that is there as it is.

    Raises:
        UserError: no network, not logged in, not allowed, or no such name.
    """
    from huggingface_hub import HfApi

    repository = name.removeprefix(HUB)
    try:
        with quiet():
            api = HfApi(token=token)
            address = api.create_repo(repository, private=private, repo_type="model", exist_ok=True)
            kept = ["README.md"] if keep_card and api.file_exists(repository, "README.md") else None
            # An earlier model's temperature or validation logits would be taken for this one's.
            stale = [file for file in MODEL_FILES if not (folder / file).exists()]
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message="Model of longtail",
                ignore_patterns=kept,
                delete_patterns=stale or None,
            )
    except Exception as error:  # as above
        reason = hub_reason(error, "owner/name")
        raise UserError(f"{name} was not uploaded: {reason}; what is here is unchanged.") from None
    return str(address)
