"""The command line: what it tells, and that no mistake costs more than one sentence."""

import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import longtail
from longtail import api
from longtail.cli import main
from longtail.files import FORMAT_VERSION
from longtail.options import OPTION_NAMES
from longtail.training.guard import Diverged, Interrupted

SHORT = ["--epochs", "1", "--teacher.epochs", "1", "--device", "cpu", "--quiet"]


def bars(counts=(24, 9, 2), side=8, test_labels=None, seed=0, names=("left", "middle", "right")):
    """Arrays of noisy images with one bright bar a class; 5 test images a class."""
    rng = np.random.default_rng(seed)

    def images(labels):
        pixels = rng.integers(0, 120, (len(labels), side, side), dtype=np.uint8)
        for image, label in zip(pixels, labels, strict=True):
            image[:, 2 * (label % 3) : 2 * (label % 3) + 2] += 130
        return pixels

    train = np.repeat(np.arange(len(counts)), counts)
    test = np.repeat(np.arange(len(counts)), 5) if test_labels is None else np.array(test_labels)
    arrays = {"train_images": images(train), "train_labels": train, "test_images": images(test), "test_labels": test}
    return arrays | ({"class_names": np.array(names)} if names else {})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with data and finished runs, made once; tests work on copies."""
    folder = tmp_path_factory.mktemp("made")
    np.savez(folder / "bars.npz", **bars())
    np.savez(folder / "wide.npz", **bars(side=10))
    np.savez(folder / "other.npz", **bars(names=("a", "b", "c")))
    for method, out in (("gml", "run"), ("logit_adjustment", "ready"), ("cross_entropy", "linear")):
        words = ["train", str(folder / "bars.npz"), "--method", method, "--out", str(folder / out), *SHORT]
        assert main(words) == 0
    return folder


@pytest.fixture
def run(made, desk):
    """A copy of a finished run: `run` in the working folder, and the words that made it."""
    shutil.copytree(made / "run", desk.folder / "run")
    return ["train", str(made / "bars.npz"), "--method", "gml", "--out", str(made / "run"), *SHORT]


def again(made, *extra):
    """Words that go on with the copied run."""
    return ["train", made / "bars.npz", "--method", "gml", "--out", "run", *SHORT, *extra]


# --- Help, and what it costs


def test_help_answers_without_torch():
    code = (
        "import sys, longtail; from longtail.cli import main; longtail.__version__; dir(longtail)\n"
        "codes = [main(['--help']), main(['train', '--help']), main(['recipes']), main(['--version']),\n"
        "         main(['train', 'digits-lt', '--epochs', 'abc']), main(['train', 'digits-lt', '--methd', 'gml'])]\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'numpy', 'longtail.api'} & sys.modules.keys()\n"
        "print('CODES', codes, 'HEAVY', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "CODES [0, 0, 0, 0, 2, 2] HEAVY []"


def test_module_and_exit_code_in_a_real_process():
    done = subprocess.run(
        [sys.executable, "-m", "longtail", "train", "digits-lt", "--epochs", "abc"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "longtail: --epochs must be a whole number, got abc.\n"


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]], ids=str)
def test_help_lists_every_command(desk, words):
    out, err = desk.run(*words)
    for verb in ("train", "evaluate", "inspect", "recipes"):
        assert f"\n  {verb} " in out
    assert err == ""


def test_version(desk):
    assert desk.run("--version") == (f"longtail {longtail.__version__}\n", "")


def test_train_help_lists_every_option_with_its_meaning(desk):
    out, _ = desk.run("train", "--help")
    meanings = dict(line.strip().split(maxsplit=1) for line in out.splitlines() if line.startswith("  --"))
    listed = {name.removeprefix("--") for name in meanings} - {"resume", "overwrite", "quiet", "recipe"}
    assert listed == set(OPTION_NAMES) - {"data"}
    assert all(len(meaning.split()) >= 2 for meaning in meanings.values())
    assert "(default 0.05)" in meanings["--optimiser.warmup"]
    assert "\n  DATA " in out
    assert "`" not in out


@pytest.mark.parametrize("verb", ["evaluate", "inspect", "recipes"])
def test_help_of_the_other_commands(desk, verb):
    assert desk.run(verb, "--help")[0].startswith(f"usage: longtail {verb}")


# --- Mistakes in the words


@pytest.mark.parametrize(
    ("words", "naming"),
    [
        (["trian"], ["'trian'", "'train'"]),
        (["train"], ["no data", "digits-lt"]),
        (["train", "digits-lt", "b.npz"], ["one DATA", "digits-lt", "b.npz"]),
        (["train", "digits-lt", "--epochs"], ["--epochs needs a value"]),
        (["train", "digits-lt", "--epochs", "--quiet"], ["--epochs needs a value"]),
        (["train", "digits-lt", "--out", ""], ["--out needs a value"]),
        (["train", "digits-lt", "--methd", "gml"], ["--methd", "--method"]),
        (["train", "digits-lt", "--lr", "0.1"], ["--lr", "--optimiser.lr"]),
        (["train", "digits-lt", "--resum"], ["--resum", "--resume"]),
        (["train", "digits-lt", "--resume=yes"], ["--resume takes no value"]),
        (["train", "digits-lt", "--resume", "--overwrite"], ["--resume", "--overwrite"]),
        (["train", "digits-lt", "--recipe", "demmo"], ["'demmo'", "'demo'"]),
        (["train", "digits-lt", "--recipe", "nix.yaml"], ["nix.yaml"]),
        (["evaluate"], ["usage: longtail evaluate RUN"]),
        (["evaluate", "a", "b", "c"], ["usage: longtail evaluate RUN"]),
        (["evaluate", "a", "--devise", "cpu"], ["--devise", "--device"]),
        (["recipes", "a", "b"], ["usage: longtail recipes"]),
        (["recipes", "demmo"], ["'demmo'", "'demo'"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_mistaken_words(desk, words, naming):
    desk.refuse(*words, naming=naming)


@pytest.mark.parametrize(
    ("words", "naming"),
    [
        ("--method gmll", ["'gmll'", "'gml'"]),
        ("--backbone smallnet", ["'smallnet'", "'small_net'"]),
        ("--teacher.backbone smallnet", ["'smallnet'", "'small_net'"]),
        ("--views.classifier tinny", ["'tinny'", "'tiny'"]),
        ("--views.query tinny", ["'tinny'", "'tiny'"]),
        ("--views.key tinny", ["'tinny'", "'tiny'"]),
        ("--epochs 0", ["--epochs", "above 0"]),
        ("--epochs -1", ["--epochs", "above 0", "-1"]),
        ("--epochs abc", ["--epochs", "whole number", "abc"]),
        ("--epochs nan", ["--epochs", "whole number", "nan"]),
        ("--optimiser.lr inf", ["--optimiser.lr", "finite", "inf"]),
        ("--imbalance 0.5", ["--imbalance", "1 or above", "0.5"]),
        ("--batch_size 1", ["--batch_size", "2 or more"]),
        ("--queue.capacity 2", ["3 classes", "at least 3"]),
        ("--queue.capacity 8 --queue.min_per_class 4", ["3 classes", "at least 12"]),
        ("--device gpu", ["--device gpu"]),
        ("--device cuda:99", ["--device cuda:99"]),
        ("--device meta", ["--device meta"]),
        ("--teacher.run nowhere", ["nowhere"]),
    ],
)
def test_mistaken_values(desk, made, words, naming):
    # Each is found before training: nothing may be left in --out, or the next try would be refused for that.
    desk.refuse("train", made / "bars.npz", "--out", "out", *SHORT, *words.split(), naming=naming)


def test_a_method_without_a_queue_does_not_mind_its_size(desk, made):
    desk.run("train", made / "bars.npz", "--out", "out", *SHORT, "--method", "cross_entropy", "--queue.capacity", 2)


def test_a_batch_larger_than_the_data_is_made_smaller_and_said(desk, made):
    words = ["train", made / "bars.npz", "--method", "cross_entropy", "--out", "out", *SHORT[:-1], "--batch-size", 1000]
    out, err = desk.run(*words)
    assert "batch_size 1000 is larger than the training set; 35 is used." in out.splitlines()
    assert err == ""
    [line] = (desk.folder / "out" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["steps_taken"] == 1
    desk.run(*words, "--resume")  # the words that started a run go on with it


# --- Mistakes in the data


def test_data_that_is_not_there(desk):
    desk.refuse("train", "data/x.npz", "--out", "out", naming=["data/x.npz"])
    desk.refuse("train", "digit-lt", "--out", "out", naming=["'digit-lt'", "'digits-lt'"])
    (desk.folder / "images").mkdir()
    desk.refuse("train", "images", "--out", "out", naming=["images", "folder"])
    desk.refuse("train", "images/", "--out", "out", naming=["images", "folder"])


@pytest.mark.parametrize(
    ("change", "naming"),
    [
        (lambda a: a | {"train_images": a["train_images"] / 255.0}, ["'train_images'", "float64", "uint8"]),
        (lambda a: a | {"train_images": a["train_images"].reshape(35, 64)}, ["'train_images'", "[35, 64]"]),
        (lambda a: a | {"train_labels": a["train_labels"][:-1]}, ["35", "34", "'train_labels'"]),
        (lambda a: a | {"train_labels": a["train_labels"] - 1}, ["'train_labels'", "negative", "-1"]),
        (lambda a: a | {"test_labels": a["test_labels"] + 5}, ["'test_labels'", "label 7"]),
        (lambda a: bars(counts=[9], names=None), ["one class only"]),
        (lambda a: bars(counts=[9, 0, 4], names=None), ["class '1'", "no training image"]),
        (lambda a: bars(counts=[9, 4, 0]), ["class 'right'", "no training image"]),
        (lambda a: {key: a[key] for key in a if key != "test_labels"}, ["'test_labels'", "missing"]),
    ],
    ids="float shape lengths negative range one-class gap empty-class missing".split(),
)
def test_data_that_cannot_be_meant(desk, change, naming):
    np.savez(desk.folder / "bad.npz", **change(bars()))
    desk.refuse("train", "bad.npz", "--out", "out", *SHORT, naming=["bad.npz", *naming])


def test_data_cut_off(desk, made):
    (desk.folder / "cut.npz").write_bytes((made / "bars.npz").read_bytes()[:1000])
    desk.refuse("train", "cut.npz", "--out", "out", naming=["cut.npz", "cut off"])


# --- Mistakes in --out


def test_out_that_holds_a_run(desk, run, made):
    desk.refuse(*again(made), naming=["run already holds a run", "--resume", "--overwrite"])


def test_overwrite_starts_anew_and_forgets_the_old_run(desk, run, made):
    (desk.folder / "run" / "model.safetensors").write_bytes(b"broken")
    (desk.folder / "run" / "config.yaml").write_bytes(b"\xff")
    desk.run(*again(made, "--method", "cross_entropy", "--overwrite"))
    assert "method: cross_entropy\n" in (desk.folder / "run" / "config.yaml").read_text()
    assert not (desk.folder / "run" / "teacher").exists()
    desk.run("evaluate", "run")


@pytest.mark.parametrize("flags", [[], ["--overwrite"], ["--resume"]], ids=str)
def test_out_with_foreign_files(desk, made, flags):
    (desk.folder / "thesis").mkdir()
    (desk.folder / "thesis" / "chapter1.tex").write_text("years of work")
    words = ["train", made / "bars.npz", "--out", "thesis", *SHORT, *flags]
    desk.refuse(*words, naming=["thesis", "chapter1.tex", "another --out"])


def test_out_below_a_file(desk, made):
    (desk.folder / "file").write_text("here")
    desk.refuse("train", made / "bars.npz", "--out", "file/run", *SHORT, naming=["--out file/run", "cannot be written"])
    desk.refuse("train", made / "bars.npz", "--out", "file", *SHORT, naming=["--out file", "cannot be written"])


# --- Going on


def test_resuming_a_finished_run_changes_no_result(desk, run, made):
    before = desk.snapshot("run")
    desk.run(*again(made, "--resume"))
    after = desk.snapshot("run")
    assert {name for name in before if before[name] != after[name]} <= {"environment.json", "report.html"}
    assert before.keys() == after.keys()


def test_resume_takes_data_and_options_from_the_run(desk, made):
    # An --out of its own, not a copy: the run remembers where its data lies.
    shutil.copytree(made / "run", desk.folder / "run")
    desk.run("train", "--resume", "--out", "run", "--quiet")
    assert desk.snapshot("run")["evaluation.json"] == desk.snapshot(made / "run")["evaluation.json"]


def test_resume_starts_a_run_that_is_not_there_yet(desk, made):
    desk.run("train", made / "bars.npz", "--out", "fresh", *SHORT, "--method", "cross_entropy", "--resume")
    assert (desk.folder / "fresh" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("words", "naming"),
    [
        ("--epochs 2", ["--epochs 2", "1"]),
        ("--seed 1", ["--seed 1", "0"]),
        ("--method logit_adjustment", ["--method logit_adjustment", "gml"]),
        ("--optimiser.lr 0.05", ["--optimiser.lr 0.05", "0.1"]),
        ("--loss.distillation_weight 0", ["--loss.distillation_weight 0", "1.0"]),
    ],
)
def test_resume_with_another_option(desk, run, made, words, naming):
    desk.refuse(*again(made, *words.split(), "--resume"), naming=["run", *naming])


def test_resume_without_out_minds_other_options_too(desk, made):
    words = ["train", made / "bars.npz", "--method", "cross_entropy", *SHORT]
    desk.run(*words)
    assert (desk.folder / "runs" / "bars-cross_entropy-seed0" / "report.html").exists()
    desk.refuse(*words, "--optimiser.lr", "0.05", "--resume", naming=["--optimiser.lr 0.05", "0.1"])
    desk.run(*words, "--resume")


def test_resume_with_changed_data(desk):
    np.savez(desk.folder / "bars.npz", **bars())
    words = ["train", "bars.npz", "--method", "cross_entropy", "--out", "run", *SHORT]
    desk.run(*words)
    np.savez(desk.folder / "bars.npz", **bars(seed=1))
    desk.refuse(*words, "--resume", naming=["the data is not what the run", "run", "--overwrite"])


# --- Damage


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def newer(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": FORMAT_VERSION + 1}))


def restamp(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 0, "image_size": [9, 9]}))


def cut_between_lines(path):
    text = path.read_text()
    path.write_text(text[: text.index("optimiser:")])


def garble(path):
    path.write_bytes(b"\x00\xff\xfe")


def other_seed(path):
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("resume/*/state.safetensors", cut),
        ("resume/*/state.safetensors", flip),
        ("resume/*/state.safetensors", os.remove),
        ("resume/*/state.json", cut),
        ("resume/*/state.json", restamp),
        ("resume/*/state.json", newer),
        ("resume/*/state.json", os.remove),
        ("teacher/model.safetensors", flip),
        ("config.yaml", cut),
        ("config.yaml", cut_between_lines),
        ("config.yaml", garble),
        ("config.yaml", other_seed),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_resume_of_a_damaged_run(desk, run, file, damage):
    [path] = (desk.folder / "run").glob(file)
    damage(path)
    err = desk.refuse("train", "--out", "run", "--resume", "--quiet", naming=[file.rsplit("/", 1)[-1]])
    if damage is newer:
        assert f"format version {FORMAT_VERSION + 1}" in err


def test_resume_writes_a_damaged_model_again_from_the_state(desk, run, made):
    flip(desk.folder / "run" / "model.safetensors")
    desk.run("train", "--out", "run", "--resume", "--quiet")
    assert desk.snapshot("run")["model.safetensors"] == desk.snapshot(made / "run")["model.safetensors"]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.safetensors", cut),
        ("model.safetensors", flip),
        ("model.safetensors", os.remove),
        ("model.json", cut),
        ("model.json", restamp),
        ("model.json", newer),
        ("config.yaml", garble),
        ("config.yaml", os.remove),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_evaluate_a_damaged_run(desk, run, file, damage):
    damage(desk.folder / "run" / file)
    desk.refuse("evaluate", "run", naming=[file])


def test_evaluate_before_there_is_a_model(desk, run):
    (desk.folder / "run" / "model.json").unlink()
    desk.refuse("evaluate", "run", naming=["run has no model yet", "--resume"])
    (desk.folder / "run" / "config.yaml").unlink()
    desk.refuse("evaluate", "run", naming=["config.yaml"])


def test_where_nothing_can_be_written_is_told_before_the_data_is_read(desk, monkeypatch):
    monkeypatch.setattr(api, "_choose", lambda *_: pytest.fail("the data was read"))
    (desk.folder / "file").write_text("")
    (desk.folder / "mine").mkdir()
    (desk.folder / "mine" / "photo.jpg").write_text("")
    desk.refuse("train", "digits-lt", "--out", "file", naming=["--out file cannot be written: File exists"])
    desk.refuse("train", "digits-lt", "--out", "file/run", naming=["file/run cannot be written", "not a folder"])
    desk.refuse("train", "digits-lt", "--out", "mine", naming=["mine is not empty", "photo.jpg"])
    assert not (desk.folder / "mine" / ".lock").exists()


def test_a_view_that_is_unknown_is_named_with_its_option(desk):
    desk.refuse("train", "digits-lt", "--views.key", "lihgt", naming=["--views.key view recipe 'lihgt'", "'light'"])


# --- Evaluate


def test_evaluate_prints_the_figures(desk, run):
    figures = json.loads((desk.folder / "run" / "evaluation.json").read_text())
    out, err = desk.run("evaluate", "run", "--device", "cpu")
    assert out.startswith(f"test: top-1 {100 * figures['top1']:.1f} %")
    few = figures["groups"]["few"]
    assert re.search(rf"few +{few['tested_classes']} +{100 * few['accuracy']:.1f}", out)
    assert err == ""


def test_evaluate_what_is_no_run(desk, made):
    desk.refuse("evaluate", "nowhere", naming=["nowhere", "not a run folder"])
    desk.refuse("evaluate", ".", naming=["not a run folder"])
    desk.refuse("evaluate", made / "bars.npz", naming=["bars.npz", "not a run folder"])


def test_evaluate_on_data_that_does_not_fit(desk, run, made):
    desk.refuse("evaluate", "run", made / "other.npz", naming=["classes"])
    desk.refuse("evaluate", "run", "digits-lt", naming=["10 classes", "3 classes"])
    desk.refuse("evaluate", "run", made / "wide.npz", naming=["10, 10", "8, 8"])
    desk.refuse("evaluate", "run", "none.npz", naming=["none.npz"])
    desk.refuse("evaluate", "run", "--device", "gpu", naming=["--device gpu"])


# --- A ready teacher


@pytest.mark.parametrize(
    ("data", "teacher", "naming"),
    [
        ("digits-lt", "ready", ["classes", "train it on the same classes"]),
        ("wide.npz", "ready", ["(8, 8)", "(10, 10)"]),
        ("bars.npz", "linear", ["linear head", "logit_adjustment", "--loss.distillation_weight 0"]),
    ],
)
def test_teacher_that_does_not_fit(desk, made, data, teacher, naming):
    data = made / data if data.endswith(".npz") else data
    words = ["train", data, "--teacher.run", made / teacher, "--out", "out", *SHORT]
    desk.refuse(*words, naming=["teacher", *naming])


def test_teacher_with_a_linear_head_serves_without_distillation(desk, made):
    words = ["train", made / "bars.npz", "--teacher.run", made / "linear", "--out", "out", *SHORT]
    desk.run(*words, "--loss.distillation_weight", "0")


def test_run_with_a_ready_teacher_goes_on_without_it(desk, made):
    shutil.copytree(made / "ready", desk.folder / "ready")
    words = ["train", made / "bars.npz", "--teacher.run", "ready", "--out", "out", *SHORT]
    desk.run(*words)
    shutil.rmtree(desk.folder / "ready")  # it was copied into the run
    desk.run(*words, "--resume")


def test_teacher_cannot_be_both_ready_and_momentum(desk, made):
    words = ["train", made / "bars.npz", "--teacher.run", made / "ready", "--out", "out", *SHORT]
    desk.refuse(*words, "--teacher.kind", "momentum", naming=["--teacher.run", "--teacher.kind momentum"])


def test_damaged_teacher(desk, made):
    shutil.copytree(made / "ready", desk.folder / "ready")
    flip(desk.folder / "ready" / "model.safetensors")
    words = ["train", made / "bars.npz", "--teacher.run", "ready", "--out", "out", *SHORT]
    desk.refuse(*words, naming=["ready/model.safetensors", "SHA-256"])


# --- What a person sees


def test_train_tells_data_choices_figures_and_report(desk, made):
    out, err = desk.run("train", made / "bars.npz", "--out", "out", *SHORT[:-1])
    lines = out.splitlines()
    assert "35 training images, 3 classes of 24 down to 2 (imbalance 12), 15 test images (given)" in lines[0]
    assert lines[1].startswith("gml, chosen from the data: backbone small_net, pretrained none, batch_size 32, ")
    assert "epochs" not in lines[1].replace("teacher.epochs", "")  # they were given
    assert [line.split()[:3] for line in lines[2:4]] == [["teacher", "epoch", "1/1"], ["student", "epoch", "1/1"]]
    assert lines[4].startswith("test: top-1 ")
    assert [line.split(" was far from")[0] for line in lines[5:7]] == ["the teacher", "the student"]  # one epoch each
    assert lines[7:] == ["report: out/report.html"]
    assert err == ""


@pytest.mark.parametrize("given", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_threads_that_wait_soon_sleep_unless_told_otherwise(monkeypatch, given):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["recipes"]) == 0
    assert {name: os.environ[name] for name in names if name in os.environ} == (given or {"GOMP_SPINCOUNT": "30000"})


def test_quiet_prints_nothing(desk, made):
    assert desk.run("train", made / "bars.npz", "--out", "out", *SHORT, "--method", "cross_entropy") == ("", "")


def test_interrupted_run_says_how_to_go_on(desk, monkeypatch):
    def stop(*args, **options):
        raise Interrupted("stopped at epoch 1 of 2 of stage 'teacher'; its state is saved.", 15)

    monkeypatch.setattr(api, "train", stop)
    words = ["train", "my data.npz", "--overwrite", "--out", "a b", "--epochs", "2"]
    assert main(words) == 128 + 15
    err = desk.capsys.readouterr().err
    command = err.split("Go on with: ")[1]
    expected = ["longtail", "train", "my data.npz", "--out", "a b", "--epochs", "2", "--resume"]
    assert shlex.split(command) == expected


def test_diverged_run_is_told_apart_from_a_mistake(desk, monkeypatch):
    def diverge(*args, **options):
        raise Diverged("10 steps in a row were not finite.")

    monkeypatch.setattr(api, "train", diverge)
    assert main(["train", "digits-lt"]) == 1
    assert desk.capsys.readouterr().err == "longtail: 10 steps in a row were not finite.\n"


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (BrokenPipeError, 141)])
def test_stopped_before_there_is_a_state(desk, monkeypatch, error, code):
    def stop(*args, **options):
        raise error

    monkeypatch.setattr(api, "train", stop)
    monkeypatch.setattr(sys, "stderr", open(os.devnull, "w"))  # noqa: SIM115 - main closes it on a broken pipe
    assert main(["train", "digits-lt"]) == code


def test_recipe_gives_way_to_the_command_line(desk, made):
    Path("mine.yaml").write_text("data: digits-lt\nmethod: cross_entropy\nepochs: 7\nseed: 3\nout: from-recipe\n")
    desk.run("train", made / "bars.npz", "--recipe", "mine.yaml", "--epochs", "1", "--quiet")
    config = (desk.folder / "from-recipe" / "config.yaml").read_text()
    assert f"data: {made / 'bars.npz'}\n" in config
    assert "epochs: 1\n" in config
    assert "seed: 3\n" in config
    assert "method: cross_entropy\n" in config


def test_recipe_with_an_unknown_key_names_it(desk):
    Path("mine.yaml").write_text("data: digits-lt\nloss:\n  temprature: 0.1\n")
    desk.refuse("train", "--recipe", "mine.yaml", naming=["mine.yaml", "--loss.temprature", "--loss.temperature"])


def test_a_queue_far_beyond_the_data_is_refused(desk, made):
    words = ["train", made / "bars.npz", "--queue.capacity", "1000000000000", "--out", "out", *SHORT]
    desk.refuse(*words, naming=["--queue.capacity 1000000000000", "35 training images"])


def test_out_of_memory_is_a_sentence(desk, made, capsys, monkeypatch):
    monkeypatch.setattr("longtail.api.run_stages", lambda *_: torch.empty(1 << 50))
    assert main([str(word) for word in ["train", made / "bars.npz", "--out", "out", *SHORT]]) == 1
    err = capsys.readouterr().err
    assert err.startswith("longtail: out of memory; try a smaller --batch_size, --queue.capacity")
    assert err.count("\n") == 1


def test_a_full_disk_is_one_sentence(desk, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("longtail.api.train", full)
    code, _, err = desk.call("train", "digits-lt", "--out", "run")
    assert code == 1
    assert err == "longtail: No space left on device. What was saved is kept: make room, then go on with --resume.\n"
