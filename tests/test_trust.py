"""What would cost a user data or the truth: folders deleted, training images tested on, teachers that saw the test."""

import json

import pytest
import torch

from longtail.api import load
from longtail.data.labels import known_labels
from longtail.data.listing import Listing
from longtail.data.sources import load_data
from longtail.option_groups import DataOptions

TINY = "--backbone small_net --image_size 16 --batch_size 4 --device cpu --quiet --epochs 1".split()
PLAIN = ["--method", "cross_entropy", *TINY]
COUNTS = {"ant": 9, "bee": 5, "cat": 3}


@pytest.fixture
def photos(desk, make_photos):
    return make_photos(desk.folder / "photos", COUNTS)


def test_folders_of_the_user_with_our_names_are_never_deleted(desk, photos, make_photos):
    for name in ("fold-0", "fold-1", "teacher", "resume"):
        make_photos(desk.folder / "mine" / name, {"a": 2})
    (desk.folder / "mine" / ".notes.tmp").write_text("mine")
    (desk.folder / "mine" / ".lock").write_text("mine too")
    before = desk.snapshot("mine")
    desk.refuse("train", "photos", *PLAIN, "--out", "mine", "--overwrite", naming=["mine", "holds no run"])
    assert desk.snapshot("mine") == before


def test_a_run_that_is_there_is_told_before_anything_is_read(desk, photos, monkeypatch):
    desk.run("train", "photos", *PLAIN, "--out", "run")
    monkeypatch.setattr("longtail.training.run_data.load_data", lambda *_, **__: pytest.fail("the data was read"))
    desk.refuse("train", "photos", *PLAIN, "--out", "run", naming=["run already holds a run"])


def test_evaluate_refuses_a_test_set_that_changed(desk, photos, make_photos):
    desk.run("train", "photos", *PLAIN, "--out", "run")
    before = desk.snapshot("run")
    desk.run("evaluate", "run")
    assert desk.snapshot("run") == before
    make_photos(photos, {"ant": 12, "bee": 12}, first=30)
    desk.refuse("evaluate", "run", naming=["test set of photos", "restore it"])
    assert desk.snapshot("run") == before


def test_evaluating_on_all_that_was_trained_on_is_told(desk, photos):
    desk.run("train", "photos", *PLAIN, "--out", "run")
    out, _ = desk.run("evaluate", "run", "photos")
    assert "figures are on its training images too" in out


def test_options_for_other_data_are_refused_without_it(desk, photos):
    desk.run("train", "photos", *PLAIN, "--out", "run")
    desk.refuse("evaluate", "run", "--root", "elsewhere", naming=["--root", "evaluate RUN DATA"])


def test_nothing_that_saw_the_folds_may_teach_them(desk, photos):
    desk.run("train", "photos", "--method", "logit_adjustment", *TINY, "--out", "seen")
    desk.refuse("train", "photos", *TINY, "--folds", 2, "--teacher.run", "seen", naming=["--teacher.run", "--folds"])
    desk.refuse("train", "photos", *PLAIN, "--folds", 2, "--pretrained", "seen", naming=["--pretrained", "--folds"])
    assert not list(desk.folder.glob("runs/*"))


@pytest.mark.parametrize(("option", "method"), [("--pretrained", PLAIN), ("--teacher.run", TINY)])
def test_a_run_that_may_have_seen_the_test_images_is_told(desk, photos, option, method):
    shared = ["--source.mean", "[0.5,0.5,0.5]", "--source.std", "[0.2,0.2,0.2]"]

    def notes_after(seed, out):
        desk.run("train", "photos", *method, *shared, option, "first", "--source.split_seed", seed, "--out", out)
        notes = json.loads((desk.folder / out / "data.json").read_text())["notes"]
        return [note for note in notes if "flatter the model" in note]

    desk.run("train", "photos", "--method", "logit_adjustment", *TINY, *shared, "--out", "first")
    assert notes_after(0, "same") == []
    assert [note.split(" was ")[0] for note in notes_after(1, "other")] == [f"{option} first"]


