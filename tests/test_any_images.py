"""From what a user has on disk to a trained, evaluated and resumed run, and what every mistake there is told as."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from longtail.api import load
from longtail.data.published import PUBLISHED
from longtail.files import load_meta
from longtail.training.checkpoint import CheckpointFolder
from longtail.training.step import TrainingStep

TINY = "--backbone small_net --image_size 16 --batch_size 4 --device cpu --quiet --checkpoint.every_seconds 0".split()
PLAIN = ["--method", "cross_entropy", "--epochs", "2", "--loading.workers", "0", *TINY]
RESULTS = "model.safetensors model.json metrics.jsonl evaluation.json per_class.csv".split()
COUNTS = {"ant": 9, "bee": 5, "cat": 3}
TESTED = {"ant": 2, "bee": 2, "cat": 2}
CLASSES = list(COUNTS)


pytestmark = pytest.mark.usefixtures("one_thread")


# --- Sources: each is a function that writes it into a folder and returns the words that name it


def rows(folder):
    """Paths below ``folder/train`` and ``folder/test`` with label and split, in an order of no meaning."""
    found = [p.relative_to(folder).as_posix() for split in ("test", "train") for p in (folder / split).rglob("*.png")]
    return [(path, path.split("/")[1], path.split("/")[0]) for path in sorted(found, key=lambda path: path[::-1])]


def split_folder(folder, make_photos):
    make_photos(folder / "photos" / "train", COUNTS)
    make_photos(folder / "photos" / "test", TESTED, first=50)
    return ["photos"]


def class_folder(folder, make_photos):
    make_photos(folder / "photos", COUNTS)
    return ["photos"]


def two_folders(folder, make_photos):
    make_photos(folder / "photos", COUNTS)
    make_photos(folder / "more", TESTED, first=50)
    return ["photos", "--source.test", "more"]


def write_csv(file, names, table):
    with file.open("w", newline="") as text:
        csv.writer(text).writerows([names, *table])


def csv_split(folder, make_photos):
    split_folder(folder, make_photos)
    write_csv(folder / "photos" / "all.csv", ("path", "label", "split"), rows(folder / "photos"))
    return ["photos/all.csv"]


def csv_whole(folder, make_photos):
    split_folder(folder, make_photos)
    table = [(label, path) for path, label, _ in rows(folder / "photos")]
    write_csv(folder / "whole.csv", ("species", "file"), table)
    return ["whole.csv", *"--root photos --source.path_column file --source.label_column species".split()]


def parquet(folder, make_photos, columns=3):
    import pyarrow
    from pyarrow.parquet import write_table

    split_folder(folder, make_photos)
    names = ("path", "label", "split")[:columns]
    values = list(zip(*rows(folder / "photos"), strict=True))[:columns]
    write_table(pyarrow.table(dict(zip(names, values, strict=True))), folder / "photos" / "all.parquet")
    return ["photos/all.parquet"]


def parquet_whole(folder, make_photos):
    return parquet(folder, make_photos, columns=2)


def lists(folder, make_photos):
    split_folder(folder, make_photos)
    for split in ("train", "test"):
        lines = [f"{path} {CLASSES.index(label)}\n" for path, label, part in rows(folder / "photos") if part == split]
        (folder / f"my_{split}.txt").write_text("".join(lines))
    return ["my_train.txt", "--root", "photos"]


def one_list(folder, make_photos):
    class_folder(folder, make_photos)
    lines = [f"{name}/{number:02d}.png {CLASSES.index(name)}\n" for name in COUNTS for number in range(COUNTS[name])]
    (folder / "all.txt").write_text("".join(lines))
    return ["all.txt", "--root", "photos"]


SOURCES = (split_folder, class_folder, two_folders, csv_split, csv_whole, parquet, parquet_whole, lists, one_list)


def stop_at(monkeypatch, step):
    """From now on, the ``step``-th training step of a run is interrupted as by Ctrl-C."""
    taken, real = [0], TrainingStep.__call__

    def take(self, batch, progress):
        real(self, batch, progress)
        taken[0] += 1
        if taken[0] == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TrainingStep, "__call__", take)


def results(folder):
    return {name: (folder / name).read_bytes() for name in RESULTS}


def train_evaluate_resume(desk, monkeypatch, words, step=3):
    """Train; evaluate again to the same bytes; stop another run in the middle and resume it to the same bytes."""
    desk.run("train", *words, "--out", "whole")
    whole = results(desk.folder / "whole")
    for name in ("evaluation.json", "per_class.csv", "report.html"):
        (desk.folder / "whole" / name).unlink()
    desk.run("evaluate", "whole", "--device", "cpu")
    assert results(desk.folder / "whole") == whole
    assert (desk.folder / "whole" / "report.html").stat().st_size > 1000
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        code, _, err = desk.call("train", *words, "--out", "halved")
    assert code == 130
    assert "its state is saved. Go on with: longtail train " in err
    again = err.split("longtail train ")[1].split()
    assert again[-1] == "--resume"
    desk.run("train", *again)
    assert results(desk.folder / "halved") == whole
    return json.loads(whole["evaluation.json"])


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_each_source_trains_evaluates_and_resumes(desk, make_photos, monkeypatch, source):
    words = source(desk.folder, make_photos)
    figures = train_evaluate_resume(desk, monkeypatch, [*words, *PLAIN])
    assert figures["class_names"] == CLASSES
    given = source in (split_folder, two_folders, csv_split, parquet, lists)
    everything = sum(COUNTS.values()) + (0 if source in (class_folder, one_list) else sum(TESTED.values()))
    assert sum(figures["class_counts"]) + figures["test_images"] == everything
    if given:
        assert figures["class_counts"] == list(COUNTS.values())
    record = json.loads((desk.folder / "whole" / "data.json").read_text())
    assert record["test_split"] == ("given" if given else "held out: 20 % of each class, seed 0")


def test_cifar_by_an_array_file(desk, monkeypatch):
    rng = np.random.default_rng(0)
    labels = {"train": np.arange(300) % 100, "test": np.arange(100)}
    arrays = {f"{part}_labels": values for part, values in labels.items()}
    arrays |= {
        f"{part}_images": rng.integers(0, 256, (len(values), 32, 32, 3), dtype=np.uint8)
        for part, values in labels.items()
    }
    (desk.folder / "mine").mkdir()
    np.savez(desk.folder / "mine" / "cifar100.npz", **arrays)
    words = ["cifar100-lt", "--root", "mine", "--imbalance", "3", "--method", "cross_entropy", "--epochs", "2"]
    words += "--backbone small_net --batch_size 64 --device cpu --quiet".split()
    figures = train_evaluate_resume(desk, monkeypatch, words)
    assert (max(figures["class_counts"]), min(figures["class_counts"]), figures["test_images"]) == (3, 1, 100)


# --- Published sets, through their recipes

LAYOUT = {
    "imagenet-lt": ("train/{name}/{name}_{number}.JPEG", "val/ILSVRC2012_val_0000{label}{number:03d}.JPEG"),
    "inaturalist2018": ("train_val2018/Plantae/{name}/{number}a.jpg", "train_val2018/Plantae/{name}/{number}b.jpg"),
    "places-lt": ("train/{name}/{number:08d}.jpg", "val/{name}/{number:08d}.jpg"),
}
RECIPES = {
    "imagenet-lt": ["imagenet-lt-resnext50-90epochs", "imagenet-lt-resnext50-400epochs"],
    "inaturalist2018": ["inaturalist2018-resnet50-100epochs", "inaturalist2018-resnet50-400epochs"],
    "places-lt": ["places-lt-resnet152-30epochs"],
}
SHRUNK = (
    "--epochs 1 --teacher.epochs 1 --image_size 32 --loading.resize 36 --batch_size 4 --queue.capacity 64 "
    "--queue.min_per_class 1 --queue.projection_dim 16 --loading.workers 0 --device cpu --checkpoint.every_seconds 0"
).split()
SMALL_NETS = ["--backbone", "test_resnet", "--teacher.backbone", "test_resnet"]


def published_tree(root, name, paint):
    """Write a tree and lists as published, of three classes."""
    published = PUBLISHED[name]
    for file, pattern, counts, first in (
        (published.train_list, LAYOUT[name][0], (6, 4, 2), 0),
        (published.test_list, LAYOUT[name][1], (2, 1, 1), 60),
    ):
        lines = []
        for label, count in enumerate(counts):
            for number in range(first, first + count):
                path = pattern.format(name=f"n0144{label}", label=label, number=number)
                paint(root / path, label, number, side=40)
                lines.append(f"{path} {label}\n")
        (root / file).write_text("".join(lines))


def random_weights(name, path):
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(5)
    save_file(timm.create_model(name, num_classes=1000).state_dict(), path)


@pytest.mark.parametrize("name", sorted(LAYOUT))
def test_published_sets_through_their_recipes(desk, paint, monkeypatch, name):
    published_tree(desk.folder / "tree", name, paint)
    weights = []
    if name == "places-lt":
        random_weights("test_resnet", desk.folder / "net.safetensors")
        weights = ["--pretrained", "net.safetensors", "--teacher.pretrained", "net.safetensors"]
    words = ["--recipe", RECIPES[name][0], "--root", "tree", *SHRUNK, *SMALL_NETS, *weights]
    figures = train_evaluate_resume(desk, monkeypatch, words, step=5)  # two or three steps a stage: in the student
    assert figures["class_counts"] == [6, 4, 2]
    assert figures["test_images"] == 4
    record = json.loads((desk.folder / "whole" / "data.json").read_text())
    assert any("as published has" in note for note in record["notes"])
    model = load(desk.folder / "whole")
    assert (model.framing.size, model.framing.resize) == ((32, 32), 36)
    # Weights know images that are normalised as theirs were; without any, the published statistics are taken.
    assert tuple(model.mean.flatten().tolist()) == pytest.approx((0.5,) * 3 if weights else PUBLISHED[name].mean)
    stages = [json.loads(line)["stage"] for line in (desk.folder / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert stages == ["teacher", "student"]


def test_weights_of_a_recipe_are_where_training_starts(desk, paint):
    published_tree(desk.folder / "tree", "places-lt", paint)
    random_weights("test_resnet", desk.folder / "net.safetensors")
    words = ["--recipe", RECIPES["places-lt"][0], "--root", "tree", *SHRUNK, *SMALL_NETS, "--quiet"]
    words += ["--pretrained", "net.safetensors", "--teacher.pretrained", "none", "--optimiser.lr", "1e-12"]
    desk.run("train", *words, "--out", "out")
    from safetensors.torch import load_file

    given, student = load_file(desk.folder / "net.safetensors"), load(desk.folder / "out").encoder.state_dict()
    convolutions = [key for key, value in student.items() if value.ndim == 4]
    assert len(convolutions) > 5
    for key in convolutions:
        [source] = [tensor for name, tensor in given.items() if key.endswith(name)]
        assert (source - student[key]).abs().max() < 1e-6, key
    teacher = load(desk.folder / "out" / "teacher").encoder.state_dict()
    key = convolutions[0]
    assert (teacher[key] - student[key]).abs().max() > 1e-3


@pytest.mark.check
@pytest.mark.parametrize("recipe", [recipe for recipes in RECIPES.values() for recipe in recipes])
def test_recipes_with_their_own_encoders(desk, paint, recipe):
    name = next(name for name, recipes in RECIPES.items() if recipe in recipes)
    published_tree(desk.folder / "tree", name, paint)
    weights = []
    if name == "places-lt":
        random_weights("resnet152", desk.folder / "net.safetensors")
        weights = ["--pretrained", "net.safetensors", "--teacher.pretrained", "net.safetensors"]
    words = [word for word in SHRUNK if word not in ("--queue.projection_dim", "16")]
    desk.run("train", "--recipe", recipe, "--root", "tree", *words, *weights, "--out", "out")
    before = results(desk.folder / "out")["evaluation.json"]
    desk.run("evaluate", "out", "--device", "cpu")
    assert results(desk.folder / "out")["evaluation.json"] == before


# --- Evaluate on other data


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_photos):
    """A folder with ``photos`` (train and test) and a finished run ``run`` on it."""
    from longtail.cli import main

    folder = tmp_path_factory.mktemp("trained")
    split_folder(folder, make_photos)
    assert main(["train", str(folder / "photos"), *PLAIN, "--out", str(folder / "run")]) == 0
    return folder


def evaluated(desk, *words):
    """Evaluate, check that nothing was written, and return what is said."""
    before = desk.snapshot()
    out, _ = desk.run("evaluate", *words, "--device", "cpu")
    assert desk.snapshot() == before
    return out


def test_evaluate_on_the_same_images_elsewhere(desk, trained):
    shutil.copytree(trained / "run", desk.folder / "run")
    own, _ = desk.run("evaluate", "run", "--device", "cpu")
    shutil.copytree(trained / "photos" / "test", desk.folder / "other")  # class folders alone: all of them are tested
    assert evaluated(desk, "run", "other") == own
    write_csv(
        desk.folder / "t.csv", ("path", "label"), [row[:2] for row in rows(trained / "photos") if row[2] == "test"]
    )
    assert evaluated(desk, "run", "t.csv", "--root", trained / "photos") == own
    write_csv(desk.folder / "all.csv", ("path", "label", "split"), rows(trained / "photos"))
    assert evaluated(desk, "run", "all.csv", "--root", trained / "photos") == own  # the test rows only
    write_csv(
        desk.folder / "test.csv", ("path", "label", "split"), [r for r in rows(trained / "photos") if r[2] == "test"]
    )
    assert evaluated(desk, "run", "test.csv", "--root", trained / "photos") == own  # without a row for training
    shutil.copytree(desk.folder / "other", desk.folder / "bare" / "test")
    assert evaluated(desk, "run", "bare") == own  # a test folder without a training folder
    shutil.rmtree(desk.folder / "other" / "bee")  # fewer classes are no mistake
    assert "worst" in evaluated(desk, "run", "other")
    shutil.rmtree(desk.folder / "other" / "cat")
    assert "worst ant" in evaluated(desk, "run", "other")


def test_evaluate_with_a_class_that_the_model_does_not_know(desk, trained, make_photos):
    shutil.copytree(trained / "photos" / "test", desk.folder / "other")
    own = evaluated(desk, trained / "run", "other")
    make_photos(desk.folder / "other", {"dog": 2})
    desk.refuse("evaluate", trained / "run", "other", naming=["other", "'dog'", "2 images", " --unknown_labels skip"])
    make_photos(desk.folder / "none", {"dog": 2, "fox": 2})
    desk.refuse("evaluate", trained / "run", "none", naming=["none has no image of the model's classes", "'dog'"])
    out = evaluated(desk, trained / "run", "other", "--unknown_labels", "skip")
    assert out.endswith(own)
    assert "2 images" in out
    assert "'dog'" in out


def test_evaluate_with_unreadable_images(desk, trained):
    shutil.copytree(trained / "photos" / "test", desk.folder / "other")
    own = evaluated(desk, trained / "run", "other")
    (desk.folder / "other" / "ant" / "broken.png").write_bytes(b"no image")
    desk.refuse("evaluate", trained / "run", "other", naming=["ant/broken.png", "--on_bad_image skip"])
    out = evaluated(desk, trained / "run", "other", "--on-bad-image", "skip")
    assert "ant/broken.png" in out
    assert out.endswith(own)


def test_evaluate_reads_the_columns_that_the_run_was_trained_by(desk, make_photos):
    words = csv_whole(desk.folder, make_photos)
    desk.run("train", *words, *PLAIN, "--out", "run")
    assert "test: top-1" in evaluated(desk, "run", "whole.csv", "--root", "photos")


def test_numbers_as_labels_are_known_again(desk, make_photos):
    make_photos(desk.folder / "photos", COUNTS)
    table = [(f"{name}/{n:02d}.png", f"{CLASSES.index(name):02d}") for name in COUNTS for n in range(COUNTS[name])]
    write_csv(desk.folder / "photos" / "all.csv", ("path", "label"), table)
    desk.run("train", "photos/all.csv", *PLAIN, "--out", "run")
    assert "test: top-1" in evaluated(desk, "run", "photos/all.csv")


def test_evaluate_what_has_no_labels_of_the_model(desk, trained, make_photos):
    make_photos(desk.folder / "other", {"x": 2, "y": 1})
    desk.refuse("evaluate", trained / "run", "other", naming=["other", "no image of the model's classes", "'x'"])
    skip = ["--unknown_labels", "skip"]
    desk.refuse("evaluate", trained / "run", "other", *skip, naming=["other", "no image of the model's classes"])
    desk.refuse("evaluate", trained / "run", "nowhere/here", naming=["nowhere/here"])
    desk.refuse(
        "evaluate",
        trained / "run",
        "other",
        "--unknown_labels",
        "skp",
        naming=["--unknown_labels must be error or skip", "skp"],
    )


# --- One set of images, three ways


def test_folder_manifest_and_lists_give_the_same_run(desk, make_photos):
    words = {"folder": split_folder(desk.folder, make_photos), "manifest": csv_split(desk.folder, make_photos)}
    words |= {"lists": lists(desk.folder, make_photos), "parquet": parquet(desk.folder, make_photos)}
    gml = "--method gml --teacher.backbone small_net --epochs 1 --teacher.epochs 1 --seed 3 --loading.workers 0".split()
    for name, source in words.items():
        desk.run("train", *source, *gml, *TINY, "--out", f"runs/{name}")
    found = {name: (results(desk.folder / "runs" / name), identity(desk.folder / "runs" / name)) for name in words}
    for name in words:
        assert found[name] == found["folder"], name
    assert len(set(found["folder"][1])) == 2


def test_a_hold_out_is_the_same_from_folder_manifest_and_list(desk, make_photos):
    words = {"folder": class_folder(desk.folder, make_photos)}
    table = [(p.relative_to(desk.folder / "photos"), p.parent.name) for p in (desk.folder / "photos").rglob("*.png")]
    write_csv(desk.folder / "whole.csv", ("path", "label"), table)
    (desk.folder / "whole.txt").write_text("".join(f"{path} {CLASSES.index(name)}\n" for path, name in table))
    words |= {name: [f"whole.{name}", "--root", "photos"] for name in ("csv", "txt")}
    for name, source in words.items():
        desk.run("train", *source, *PLAIN, "--out", f"runs/{name}")
    found = {name: (results(desk.folder / "runs" / name), identity(desk.folder / "runs" / name)) for name in words}
    assert found["csv"] == found["folder"]
    assert found["txt"] == found["folder"]


def identity(run):
    """The fingerprints of training and test set that a run was started with."""
    state = CheckpointFolder(run / "resume").newest()
    meta = load_meta(state, "state")["identity"]
    return meta["train"], meta["test"]


# --- A process that dies or is stopped, while other processes decode for it

# The command line, but at its n-th training step it is killed, or stopped as a terminal does it (the whole group).
PROGRAM = """
import multiprocessing, os, signal, sys
from longtail.cli import main
from longtail.data.streaming_loader import StreamingLoader
limit, how, taken, real = int(sys.argv[1]), sys.argv[2], 0, StreamingLoader.load
def load(self, epoch, step):
    global taken
    taken += 1
    batch = real(self, epoch, step)
    if taken == limit:
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        os.kill(os.getpid(), signal.SIGKILL) if how == "kill" else os.killpg(0, signal.SIGINT)
    return batch
