"""Whole runs on masks by the command line: trained, stopped, resumed, evaluated, compared, predicted, exported."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch
import yaml
from mask_trees import ade20k_tree, camvid_tree, plain_tree, split_tree, write_names
from PIL import Image

import longtail
import longtail.cli
from longtail.errors import UserError
from longtail.files import read_json
from longtail.segmentation.data.loading import MaskLoader
from longtail.segmentation.methods import DENSE_METHODS
from longtail.segmentation.models import Segmenter

SMALL = [
    *("--task", "segmentation", "--backbone", "test_resnet.r160_in1k", "--pretrained", "none", "--device", "cpu"),
    *("--segmentation.width", "32", "--segmentation.crop", "[32,32]", "--queue.capacity", "300", "--batch_size", "2"),
    *("--queue.projection_dim", "8", "--epochs", "2", "--loading.workers", "0", "--quiet"),
]
FILES = "model.safetensors metrics.jsonl evaluation.json per_class.csv per_image.safetensors teacher/model.safetensors"
NAMES = ("road", "grass", "sign")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tree in ADE20K's layout, and a finished run of GML on it."""
    folder = tmp_path_factory.mktemp("dense")
    ade20k_tree(folder / "ade", training=6, validation=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert longtail.cli.main(["train", "ade", *SMALL, "--checkpoint.every_seconds", "0", "--out", "run"]) == 0
    return folder


@pytest.fixture
def work(made, desk):
    """A working folder with the tree and a copy of the run."""
    shutil.copytree(made / "ade", desk.folder / "ade")
    shutil.copytree(made / "run", desk.folder / "run")
    return desk


def test_a_run_holds_what_it_promises(work):
    figures = read_json(work.folder / "run" / "evaluation.json")
    assert figures["task"] == "segmentation"
    assert len(figures["iou"]) == len(figures["class_names"]) == 150
    assert 0 <= figures["miou"] <= 1
    assert figures["test_images"] == 3
    assert sum(figures["test_pixels"]) == np.sum(figures["confusion"])
    assert {group: entry["classes"] for group, entry in figures["groups_by_pixels"].items()}["few"] >= 145
    records = [json.loads(line) for line in (work.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["epoch"]) for r in records] == [(s, e) for s in ("teacher", "student") for e in (1, 2)]
    assert {"classifier", "gml", "temperature", "queue_filled"} <= records[-1].keys()
    page = (work.folder / "run" / "report.html").read_text()
    assert "--task segmentation" in page
    config = yaml.safe_load((work.folder / "run" / "config.yaml").read_text())
    assert config["segmentation"]["zero_is_other"] is None  # as the layout has it, also when the run goes on


def test_the_layout_that_a_run_began_with_is_read_again(work):
    work.run("train", "--out", "run", "--resume", "--quiet")
    before = work.snapshot("run")
    work.run("evaluate", "run")
    kept = work.snapshot("run")
    for name in FILES.split():
        assert kept[name] == before[name], name


@pytest.mark.parametrize(("at", "how"), [(2, "resume"), (8, "restart")])
def test_stopped_and_resumed_it_is_the_same_run(work, monkeypatch, at, how):
    """In the teacher's first epoch, and in the student's, then by a launcher; three steps an epoch."""
    real, taken = MaskLoader.load, []

    def load(self, epoch, step):
        taken.append(step)
        if len(taken) == at:
            signal.raise_signal(signal.SIGINT)
        return real(self, epoch, step)

    monkeypatch.setattr(MaskLoader, "load", load)
    words = ["train", "ade", *SMALL, "--checkpoint.every_seconds", "0", "--out", "again"]
    if how == "restart":
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    code, _, err = work.call(*words)
    assert code == 130
    assert "--resume" in err
    assert not (work.folder / "again" / "report.html").exists()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    work.run(*words, *(["--resume"] if how == "resume" else []))
    for name in FILES.split():
        assert (work.folder / "again" / name).read_bytes() == (work.folder / "run" / name).read_bytes(), name


def test_streaming_and_resident_are_the_same_run(work):
    words = ["train", "ade", *SMALL, "--checkpoint.every_seconds", "0"]
    work.run(*words, "--loading.resident", "false", "--out", "streamed")
    assert (work.folder / "streamed/model.safetensors").read_bytes() == (
        work.folder / "run/model.safetensors"
    ).read_bytes()


def test_another_teacher_is_a_run(work):
    work.run("train", "ade", *SMALL, "--teacher.run", "run/teacher", "--out", "student")
    assert [json.loads(x)["stage"] for x in (work.folder / "student/metrics.jsonl").read_text().splitlines()] == [
        "student"
    ] * 2
    assert (work.folder / "student/model.safetensors").read_bytes() == (
        work.folder / "run/model.safetensors"
    ).read_bytes()


def test_predict_and_load_agree_and_the_command_knows_the_kind(work):
    image = next((work.folder / "ade/images/validation").iterdir())
    work.run("predict", "run", image, "--out", "said")
    model = longtail.load("run")
    assert isinstance(model, Segmenter)
    pixels = torch.from_numpy(np.array(Image.open(image).convert("RGB"))).permute(2, 0, 1)
    labels = model.predict(pixels[None]).argmax(1)[0]
    assert np.array_equal(np.array(Image.open(f"said/masks/{image.stem}.png")), labels.numpy())
    with pytest.raises(UserError, match="segment"):
        longtail.predict("run", [image])


def test_evaluate_otherwise_leaves_the_run_alone(work):
    before = work.snapshot("run")
    work.run("evaluate", "run", "--scales", "0.5,1", "--mirror", "--out", "scaled.json")
    work.run("evaluate", "run", "--window", "16,16", "--stride", "0.5", "--out", "windows.json")
    work.run("evaluate", "run", "ade", "--out", "same.json")
    assert work.snapshot("run") == before
    whole = read_json(work.folder / "run/evaluation.json")
    assert read_json(work.folder / "same.json")["miou"] == whole["miou"]
    assert read_json(work.folder / "scaled.json")["inference"] != whole["inference"]
    assert read_json(work.folder / "windows.json")["confusion"] != whole["confusion"]


def test_compare_shows_the_paired_difference(work):
    work.run("train", "ade", *SMALL, "--method", "cross_entropy", "--out", "plain")
    out, _ = work.run("compare", "run", "plain", "--out", "table.json")
    assert "mean IoU" in out
    found = read_json(work.folder / "table.json")
    one, other = (read_json(work.folder / name / "evaluation.json")["miou"] for name in ("run", "plain"))
    assert found["rows"][1]["difference"]["mean IoU"]["difference"] == pytest.approx(other - one)
    assert "method" in found["options"]
    work.refuse("compare", "run", "--quiet", naming=["one run"])


@pytest.mark.parametrize("method", [name for name in DENSE_METHODS if name != "gml"])
def test_every_method_runs(desk, method):
    split_tree(desk.folder / "street")
    desk.run("train", "street", *SMALL, "--method", method, "--epochs", "1", "--out", "out")
    figures = read_json(desk.folder / "out/evaluation.json")
    assert figures["class_names"] == list(NAMES)[: len(figures["class_names"])] or figures["class_names"]
    assert figures["pixel_accuracy"] > 0


@pytest.mark.parametrize("kind", ["none", "momentum"])
def test_gml_without_a_teacher_of_its_own(desk, kind):
    split_tree(desk.folder / "street")
    desk.run("train", "street", *SMALL, "--teacher.kind", kind, "--epochs", "1", "--out", "out")
    assert not (desk.folder / "out/teacher").exists()


def test_validation_chooses_the_epoch_by_mean_iou(desk):
    camvid_tree(desk.folder / "film", segnet=False)
    desk.run("train", "film", *SMALL, "--method", "logit_adjustment", "--val_fraction", "0.3", "--out", "out")
    selection = read_json(desk.folder / "out/evaluation.json")["selection"]
    log = [json.loads(line)["val_miou"] for line in (desk.folder / "out/metrics.jsonl").read_text().splitlines()]
    assert selection["figure"] == "val_miou"
    assert selection["value"] == max(log)


def test_a_folder_of_ones_own_learns_its_classes(desk):
    """The classes of the made images differ in their gray: some epochs must find most of them."""
    plain_tree(desk.folder / "own", images=12)
    write_names(desk.folder / "own", NAMES)
    words = [*SMALL, "--method", "logit_adjustment", "--optimiser.lr", "0.05", "--segmentation.scale", "[1,1]"]
    desk.run("train", "own", *words, "--epochs", "15", "--views.classifier", "none", "--out", "out")
    assert read_json(desk.folder / "out/evaluation.json")["miou"] > 0.5


@pytest.mark.parametrize(
    ("words", "naming"),
    [
        (["--imbalance", "10"], ["--imbalance", "segmentation"]),
        (["--folds", "3"], ["--folds"]),
        (["--image_size", "64"], ["--segmentation.resize"]),
        (["--tune.kind", "lora"], ["--tune.kind"]),
        (["--method", "bcl"], ["method of segmentation 'bcl'"]),
        (["--segmentation.decoder", "fpm"], ["segmentation.decoder", "fpn"]),
        (["--segmentation.crop", "[32]"], ["--segmentation.crop", "height"]),
        (["--segmentation.stride", "0"], ["--segmentation.stride"]),
        (["--segmentation.scale", "[2,1]"], ["--segmentation.scale"]),
        (["--views.key", "color"], ["--views.key", "colour"]),
        (["--backbone", "cifar_resnet32"], ["cifar_resnet32"]),
        (["--loss.mixup", "0.2"], ["mixup"]),
        (["--queue.capacity", "100"], ["capacity", "150"]),
        (["--teacher.kind", "pretrained"], ["--teacher.kind pretrained"]),
        (["--batch_size", "1"], ["--batch_size"]),
        (["--sampler", "class_balanced"], ["--sampler", "rare_crops"]),
        (["--group_edges", "[5,2]"], ["--group_edges", "pixel_edges"]),
        (["--source.label_column", "x"], ["--source.label_column"]),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(work, words, naming):
    work.refuse("train", "ade", *SMALL, *words, "--out", "refused", naming=naming)


def test_broken_data_is_refused_by_name_or_left_out(work):
    [first, *_] = sorted((work.folder / "ade/annotations/training").iterdir())
    first.write_bytes(b"no picture")
    work.refuse("train", "ade", *SMALL, "--out", "refused", naming=[first.name])
    work.run("train", "ade", *SMALL, "--epochs", "1", "--on_bad_image", "skip", "--out", "skipped")
    record = read_json(work.folder / "skipped/data.json")
    assert record["skipped_count"] == 1
    assert first.name in record["skipped"][0]["file"]


def test_a_run_of_one_kind_does_not_go_on_as_the_other(work):
    work.refuse("train", "ade", "--out", "run", "--resume", "--task", "classification", naming=["--task"])
    work.refuse("train", "ade", *SMALL, "--out", "run", naming=["already holds a run"])
    (work.folder / "ade/annotations/training" / "ADE_train_00000001.png").unlink()
    (work.folder / "ade/images/training" / "ADE_train_00000001.jpg").unlink()
    work.refuse("train", "--out", "run", "--resume", naming=["not what the run"])


def test_what_holds_no_masks_is_told(desk, make_photos):
    make_photos(desk.folder / "photos", {"cat": 3, "dog": 3})
    desk.refuse("train", "photos", *SMALL, "--out", "out", naming=["photos"])
    desk.refuse("train", "nowhere", *SMALL, "--out", "out", naming=["nowhere"])


def test_the_run_that_is_named_decides_not_the_first_folder(work):
    (work.folder / "taken").mkdir()
    image = next((work.folder / "ade/images/validation").iterdir())
    work.run("predict", "--out", "said", "run", image)
    work.run("predict", "--out", "said", "--overwrite", "run", image)
    assert (work.folder / "said/classes.csv").exists()
    work.refuse("export", "--out", "taken/..", "--format", "card", "run", naming=["taken/.."])
    work.run("export", "--out", "taken/card", "--format", "card", "run")
    shutil.copytree("run", "run-b")
    out, _ = work.run("compare", "run*")
    assert "mean IoU" in out
    work.refuse("predict", "run", image, "--crops", "5", "--out", "b", naming=["--crops"])


def test_a_class_without_a_training_pixel_is_never_predicted(work):
    model = longtail.load("run")
    absent = model.class_counts == 0
    assert int(absent.sum()) > 100
    images = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
    assert float(model.predict(images)[0, absent].max()) < 1e-6


def test_masks_are_scored_at_their_own_size(work):
    words = ["train", "ade", *SMALL, "--method", "cross_entropy", "--segmentation.resize", "[12,16]", "--out", "small"]
    work.run(*words)
    whole, small = (read_json(work.folder / name / "evaluation.json") for name in ("run", "small"))
    assert whole["test_pixels"] == small["test_pixels"]
    assert "12 x 16" in small["inference"]


def test_export_as_files_for_other_programs(work):
    work.run("export", "run", "--format", "safetensors", "--out", "copy")
    assert torch.equal(longtail.load("copy").head.weight, longtail.load("run").head.weight)
    card = (work.folder / "copy/README.md").read_text()
    assert "| 0 | thing 1 |" in card
    work.run("export", "run", "--format", "card", "--out", "card")
    work.refuse("export", "run", "--format", "onxn", naming=["'onnx'"])


def test_masks_are_not_taken_for_a_class(desk):
    plain_tree(desk.folder / "own")
    desk.refuse("train", "own", "--quiet", naming=["--task segmentation"])
    desk.refuse("inspect", "own", naming=["--task segmentation"])
    desk.refuse("study", "methods", "--data", "own", "--task", "segmentation", naming=["longtail compare"])


def test_push_sends_the_model_and_its_card(work, monkeypatch):
    sent = {}

    def push_folder(folder, name, private, token):
        sent.update({path.name: path.read_bytes() for path in folder.iterdir()})
        return f"somewhere/{name}"

    monkeypatch.setattr("longtail.deployment.push.push_folder", push_folder)
    out, _ = work.run("push", "run", "me/streets")
    assert "somewhere/me/streets" in out
    assert sent["model.safetensors"] == (work.folder / "run/model.safetensors").read_bytes()
    assert b'longtail.load("hf-hub:me/streets")' in sent["README.md"]
    work.refuse("push", "run", "streets", naming=["owner/name"])