def test_weights_of_a_run_bring_the_images_they_were_made_for(desk, photos):
    plain = ["--method", "cross_entropy", "--epochs", 1, "--backbone", "resnet18"]
    desk.run("train", "photos", *plain, "--image_size", 24, "--source.mean", "[0.3,0.3,0.3]", "--source.std",
             "[0.4,0.4,0.4]", "--out", "first")  # fmt: skip
    desk.run("train", "photos", *plain, "--pretrained", "first", "--out", "second")
    first, second = (load(desk.folder / name) for name in ("first", "second"))
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.std, second.std)
    assert first.framing == second.framing


def test_a_teacher_that_saw_other_pixels_is_refused(desk, photos):
    given = ["--source.mean", "[0.1,0.1,0.1]", "--source.std", "[0.2,0.2,0.2]"]
    desk.run("train", "photos", "--method", "logit_adjustment", *TINY, *given, "--out", "seen")
    other = ["--source.mean", "[0.5,0.5,0.5]", "--source.std", "[0.2,0.2,0.2]"]
    desk.refuse("train", "photos", *TINY, "--teacher.run", "seen", *other, "--out", "x", naming=["teacher", "mean"])
    desk.run("train", "photos", *TINY, "--teacher.run", "seen", *given, "--out", "y")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--source.mean", "[123,116,103]", "--source.std", "[1,1,1]"], "source.mean"),
        (["--source.mean", "[0.1,0.1,0.1]", "--source.std", "[.nan,.nan,.nan]"], "source.std"),
        (["--source.repeats", "2"], "source.repeats"),
        (["--source.fold", "1"], "source.fold"),
        (["--folds", "2", "--source.fold", "2"], "source.fold"),
    ],
)
def test_options_that_cannot_be_meant(desk, photos, words, name):
    desk.refuse("train", "photos", *PLAIN, *words, "--out", "x", naming=[f"--{name}"])


def test_resume_may_not_change_what_labels_mean(desk, photos):
    desk.run("train", "photos", *PLAIN, "--source.labels", "names", "--out", "run")
    words = ["--source.labels", "auto", "--out", "run", "--resume"]
    desk.refuse("train", "photos", *PLAIN, *words, naming=["--source.labels auto differs"])


def test_the_callers_random_numbers_do_not_move(desk, photos):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    desk.run("train", "photos", *PLAIN, "--out", "run", "--loading.resident", "false", "--loading.workers", "1")
    assert torch.equal(torch.rand(1), expected)


def listing(labels, names, numbered=True):
    return Listing("x", None, [f"{index}.png" for index in range(len(labels))], labels, None, None, names, numbered)


def test_numbers_of_a_list_mean_the_models_classes_of_that_name():
    # A model of classes 0 and 2 only, and one whose classes are called 1..3: positions would be other classes.
    assert known_labels(listing(["0", "1", "2"], ("0", "1", "2")), ("0", "2")) == {"0": 0, "2": 1}
    assert known_labels(listing(["1", "3"], ("0", "1", "2", "3")), ("1", "2", "3"), "names") == {"1": 0, "3": 2}
    assert known_labels(listing(["0", "1", "2"], ("x", "y", "z")), ("x", "z")) == {"0": 0, "2": 1}
    assert known_labels(listing(["0", "1"], ("val/a", "val/b")), ("a", "b")) == {"0": 0, "1": 1}


def test_numbered_folders_are_classes_in_the_order_of_their_numbers(tmp_path, make_photos):
    make_photos(tmp_path / "n", {str(number): 2 for number in range(12)})
    assert load_data(str(tmp_path / "n")).train.class_names == tuple(map(str, range(12)))


def test_a_sample_of_the_files_is_looked_at(tmp_path, make_photos, monkeypatch):
    monkeypatch.setattr("longtail.data.file_splits._SAMPLE", 4)
    make_photos(tmp_path / "n", {"a": 8, "b": 6})
    splits = load_data(str(tmp_path / "n"), source=DataOptions(check="sample"))
    sizes = torch.cat([splits.train.sizes, splits.test.sizes])
    assert int((sizes[:, 0] > 0).sum()) == 5  # every third of 14
    assert not torch.cat([splits.train.digests, splits.test.digests]).any()
