"""Runs over folds: the layout of the run, its pooled figures, and what happens when it is killed in the middle."""

import csv
import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from longtail.cli import main
from longtail.training.evaluation import load_predictions

COUNTS = {"ant": 9, "bee": 5, "cat": 1}
TINY = (
    "--backbone small_net --image_size 16 --batch_size 4 --epochs 1 --device cpu --checkpoint.every_seconds 0".split()
)
PLAIN = ["--method", "cross_entropy", *TINY, "--loading.workers", "0", "--quiet"]
OVER = ["train", "photos", *PLAIN, "--folds", "3"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def photos(desk, make_photos):
    return make_photos(desk.folder / "photos", COUNTS)


def read(path):
    return json.loads(path.read_text())


def results(folder):
    """Everything in a run that must be reproduced, by its path."""
    names = "model.safetensors metrics.jsonl evaluation.json per_class.csv predictions.safetensors".split()
    return {str(path.relative_to(folder)): path.read_bytes() for name in names for path in folder.rglob(name)}


def test_layout_and_pooled_figures_of_repeated_folds(desk, photos):
    desk.run(*OVER, "--source.repeats", "2", "--out", "run")
    run = desk.folder / "run"
    assert sorted(path.name for path in run.glob("fold-*")) == [f"fold-{number}" for number in range(6)]
    parts = [read(run / f"fold-{number}" / "evaluation.json") for number in range(6)]
    for number, part in enumerate(parts):
        # The only image of a class always trains; the others are tested once in each deal.
        assert part["class_counts"][2] == 1
        assert sum(part["class_counts"]) + part["test_images"] == 15
        record = read(run / f"fold-{number}" / "data.json")
        assert record["test_split"] == f"fold {number % 3 + 1} of 3, deal {number // 3 + 1} of 2"
    for deal in (parts[:3], parts[3:]):
        assert sum(part["test_images"] for part in deal) == 14

    pooled = read(run / "evaluation.json")
    assert pooled["test_images"] == 14  # each image at most once, not once a deal
    right = sum(round(part["top1"] * part["test_images"]) for part in parts[:3])
    assert pooled["top1"] == pytest.approx(right / 14)
    # The kept predictions are those of the first deal, image by image.
    files = [file for number in range(3) for file in read(run / f"fold-{number}" / "predictions.json")["files"]]
    assert read(run / "predictions.json")["files"] == files
    assert len(set(files)) == len(load_predictions(run)[1]) == 14
    rows = list(csv.DictReader((run / "per_class.csv").open()))
    assert [(row["name"], int(row["test_images"])) for row in rows] == [("ant", 9), ("bee", 5), ("cat", 0)]
    assert [int(row["train_images"]) for row in rows] == [6, 3, 1]
    record = pooled["folds"]
    assert (record["folds"], record["repeats"]) == (3, 2)
    assert record["test_images"] == [part["test_images"] for part in parts]
    top1 = [part["top1"] for part in parts]
    assert record["figures"]["top1"]["values"] == top1
    assert record["figures"]["top1"]["mean"] == pytest.approx(sum(top1) / 6)

    page = (run / "report.html").read_text()
    assert "each of 3 folds in turn" in page
    for number in range(6):
        assert f"fold-{number}/report.html" in page
    assert (run / "fold-5" / "report.html").exists()


def test_pooled_figures_are_those_of_the_predictions(desk, photos):
    desk.run(*OVER, "--out", "run")
    tested = [load_predictions(desk.folder / "run" / f"fold-{number}") for number in range(3)]
    labels = torch.cat([labels for _, labels in tested])
    guessed = torch.cat([logits for logits, _ in tested]).argmax(1)
    assert labels.bincount(minlength=3).tolist() == [9, 5, 0]
    pooled = read(desk.folder / "run" / "evaluation.json")
    assert pooled["top1"] == pytest.approx(float((guessed == labels).double().mean()))
    recall = [float((guessed[labels == c] == c).double().mean()) for c in (0, 1)]
    assert pooled["balanced_accuracy"] == pytest.approx(sum(recall) / 2)


def test_every_method_stage_and_streaming_work_in_folds(desk, photos):
    words = ["train", "photos", "--teacher.backbone", "small_net", "--teacher.epochs", "1", *TINY, "--quiet"]
    desk.run(*words, "--loading.resident", "false", "--loading.workers", "0", "--folds", "2", "--out", "run")
    stages = (desk.folder / "run" / "fold-1" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in stages] == ["teacher", "student"]


def test_evaluate_over_folds_writes_the_same_figures_again(desk, photos):
    desk.run(*OVER, "--out", "run")
    before = results(desk.folder / "run")
    for name in ("evaluation.json", "per_class.csv", "report.html", "fold-1/evaluation.json"):
        (desk.folder / "run" / name).unlink()
    out, _ = desk.run("evaluate", "run", "--device", "cpu")
    assert out.startswith("over 3 folds (mean ± standard deviation): top-1 ")
    assert results(desk.folder / "run") == before
    assert (desk.folder / "run" / "report.html").exists()
    desk.refuse("evaluate", "run", "photos", naming=["run", "run/fold-0"])
    out, _ = desk.run("evaluate", "run/fold-0", "photos", "--device", "cpu")
    assert "\ntest: top-1 " in f"\n{out}"


# The command line, but its n-th training step does not survive.
PROGRAM = """
import os, signal, sys
from longtail.cli import main
from longtail.training.step import TrainingStep
limit, taken, real = int(sys.argv[1]), 0, TrainingStep.__call__
def take(self, batch, progress):
    global taken
    taken += 1
    if taken == limit:
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, batch, progress)
TrainingStep.__call__ = take
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.check
def test_killed_in_the_middle_of_folds_ends_with_the_same_bytes(desk, photos):
    desk.run(*OVER, "--out", "whole")
    words = [sys.executable, "-c", PROGRAM, "4", *OVER, "--out", "halved"]  # two steps a fold: in the second one
    done = subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    halved = desk.folder / "halved"
    assert (halved / "fold-0" / "evaluation.json").exists()
    assert (halved / "fold-1" / "config.yaml").exists()
    assert not (halved / "fold-1" / "evaluation.json").exists()
    desk.refuse("evaluate", "halved", naming=["halved/fold-1"])
    desk.refuse(*OVER, "--out", "halved", naming=["halved already holds a run", "--resume", "--overwrite"])
    desk.run(*OVER, "--out", "halved", "--resume")
    assert results(halved) == results(desk.folder / "whole")
    desk.run("train", "--out", "halved", "--resume", "--quiet")  # finished: nothing changes
    assert results(halved) == results(desk.folder / "whole")


def test_stopped_by_ctrl_c_in_the_middle_of_folds(desk, photos, monkeypatch):
    from longtail.training.step import TrainingStep

    desk.run(*OVER, "--out", "whole")
    taken, real = [0], TrainingStep.__call__

    def take(self, batch, progress):
        real(self, batch, progress)
        taken[0] += 1
        if taken[0] == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", take)
        code, _, err = desk.call(*OVER, "--out", "run")
    assert code == 130
    assert f"Go on with: longtail {' '.join(OVER)} --out run --resume" in err
    desk.run(*OVER, "--out", "run", "--resume")
    assert results(desk.folder / "run") == results(desk.folder / "whole")


def test_resume_with_other_options_is_refused_and_overwrite_starts_anew(desk, photos):
    desk.run(*OVER, "--out", "run")
    for changed, naming in (
        (["--seed", "1"], ["--seed 1", "0"]),
        (["--batch_size", "2"], ["--batch_size 2", "4"]),
        (["--folds", "2"], ["--folds 2", "3"]),
        (["--optimiser.lr", "0.5"], ["--optimiser.lr 0.5"]),
    ):
        desk.refuse(*OVER, *changed, "--out", "run", "--resume", naming=["run", *naming])
    (desk.folder / "run" / "fold-2" / "mine.txt").write_text("old")
    desk.refuse(*OVER, "--folds", "10", "--out", "run", "--overwrite", naming=["--folds 10", "9 images"])
    desk.run(*OVER, "--folds", "2", "--out", "run", "--overwrite")
    assert sorted(path.name for path in (desk.folder / "run").glob("fold-*")) == ["fold-0", "fold-1"]
    assert read(desk.folder / "run" / "evaluation.json")["folds"]["folds"] == 2
    desk.run("train", "photos", *PLAIN, "--out", "run", "--overwrite")  # and a run without folds
    assert not list((desk.folder / "run").glob("fold-*"))
    assert "folds" not in read(desk.folder / "run" / "evaluation.json")


@pytest.mark.parametrize(
    ("words", "naming"),
    [
        (["--backbone", "smallnet"], ["'smallnet'", "'small_net'"]),
        (["--method", "gml", "--queue.capacity", "2"], ["3 classes", "at least 3"]),
        (["--pretrained", "none.safetensors"], ["none.safetensors"]),
        (["--loading.resize", "8"], ["--loading.resize 8", "--image_size 16"]),
        (["--folds", "10"], ["--folds 10", "9 images"]),
        (["--source.group_pattern", "(a)"], ["--source.group_pattern", "'bee/00.png'"]),
        (["--source.group_pattern", "^[a-z]+", "--folds", "2"], ["--folds 2", "groups"]),
        (["--device", "abacus"], ["--device abacus"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_mistakes_are_told_before_a_fold_is_started(desk, photos, words, naming):
    desk.refuse(*OVER, "--out", "run", *words, naming=naming)


def test_unreadable_images_are_left_out_of_every_fold_and_told(desk, photos):
    (photos / "ant" / "00.png").write_bytes(b"no image")
    desk.refuse(*OVER, "--out", "run", naming=["ant/00.png"])
    desk.run(*OVER, "--out", "run", "--on_bad_image", "skip")
    assert read(desk.folder / "run" / "evaluation.json")["test_images"] == 13
    record = read(desk.folder / "run" / "data.json")
    assert [entry["file"] for entry in record["skipped"]] == ["ant/00.png"]
    assert "ant/00.png" in (desk.folder / "run" / "report.html").read_text()


def test_weights_are_chosen_once_for_all_folds(desk, photos, monkeypatch):
    words = ["train", "photos", "--method", "cross_entropy", "--backbone", "test_resnet", "--image_size", "32"]
    words += "--batch_size 8 --epochs 1 --device cpu --loading.workers 0 --folds 2 --out run".split()
    out, _ = desk.run(*words)
    assert "no pretrained weights for test_resnet could be had" in out
    notes = read(desk.folder / "run" / "data.json")["notes"]
    assert any("no pretrained weights for test_resnet" in note for note in notes)

    def no_second_look(weights):
        raise AssertionError("asked again")

    monkeypatch.setattr("longtail.models.pretrained.hub_file", no_second_look)
    desk.run(*words, "--resume")
    assert "pretrained: none\n" in (desk.folder / "run" / "config.yaml").read_text()


def test_given_splits_are_put_together_and_groups_named(desk, make_photos):
    make_photos(desk.folder / "photos" / "train", {"ant": 6, "bee": 4})
    make_photos(desk.folder / "photos" / "test", {"ant": 3, "bee": 2}, first=6)
    desk.run(*OVER, "--out", "run", "--source.group_pattern", r"(\d)\.png$")
    record = read(desk.folder / "run" / "data.json")
    assert any("(10 + 5 images) are put together" in note for note in record["notes"])
    assert read(desk.folder / "run" / "evaluation.json")["test_images"] == 15
    part = read(desk.folder / "run" / "fold-1" / "data.json")
    assert part["test_split"] == "fold 2 of 3; 9 groups kept whole"


def test_array_files_are_dealt_too(desk):
    import numpy as np

    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), (8, 4, 2))
    arrays = {f"{part}_images": rng.integers(0, 256, (14, 8, 8), np.uint8) for part in ("train", "test")}
    np.savez("a.npz", **arrays, train_labels=labels, test_labels=labels)
    words = ["train", "a.npz", "--method", "cross_entropy", "--epochs", "1", "--device", "cpu", "--quiet"]
    assert main([*words, "--folds", "2", "--out", "run"]) == 0
    assert read(desk.folder / "run" / "evaluation.json")["test_images"] == 28
