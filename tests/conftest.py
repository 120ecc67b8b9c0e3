"""Small data and options that several tests train on; and what keeps tests off the network and the user's cache."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from bars import bars
from browser import find_chromium, running_browser
from longtail.cli import main
from longtail.config import replace_options
from longtail.options import make_config
from longtail.training.defaults import resolve


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """What tests find out about image files goes into a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGTAIL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")  # for processes that tests start
        yield


@pytest.fixture(autouse=True)
def _no_hub(request, monkeypatch):
    """No test may ask the hub; those of the way to it bring their own stand-in."""
    if request.path.name == "test_pretrained.py":
        return

    def no_network(weights):
        raise OSError(f"a test asked for {weights}")

    monkeypatch.setattr("longtail.models.pretrained.hub_file", no_network)


class Desk:
    """An empty working folder, and two ways to use the command line in it."""

    def __init__(self, folder, capsys):
        self.folder, self.capsys = folder, capsys

    def call(self, *words):
        """Run words; return (exit code, stdout, stderr)."""
        self.capsys.readouterr()
        code = main([str(word) for word in words])
        return code, *self.capsys.readouterr()

    def run(self, *words):
        """Run words that must work; return (stdout, stderr)."""
        code, out, err = self.call(*words)
        assert code == 0, err
        return out, err

    def refuse(self, *words, naming=()):
        """Run words that must be refused in one sentence that names ``naming``, leaving every file as it was."""
        before = self.snapshot()
        code, _, err = self.call(*words)
        assert code == 2, f"exit code {code}, stderr: {err}"
        assert err.startswith("longtail: ")
        assert err.count("\n") == 1, f"not one line: {err}"
        assert len(err) < 600
        for part in naming:
            assert part in err, err
        after = self.snapshot()
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name, 0) != after.get(name, 0))
        assert not changed, f"refused with {err!r}, but it changed {changed}"
        return err

    def snapshot(self, below="."):
        """Return every path with its bytes (None for folders)."""
        root = self.folder / below
        return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in root.rglob("*")}


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium (tests/browser.py)."""
    program = find_chromium()
    if program is None:
        pytest.skip("there is no chromium, chromium-browser or google-chrome on the path")
    with running_browser(program) as started:
        yield started


@pytest.fixture
def one_thread():
    """One thread for torch: small steps are slower with more, and beside other work far slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def desk(tmp_path, monkeypatch, capsys):
    """An empty working folder with the command line at hand."""
    folder = tmp_path / "desk"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return Desk(folder, capsys)


def _paint(path, label, number, side):
    """Write one image: a bright bar whose place tells the class, on noise that no other image has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([label, number]).integers(0, 120, (side, side + number % 3, 3), dtype=np.uint8)
    place = 1 + (3 * label) % (side - 3)
    pixels[:, place : place + 3] += 130
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def paint():
    """Return a function that writes the image ``number`` of class ``label`` to a path."""

    def write(path, label, number, side=20):
        _paint(path, label, number, side)
        return path

    return write


@pytest.fixture(scope="session")
def make_photos(paint):
    """Return a function that writes ``folder/CLASS/NN.png`` for ``{class: images}``; another ``first``, others."""

    def make(folder, counts, first=0, ending="png", side=20):
        for label, (name, count) in enumerate(counts.items()):
            for number in range(first, first + count):
                paint(folder / name / f"{number:02d}.{ending}", label, number, side)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_splits():
    """Three classes of noisy 8x8 bars, 24/9/2 training images and 10 test images a class: seconds to train."""
    return bars([24, 9, 2], [10, 10, 10], channels=1, side=8, views="tiny")


@pytest.fixture
def tiny_config(tiny_splits):
    """Return a function from changed options to the resolved options of a run on ``tiny_splits``."""

    def build(**changes):
        options = {
            "data": "bars",
            "epochs": 2,
            "batch_size": 8,
            "device": "cpu",
            "queue.capacity": 24,
            "checkpoint.every_seconds": 0.0,
        }
        options |= {key.replace("__", "."): value for key, value in changes.items()}
        return replace_options(resolve(make_config(options), tiny_splits)[0], {"out": "unused"})

    return build


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it and tidy up."""


@pytest.fixture
def crash_at_every_write(tmp_path, monkeypatch):
    """Return a generator of runs that were killed at their first file's write, at the second's, ..., and then resumed.

    It takes the number of writes that there must be more than, and ``run(path, resume)``; it yields each run's folder.
    """

    def crashes(least, run):
        real, calls, limit = os.replace, 0, 0

        def replace(source, target):
            nonlocal calls
            calls += 1
            if calls == limit:
                raise Killed
            real(source, target)

        monkeypatch.setattr(os, "replace", replace)
        while True:
            calls, limit = 0, limit + 1
            path = tmp_path / f"crash-{limit}"
            try:
                run(path, resume=False)
                break
            except Killed:
                calls = 10**9
            run(path, resume=True)
            yield path
        assert limit - 1 > least

    return crashes
