"""``longtail push``: a run's model and its card into a repository of the Hugging Face hub."""

from __future__ import annotations

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
    path, say = find_run(run), ProgressReporter(quiet)
    name = repository_name(repository)
    classifier = load_classifier(path)
    with TemporaryDirectory() as place:
        folder = Path(place)
        write_model_folder(folder, path, classifier, f"{HUB}{name}")
        address = push_folder(folder, name, private, token)
    say.say(f"{address}")
    say.say(f'longtail.load("{HUB}{name}") reads it, and longtail predict {HUB}{name} IMAGES.')
    return address


def repository_name(repository: str) -> str:
    """Return ``owner/name`` of a repository that is to be written, or raise :class:`UserError`."""
    name = repository.removeprefix(HUB)
    if not HUB_NAME.fullmatch(name) or "@" in name:
        raise UserError(f"{repository} is no repository of the hub, which is written owner/name.")
    return name
