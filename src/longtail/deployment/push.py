"""``longtail push``: a run's model and its card into a repository of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from longtail.deployment.export import write_model_folder
from longtail.deployment.run_records import find_run, load_classifier
from longtail.errors import UserError
from longtail.hub import HUB, HUB_NAME, push_folder
from longtail.training.progress import ProgressReporter


def push_to_hub(
    run: str | Path,
    repository: str,
    *,
    private: bool = False,
    token: str | None = None,
    quiet: bool = False,
) -> str:
    """Upload the model of a run with its card, for ``longtail.load("hf-hub:owner/name")`` to read.

    What goes up is what ``longtail export --format safetensors`` writes: no image, no path of this machine. The card
    says nothing of licence and purpose: add them there, and they stay until the next upload.

    Args:
        run: the run's folder, or one that holds its model.safetensors and model.json alone.
        repository: owner/name on the hub; made if need be.
        private: a new repository is seen by its owners only.
        token: of the hub; default: that of who is logged in (hf auth login), or HF_TOKEN.
        quiet: print nothing.

    Returns:
        The repository's address.

    Raises:
        UserError: no model, no such name, no network, not logged in, or not allowed.
    """
    path = find_run(run)
    check_repository(repository)
    classifier = load_classifier(path)

    def write(folder: Path, place: str) -> None:
        write_model_folder(folder, path, classifier, place)

    return upload(repository, write, private, token, ProgressReporter(quiet))


def check_repository(repository: str) -> None:
    """Raise :class:`UserError` unless ``repository`` names one that can be written."""
    name = repository.removeprefix(HUB)
    if not HUB_NAME.fullmatch(name) or "@" in name:
        raise UserError(f"{repository} is no repository of the hub, which is written owner/name.")


def upload(
    repository: str, write: Callable[[Path, str], None], private: bool, token: str | None, say: ProgressReporter
) -> str:
    """Upload what ``write(folder, the name by which it is loaded)`` writes, and return the repository's address.

    Raises:
        UserError: no network, not logged in, or not allowed.
    """
    name = repository.removeprefix(HUB)
    with TemporaryDirectory() as place:
        write(Path(place), f"{HUB}{name}")
        address = push_folder(Path(place), name, private, token)
    say.say(f"{address}")
    say.say(f'longtail.load("{HUB}{name}") reads it, and longtail predict {HUB}{name} IMAGES.')
    return address
