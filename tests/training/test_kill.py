"""kill -9 on a real process, again and again, then resume: the bytes of an uninterrupted run."""

import os
import signal
import subprocess
import sys
import time

from longtail.training.run_folder import RunFolder

OPTIONS = "digits-lt --epochs 6 --teacher.epochs 3 --checkpoint.every_seconds 0 --device cpu".split()
FILES = "model.safetensors model.json metrics.jsonl evaluation.json per_class.csv teacher/model.safetensors".split()


def start(out, *more):
    words = [sys.executable, "-m", "longtail", "train", *OPTIONS, "--out", str(out), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


def test_killed_three_times_ends_with_the_same_bytes(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole))
    log, kills = killed / "metrics.jsonl", 0
    for lines in (0, 2, 5):  # before the first epoch's end, in the teacher, in the student
        process = start(killed, "--resume")
        while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") <= lines):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 2  # a fast machine may finish before the last one
    assert not (killed / "report.html").exists() or kills < 3
    output = finish(start(killed, "--resume"))
    assert "report:" in output
    for name in FILES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    RunFolder(killed, resume=True).close()  # the killed processes' lock is gone
