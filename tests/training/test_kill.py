"""kill -9 on a real process at chosen steps, then resume: the bytes of an uninterrupted run."""

import os
import signal
import subprocess
import sys

from longtail.training.run_folder import RunFolder

OPTIONS = "digits-lt --epochs 4 --teacher.epochs 2 --checkpoint.every_seconds 0 --device cpu".split()
FILES = "model.safetensors model.json metrics.jsonl evaluation.json per_class.csv teacher/model.safetensors".split()
# The command line, but its n-th training step does not survive; 0 = all do.
PROGRAM = """
import os, signal, sys
from longtail.cli import main
from longtail.data.loading import ResidentLoader
limit, taken, real = int(sys.argv[1]), 0, ResidentLoader.load
def load(self, epoch, step):
    global taken
    taken += 1
    if taken == limit:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, epoch, step)
ResidentLoader.load = load
sys.exit(main(sys.argv[2:]))
"""


def train(out, *more, kill_at=0):
    words = [sys.executable, "-c", PROGRAM, str(kill_at), "train", *OPTIONS, "--out", str(out), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == (-signal.SIGKILL if kill_at else 0), done.stderr
    return done.stdout


def test_killed_three_times_ends_with_the_same_bytes(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(whole)
    # Ten steps an epoch: before the first state, in the middle of the teacher's second epoch, in the student.
    for step in (5, 16, 17):
        train(killed, "--resume", kill_at=step)
        assert not (killed / "report.html").exists()
    assert "report:" in train(killed, "--resume")
    for name in FILES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    RunFolder(killed, resume=True).close()  # the killed processes' lock is gone