StreamingLoader.load = load
sys.exit(main(sys.argv[3:]))
"""
STREAM = "--method cross_entropy --epochs 3 --loading.resident false".split()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("how", ["kill", pytest.param("stop", marks=pytest.mark.check)])
def test_a_streamed_run_that_dies_resumes_with_other_workers_to_the_same_bytes(desk, trained, how):
    words = ["train", trained / "photos", *STREAM, *TINY]
    desk.run(*words, "--loading.workers", "0", "--out", "whole")
    begun = [sys.executable, "-c", PROGRAM, "6", how, *map(str, words), "--loading.workers", "2", "--out", "halved"]
    done = subprocess.run(
        begun, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, start_new_session=True
    )
    workers = [int(word) for word in done.stdout.split()]
    assert len(workers) == 2
    if how == "kill":
        assert done.returncode == -signal.SIGKILL
    else:
        assert done.returncode == 130
        assert "stopped at epoch 2 of 3 of stage 'train'; its state is saved. Go on with: longtail train" in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    until = time.monotonic() + 15
    while any(alive(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [pid for pid in workers if alive(pid)]
    assert not (desk.folder / "halved" / "evaluation.json").exists()
    desk.run(*words, "--loading.workers", "1", "--out", "halved", "--resume")
    assert results(desk.folder / "halved") == results(desk.folder / "whole")


def test_workers_given_on_resume_are_the_ones_that_decode(desk, trained, monkeypatch):
    from longtail.training import loaders

    words = ["train", trained / "photos", *STREAM, *TINY, "--out", "run"]
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert desk.call(*words, "--loading.workers", "0")[0] == 130
    made, real = [], loaders.StreamingLoader

    def make(*args, **options):
        made.append(args[-2:])
        return real(*args, **options)

    monkeypatch.setattr(loaders, "StreamingLoader", make)
    desk.run(*words, "--loading.workers", "1", "--loading.prefetch", "2", "--resume")
    assert made == [(1, 2)]


# --- Mistakes: one sentence, exit code 2, nothing written


SHORT = ["--epochs", "1", "--method", "cross_entropy", "--device", "cpu", "--quiet"]


def refuse(desk, *words, naming):
    return desk.refuse("train", *words, *SHORT, "--out", "out", naming=naming)


def test_folders_that_hold_no_classes_of_images(desk, make_photos):
    (desk.folder / "empty").mkdir()
    refuse(desk, "empty", naming=["empty", "it is empty"])
    make_photos(desk.folder / "deep" / "2024" / "may", COUNTS)
    refuse(desk, "deep", naming=["deep/2024", "'may'", "which level names the class"])
    make_photos(desk.folder / "split" / "train", COUNTS)
    (desk.folder / "split" / "test" / "ant").mkdir(parents=True)
    refuse(desk, "split", naming=["split/test", "no image"])
    refuse(desk, "split/train/ant", naming=["split/train/ant", "no class folders"])
    refuse(desk, "split/train", "--source.test", "nowhere", naming=["nowhere"])


def test_a_table_without_the_columns_says_which_it_has(desk):
    write_csv(desk.folder / "t.csv", ("file", "species", "site"), [("a.png", "ant", "x")])
    refuse(desk, "t.csv", naming=["t.csv", "'path'", "'file', 'species', 'site'", "--source.path_column"])
    words = ["--source.path_column", "file", "--source.label_column", "species", "--source.group_column", "place"]
    refuse(desk, "t.csv", *words, naming=["'place'", "'site'", "--source.group_column"])


def test_a_table_that_names_missing_files(desk, make_photos):
    words = csv_split(desk.folder, make_photos)
    (desk.folder / "photos" / "train" / "ant" / "03.png").unlink()
    shutil.rmtree(desk.folder / "photos" / "test" / "cat")
    table = list(csv.reader((desk.folder / "photos" / "all.csv").open()))[1:]
    lost = [path for path, _, _ in table if not (desk.folder / "photos" / path).exists()]
    assert len(lost) == 3
    refuse(desk, *words, naming=["all.csv", "3 of 23 images", f"missing, first {lost[0]}", "--root"])
    refuse(desk, *words, "--root", "elsewhere", naming=["--root elsewhere"])
    (desk.folder / "other").mkdir()
    refuse(desk, *words, "--root", "other", naming=["23 of 23 images", "--root"])


def test_labels_with_gaps_and_classes_without_training_images(desk, make_photos):
    make_photos(desk.folder, COUNTS)

    def table(number, splits=lambda name, n: "train" if n else "test"):
        names = [(name, n) for name in COUNTS for n in range(COUNTS[name])]
        lines = [(f"{name}/{n:02d}.png", number[name], splits(name, n)) for name, n in names]
        write_csv(desk.folder / "t.csv", ("path", "label", "split"), lines)

    table({"ant": 0, "bee": 1, "cat": 3})
    refuse(desk, "t.csv", naming=["t.csv", "gaps", "no image has 2", "--source.labels names"])
    by_name = {name: name for name in COUNTS}
    table(by_name, lambda name, n: "test" if name == "cat" or not n else "train")
    refuse(desk, "t.csv", naming=["'cat' (3 images)", "--source.unknown_labels skip"])
    desk.run("train", "t.csv", *PLAIN, "--out", "run", "--source.unknown_labels", "skip")
    assert json.loads((desk.folder / "run" / "evaluation.json").read_text())["class_names"] == ["ant", "bee"]
    assert "'cat' (3 images)" in (desk.folder / "run" / "report.html").read_text().replace("&#39;", "'")
    (desk.folder / "photos" / "train").mkdir(parents=True)
    shutil.copytree(desk.folder / "ant", desk.folder / "photos" / "train" / "ant")
    (desk.folder / "photos" / "train" / "elk").mkdir()
    shutil.copytree(desk.folder / "bee", desk.folder / "photos" / "train" / "bee")
    shutil.copytree(desk.folder / "cat", desk.folder / "photos" / "test" / "ant")
    refuse(desk, "photos", naming=["photos", "'elk'", "no training image"])
    (desk.folder / "photos" / "train" / "elk").rmdir()
    shutil.copytree(desk.folder / "cat", desk.folder / "photos" / "test" / "fox")
    refuse(desk, "photos", naming=["photos", "'fox' (3 images)", "--source.unknown_labels skip"])


def test_several_labels_an_image(desk, make_photos):
    make_photos(desk.folder, COUNTS)
    table = [("ant/00.png", "ant|bee"), ("ant/01.png", "ant"), ("bee/00.png", "bee"), ("bee/01.png", "bee|ant")]
    write_csv(desk.folder / "t.csv", ("path", "label"), table)
    refuse(desk, "t.csv", naming=["t.csv", "multi-label", "main label"])
    write_csv(desk.folder / "t.csv", ("path", "ant", "bee"), [("ant/00.png", 1, 1), ("bee/00.png", 0, 1)])
    refuse(desk, "t.csv", naming=["t.csv", "multi-label", "ant, bee"])


def test_unreadable_images(desk, make_photos):
    make_photos(desk.folder / "photos", COUNTS)
    cut = desk.folder / "photos" / "ant" / "02.png"
    whole = cut.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    (desk.folder / "photos" / "bee" / "page.jpg").write_text("<html>not found</html>")
    (desk.folder / "photos" / "cat" / "none.png").write_bytes(b"")
    naming = ["3 of 19 images", "ant/02.png (", "bee/page.jpg (", "cat/none.png (", "--on_bad_image skip"]
    sentence = refuse(desk, "photos", naming=naming)
    for spelling in ("--on-bad-image", "--on_bad_image"):
        desk.run("train", "photos", *PLAIN, spelling, "skip", "--out", f"run{spelling[4]}")
    record = json.loads((desk.folder / "run-" / "data.json").read_text())
    assert [entry["file"] for entry in record["skipped"]] == ["ant/02.png", "bee/page.jpg", "cat/none.png"]
    assert record["skipped_count"] == 3
    for entry in record["skipped"]:
        assert f"{entry['file']} ({entry['reason']})" in sentence
    assert record["train_images"] + record["test_images"] == 16
    page = (desk.folder / "run-" / "report.html").read_text()
    for name in ("ant/02.png", "bee/page.jpg", "cat/none.png"):
        assert name in page
    assert results(desk.folder / "run-") == results(desk.folder / "run_")
    assert evaluated(desk, "run-")  # the same files are left out again
    for file in (desk.folder / "photos" / "cat").iterdir():
        file.write_bytes(b"")
    refuse(desk, "photos", "--on_bad_image", "skip", naming=["'cat'", "none of the 4 training images"])


def test_unreadable_test_images_leave_something_to_test_on(desk, make_photos):
    split_folder(desk.folder, make_photos)
    for file in (desk.folder / "photos" / "test").rglob("*.png"):
        file.write_bytes(b"")
    refuse(desk, "photos", "--on_bad_image", "skip", naming=["photos", "no test image can be read"])


def test_weights_that_do_not_fit_or_cannot_be_had(desk, trained):
    random_weights("test_vit", desk.folder / "vit.safetensors")
    photos = trained / "photos"
    fit = ["vit.safetensors", "does not fit", "test_resnet", "tensors, first ", "encoder: ["]
    refuse(desk, photos, "--backbone", "test_resnet", "--pretrained", "vit.safetensors", naming=fit)
    gone = ["--pretrained no.safetensors", "no file"]
    refuse(desk, photos, "--backbone", "test_resnet", "--pretrained", "no.safetensors", naming=gone)
    network = ["--pretrained test_resnet.r160_in1k", "no network", "--pretrained FILE"]
    refuse(desk, photos, "--backbone", "test_resnet", "--pretrained", "hub", naming=network)
    refuse(desk, photos, "--backbone", "test_resnet", "--pretrained", "r160_in1k", naming=network)
    refuse(desk, photos, "--backbone", "test_resnt", naming=["'test_resnt'", "'test_resnet'"])
    words = ["--teacher.backbone", "test_vit", "--teacher.pretrained", "hub", *TINY, "--out", "out"]
    desk.refuse("train", photos, *words, naming=["--pretrained test_vit", "no network"])


@pytest.mark.parametrize("wanted", ["hub", "r160_in1k", "test_resnet.r160_in1k"])
def test_the_words_that_started_a_run_with_hub_weights_go_on_with_it(desk, trained, monkeypatch, wanted):
    random_weights("test_resnet", desk.folder / "net.safetensors")
    monkeypatch.setattr("longtail.models.pretrained.hub_file", lambda name: desk.folder / "net.safetensors")
    words = ["train", trained / "photos", *PLAIN, "--backbone", "test_resnet", "--image_size", "32", "--out", "run"]
    desk.run(*words, "--pretrained", wanted)
    assert "pretrained: test_resnet.r160_in1k\n" in (desk.folder / "run" / "config.yaml").read_text()
    desk.run(*words, "--pretrained", wanted, "--resume")
    desk.refuse(*words, "--pretrained", "none", "--resume", naming=["--pretrained none", "test_resnet.r160_in1k"])


def test_without_a_network_auto_says_that_it_starts_from_scratch(desk, trained):
    words = (
        "--backbone test_resnet --image_size 32 --method cross_entropy --epochs 1 --batch_size 8 --device cpu".split()
    )
    out, _ = desk.run("train", trained / "photos", *words, "--out", "run")
    assert "no pretrained weights for test_resnet could be had" in out
    assert "pretrained: none\n" in (desk.folder / "run" / "config.yaml").read_text()
    assert "no pretrained weights for test_resnet" in (desk.folder / "run" / "report.html").read_text()
    desk.run("train", trained / "photos", *words, "--out", "run", "--resume")


def test_options_that_do_not_fit_the_images(desk, trained, make_photos):
    photos = trained / "photos"
    words = ["--image_size", "16", "--loading.resize", "12"]
    refuse(desk, photos, *words, naming=["--loading.resize 12", "--image_size 16"])
    arrays = {f"{part}_images": np.zeros((9, 8, 8), np.uint8) for part in ("train", "test")}
    arrays |= {f"{part}_labels": np.arange(9) % 3 for part in ("train", "test")}
    np.savez(desk.folder / "a.npz", **arrays)
    refuse(desk, "a.npz", "--image_size", "32", naming=["--image_size 32", "8 x 8"])
    refuse(desk, photos, "--source.mean", "[0.5]", "--source.std", "[0.5]", naming=["--source.mean", "3 channels"])
    refuse(desk, photos, "--source.mean", "[0.5, 0.5, 0.5]", naming=["--source.std", "both"])
    make_photos(desk.folder / "photos", COUNTS)
    pattern = ["--source.group_pattern", r"site(\d+)"]
    refuse(desk, "photos", *pattern, naming=["--source.group_pattern", "17 of 17 paths", "'ant/00.png'"])
    refuse(desk, "photos", "--source.group_pattern", "(", naming=["--source.group_pattern", "regular expression"])
    refuse(desk, "photos", "--folds", "10", naming=["--folds 10", "9 images", "choose 9"])
    refuse(desk, "photos", "--folds", "1", naming=["--folds", "2 or more"])
    refuse(desk, "photos", "--source.test_share", "1.5", naming=["--source.test_share", "between 0 and 1"])
    refuse(desk, "photos", "--group_edges", "[20, 100]", naming=["--group_edges", "larger first"])


def test_published_sets_that_are_not_there(desk, paint):
    for name, published in PUBLISHED.items():
        refuse(desk, name, "--root", "nowhere", naming=[published.title, "nowhere", published.train_list, "--root"])
    published_tree(desk.folder / "tree", "imagenet-lt", paint)
    refuse(desk, "places-lt", "--root", "tree", naming=["Places-LT", "Places_LT_train.txt", "tree"])
    shutil.rmtree(desk.folder / "tree" / "val")
    refuse(desk, "imagenet-lt", "--root", "tree", naming=["ImageNet-LT", "val", "tree"])


def test_a_run_inside_its_images_is_refused(desk, make_photos):
    make_photos(desk.folder, COUNTS)
    desk.refuse("train", ".", *SHORT, naming=["--out", "class folder"])
    desk.refuse("train", ".", *SHORT, "--out", "ant/run", naming=["--out ant/run", "class folder"])
    desk.run("train", ".", *PLAIN, "--out", "../beside")


def test_photos_that_changed_are_noticed_on_resume(desk, make_photos, monkeypatch, paint):
    words = [*class_folder(desk.folder, make_photos), *PLAIN, "--out", "run"]
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert desk.call("train", *words)[0] == 130
    paint(desk.folder / "photos" / "ant" / "03.png", 2, 77)
    desk.refuse("train", *words, "--resume", naming=["the data is not what the run", "--overwrite"])
    paint(desk.folder / "photos" / "ant" / "03.png", 0, 3)
    desk.run("train", *words, "--resume")


def test_an_image_that_breaks_during_training_is_named(desk, make_photos, monkeypatch):
    words = [*class_folder(desk.folder, make_photos), *PLAIN, "--loading.resident", "false", "--out", "run"]
    real, broken = TrainingStep.__call__, desk.folder / "photos" / "ant" / "03.png"
    whole = broken.read_bytes()

    def take(self, batch, progress):
        real(self, batch, progress)
        broken.write_bytes(b"")

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", take)
        code, _, err = desk.call("train", *words)
    assert code == 2
    assert "photos/ant/03.png cannot be read any more" in err
    assert "--resume" in err
    broken.write_bytes(whole)
    desk.run("train", *words, "--resume")
    desk.run("train", *words[:-1], "whole")
    assert results(desk.folder / "run") == results(desk.folder / "whole")
