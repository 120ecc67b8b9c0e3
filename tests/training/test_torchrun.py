"""Jobs that a launcher starts, as on a cluster: killed at any moment, gone on with by others, told of in one sentence.

Each job is some seconds long, of which training is the smaller part. ``make check`` runs them one after the other.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.check

FILES = ("model.safetensors", "metrics.jsonl", "evaluation.json", "predictions.safetensors")
OPTIONS = (
    "--source.test test --method gml --teacher.kind momentum --backbone small_net --image_size 16 --epochs 8 "
    "--batch_size 8 --queue.capacity 32 --loading.workers 0 --checkpoint.every_seconds 0 --device cpu"
).split()
KILLS = 20


class Launched:
    """A job in the folder ``desk`` under torchrun, or another launcher."""

    def __init__(self, desk, *words, ranks=2, restarts=0, launcher=None):
        own = f"torch.distributed.run --standalone --nproc-per-node={ranks} --max-restarts={restarts} -m"
        command = [sys.executable, "-m", *(launcher or own).split(), "longtail", "train", *map(str, words)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.output = desk / f"output-{time.monotonic_ns()}"
        with open(self.output, "w") as file:
            self.process = subprocess.Popen(command, cwd=desk, env=environment, stdout=file, stderr=subprocess.STDOUT)

    def workers(self):
        """Return the processes that train, {rank: process id}."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return {rank: int(child) for child in children if (rank := _rank(child)) is not None}

    def wait_for(self, ready, seconds=120):
        """Return what ``ready()`` returns as soon as it is something, None if the job ended before."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            found = ready()
            if found:
                return found
            assert time.monotonic() < end, self.text()
            time.sleep(0.01)
        return None

    def end(self, seconds=180):
        """Wait for the job; return its exit code."""
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()

    def text(self):
        """Return what all of its processes have printed."""
        return self.output.read_text()

    def told(self):
        """Return the sentences that the job ended with."""
        return [line for line in self.text().splitlines() if line.startswith("longtail: ")]


def _rank(child):
    try:
        words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        return next((int(word[5:]) for word in words if word.startswith(b"RANK=")), None)
    except OSError:  # it has ended
        return None


def train(desk, *words, ranks=2):
    """Run a job that must work."""
    job = Launched(desk, *words, ranks=ranks)
    assert job.end() == 0, job.text()
    return job


def bytes_of(run):
    return {name: (run / name).read_bytes() for name in FILES}


def check_whole(run, tested):
    """Each test image was counted once, and nothing half-written is left."""
    assert json.loads((run / "evaluation.json").read_text())["test_images"] == tested
    assert len(load_file(run / "predictions.safetensors")["labels"]) == tested
    assert not list(run.rglob("*.tmp"))


@pytest.fixture(scope="module")
def desk(make_photos, tmp_path_factory):
    """A folder with images to train on, and 23 to test: not a multiple of a batch."""
    folder = tmp_path_factory.mktemp("torchrun")
    make_photos(folder / "images", {"a": 40, "b": 16, "c": 8})
    make_photos(folder / "test", {"a": 9, "b": 7, "c": 7}, first=50)
    return folder


@pytest.fixture(scope="module")
def whole(desk):
    """A run of two processes that nobody kills, and how many seconds its processes lived."""
    job = Launched(desk, "images", *OPTIONS, "--out", "whole")
    job.wait_for(lambda: len(job.workers()) == 2)
    began = time.monotonic()
    assert job.end() == 0, job.text()
    return desk / "whole", time.monotonic() - began


@pytest.mark.parametrize("number", range(KILLS))
def test_a_kill_at_any_moment_ends_with_the_same_bytes(number, desk, whole):
    draw = random.Random(number)
    run, seconds = whole
    moment, victim = (number + draw.random()) / KILLS * seconds, draw.randrange(2)
    job = Launched(desk, "images", *OPTIONS, "--out", f"killed-{number}", restarts=3)
    job.wait_for(lambda: len(job.workers()) == 2)
    time.sleep(moment)
    process = job.workers().get(victim)
    if process is not None:
        os.kill(process, signal.SIGKILL)
    what = f"process {victim} {'killed' if process else 'had ended'} after {moment:.1f} of {seconds:.1f} s"
    assert job.end() == 0, f"{what}: {job.text()}"
    print(what)
    ours = bytes_of(desk / f"killed-{number}")
    for name, value in bytes_of(run).items():
        assert ours[name] == value, f"{name} differs: {what}: {job.text()}"
    check_whole(desk / f"killed-{number}", 23)
