"""Jobs that a launcher starts, as on a cluster: killed at any moment, gone on with by others, told of in one sentence.

Each job is some seconds long, of which training is the smaller part. ``make check`` runs them one after the other.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longtail.cli import main
from tar_files import pack

pytestmark = pytest.mark.check

FILES = ("model.safetensors", "metrics.jsonl", "evaluation.json", "predictions.safetensors")
OPTIONS = (
    "--source.test test --method gml --teacher.kind momentum --backbone small_net --image_size 16 --epochs 8 "
    "--batch_size 8 --queue.capacity 32 --loading.workers 0 --checkpoint.every_seconds 0 --device cpu"
).split()
TOLERANCE = 5e-3  # of logits up to 18; measured: 8e-5, with a sharded queue 5e-4
KILLS, TESTED = 20, 29


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
    """A folder with images to train on, and 29 to test: not a multiple of a batch."""
    folder = tmp_path_factory.mktemp("torchrun")
    make_photos(folder / "images", {"a": 40, "b": 16, "c": 8, "d": 6})
    make_photos(folder / "test", {"a": 9, "b": 7, "c": 7, "d": 6}, first=50)
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
    check_whole(desk / f"killed-{number}", TESTED)


def begin(desk, name, *words, ranks=2, epochs=8):
    """Start a job, and return it in the middle of its training."""
    job = Launched(desk, "images", *OPTIONS, "--out", name, *words, ranks=ranks)
    state = desk / name / "resume"
    assert job.wait_for(lambda: [path for path in state.glob("state-0-*") if int(path.name[-9:]) >= 16]), job.text()
    return job


@pytest.mark.parametrize("victim", [1, 0])
def test_a_lost_process_without_restarts_is_one_sentence_and_the_run_goes_on(victim, desk, whole):
    name = f"lost-{victim}"
    job = begin(desk, name)
    os.kill(job.workers()[victim], signal.SIGKILL)
    began = time.monotonic()
    assert job.end() == 1
    assert time.monotonic() - began < 15
    assert len(job.told()) == 1, job.text()
    assert job.told()[0].startswith("longtail: a process of this job is gone (killed, out of memory, or its machine)")
    train(desk, "images", *OPTIONS, "--out", name, "--resume")
    assert bytes_of(desk / name) == bytes_of(whole[0])
    check_whole(desk / name, TESTED)


@pytest.fixture(scope="module")
def stopped(desk):
    """Runs of two processes that were told to stop in the middle of training: with a whole queue, and a sharded one."""
    for name, words in (("stopped", ()), ("stopped-sharded", ("--queue.sharded", "true"))):
        job = begin(desk, name, *words)
        job.process.terminate()
        assert job.end() != 0
        assert len(job.told()) == 1, job.text()
        assert job.told()[0].endswith("its state is saved. Go on with the same command and --resume")
    return desk


@pytest.mark.parametrize(("name", "ranks"), [("stopped", 1), ("stopped", 4), ("stopped-sharded", 4)])
def test_a_stopped_run_is_finished_by_another_number_of_processes(name, ranks, stopped, whole):
    out = f"{name}-{ranks}"
    shutil.copytree(stopped / name, stopped / out)
    more = ("--queue.sharded", "true") if "sharded" in name else ()
    train(stopped, "images", *OPTIONS, "--out", out, "--resume", *more, ranks=ranks)
    check_close(stopped / out, whole[0])


def check_close(run, other, tested=TESTED):
    """Sums of float32 in another order are all that differs."""
    ours, theirs = (load_file(path / "predictions.safetensors") for path in (run, other))
    assert torch.equal(ours["labels"], theirs["labels"])
    difference = float((ours["logits"] - theirs["logits"]).abs().max())
    first, second = (json.loads((path / "evaluation.json").read_text())["top1"] for path in (run, other))
    largest = float(theirs["logits"].abs().max())
    print(f"{run.name}: logits differ by at most {difference:.2g} (largest {largest:.2g}), top-1 {first} and {second}")
    assert difference < TOLERANCE
    assert first == second
    check_whole(run, len(theirs["labels"]) if tested is None else tested)


def alone(monkeypatch, desk, *words):
    """Train in this process."""
    monkeypatch.chdir(desk)
    assert main(["train", *map(str, words)]) == 0


def test_accelerate_starts_the_same_processes(desk, whole):
    pytest.importorskip("accelerate")
    launcher = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    job = Launched(desk, "images", *OPTIONS, "--out", "accelerate", launcher=f"{launcher} --dynamo_backend no -m")
    assert job.end() == 0, job.text()
    assert bytes_of(desk / "accelerate") == bytes_of(whole[0])


@pytest.mark.usefixtures("one_thread")
def test_bfloat16_in_two_processes(desk, whole, monkeypatch):
    """They differ from one by rounding: less than bfloat16 in one process differs from float32."""
    words = ("images", *OPTIONS, "--precision", "bfloat16", "--out")
    train(desk, *words, "bfloat16-2")
    alone(monkeypatch, desk, *words, "bfloat16-1")
    check_whole(desk / "bfloat16-2", TESTED)
    full, one, two = (
        load_file(run / "predictions.safetensors")["logits"]
        for run in (whole[0], desk / "bfloat16-1", desk / "bfloat16-2")
    )
    print(
        f"two and one: {(two - one).abs().mean():.2g} of logits; bfloat16 and float32: {(one - full).abs().mean():.2g}"
    )
    assert (two - one).abs().mean() < (one - full).abs().mean() / 2
    first, second = (json.loads((desk / f"bfloat16-{n}" / "metrics.jsonl").read_text().split("\n")[0]) for n in (1, 2))
    for name in ("classifier", "gml", "distillation"):
        assert first[name] == pytest.approx(second[name], rel=0.02), name


@pytest.mark.usefixtures("one_thread")
def test_features_in_two_processes(desk, whole, monkeypatch):
    monkeypatch.chdir(desk)
    words = (
        "embed images --source.test test --backbone small_net --pretrained whole --views 2 --out features.safetensors"
    )
    assert main(words.split()) == 0
    words = "features.safetensors --method gml --teacher.kind momentum --epochs 4 --batch_size 8 --device cpu --out"
    train(desk, *words.split(), "features-2")
    alone(monkeypatch, desk, *words.split(), "features-1")
    check_close(desk / "features-2", desk / "features-1")


@pytest.mark.usefixtures("one_thread")
def test_folds_in_two_processes_also_after_a_kill(desk, monkeypatch):
    words = ("images", *OPTIONS[2:], "--folds", "2", "--epochs", "4", "--out")
    train(desk, *words, "folds")
    alone(monkeypatch, desk, *words, "folds-alone")
    for fold in ("fold-0", "fold-1"):
        check_close(desk / "folds" / fold, desk / "folds-alone" / fold, tested=None)
    ours, theirs = (json.loads((desk / out / "evaluation.json").read_text()) for out in ("folds", "folds-alone"))
    assert ours["top1"] == theirs["top1"]
    assert ours["test_images"] == theirs["test_images"] == 70
    job = Launched(desk, *words, "folds-killed", restarts=1)
    assert job.wait_for(lambda: list(desk.glob("folds-killed/fold-1/resume/state-*"))), job.text()
    os.kill(job.workers()[0], signal.SIGKILL)
    assert job.end() == 0, job.text()
    for folder in ("fold-0", "fold-1"):
        assert bytes_of(desk / "folds-killed" / folder) == bytes_of(desk / "folds" / folder)
    ours, theirs = ((desk / out / "evaluation.json").read_bytes() for out in ("folds-killed", "folds"))
    assert ours == theirs


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["shards/train-{000000..000003}.tar"], "of the 4 shards that it names 1 cannot be found, first"),
        (["images", "--batch_size", "9"], "--batch_size 9"),
        (["nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(words, sentence, desk):
    if not (desk / "shards").exists():
        pack(desk / "images", desk / "shards", start="train")
    job = Launched(desk, words[0], *OPTIONS[2:], *words[1:], "--out", "refused")
    assert job.end() == 1
    assert len(job.told()) == 1, job.text()
    assert sentence in job.told()[0]
    assert not (desk / "refused").exists()
