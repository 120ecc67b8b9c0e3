"""Python's way in: a run from nothing to figures, on scikit-learn's digits."""

import csv
import json
import math
import random
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module

import numpy as np
import pytest
import torch
import yaml

import longtail
from longtail.data import load_data
from longtail.errors import UserError
from longtail.options import OPTION_NAMES, make_config, parse_values

SHORT = {"epochs": 1, "teacher": {"epochs": 1}, "device": "cpu", "quiet": True}


@pytest.fixture(scope="module")
def digits():
    return load_data("digits-lt")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    # 8 epochs: few enough to be quick, enough that figures differ from chance.
    out = tmp_path_factory.mktemp("runs") / "gml"
    options = {"epochs": 8, "teacher": {"epochs": 8}, "checkpoint": {"every_seconds": 0}}
    return longtail.train("digits-lt", out=out, **{**SHORT, **options})


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "ready"
    return longtail.train("digits-lt", method="logit_adjustment", out=out, **SHORT)


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- The surface


def test_every_public_name_resolves():
    assert sorted(longtail.__all__) == longtail.__all__
    for name in longtail.__all__:
        assert callable(getattr(longtail, name))
    assert set(longtail.__all__) <= set(dir(longtail))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        longtail.trian  # noqa: B018


def test_import_is_light():
    code = "import sys, longtail; print({'torch', 'numpy', 'longtail.api'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("room", "losses metrics data models memory methods training estimators reporting".split())
def test_every_room_says_what_it_offers(room):
    module = import_module(f"longtail.{room}")
    assert module.__doc__
    for name in getattr(module, "__all__", []):
        assert hasattr(module, name), f"longtail.{room}.__all__ names {name}, which is not there"


# --- Figures


def test_evaluation_has_what_was_promised(result):
    figures = result.evaluation
    promised = "top1 balanced_accuracy groups ece worst_class mutual_information_bits selection".split()
    assert set(promised) <= figures.keys()
    assert list(figures["groups"]) == ["many", "medium", "few"]
    for group in figures["groups"].values():
        assert {"accuracy", "classes"} <= group.keys()
    assert figures["selection"] == "last"
    assert figures == json.loads((result.folder / "evaluation.json").read_text())


def test_model_predicts_what_the_evaluation_says(result, digits):
    """Every headline figure once more, from ``predict`` on the test images, in numpy."""
    figures, labels = result.evaluation, digits.test.labels.numpy()
    probabilities = longtail.load(result.folder).predict(digits.test.images).double().numpy()
    predictions = probabilities.argmax(1)
    assert figures["top1"] == np.mean(predictions == labels)
    assert figures["top1"] > 0.3  # chance is 0.1

    recall = np.array([np.mean(predictions[labels == c] == c) for c in range(10)])
    assert figures["balanced_accuracy"] == pytest.approx(recall.mean())
    worst = figures["worst_class"]
    assert worst["accuracy"] == recall.min() == recall[worst["class"]]
    assert figures["worst_class_name"] == str(worst["class"])

    counts = np.bincount(digits.train.labels, minlength=10)
    members = {"many": counts > 100, "medium": (counts >= 20) & (counts <= 100), "few": counts < 20}
    for name, member in members.items():
        assert figures["groups"][name]["classes"] == member.sum()
        assert figures["groups"][name]["accuracy"] == pytest.approx(recall[member].mean())

    confidence, correct = probabilities.max(1), predictions == labels
    bins = np.minimum((confidence * 15).astype(int), 14)
    gaps = [abs(confidence[bins == b].sum() - correct[bins == b].sum()) for b in range(15)]
    assert figures["ece"] == pytest.approx(sum(gaps) / len(labels), abs=1e-6)


def test_information_is_the_label_entropy_less_the_cross_entropy(result, digits):
    # The test set has 40 images of each class, and GML's raw softmax implies the uniform prior too.
    logits = longtail.load(result.folder).logits(digits.test.images).double()
    loss_bits = torch.nn.functional.cross_entropy(logits, digits.test.labels).item() / math.log(2)
    assert result.evaluation["mutual_information_bits"] == pytest.approx(math.log2(10) - loss_bits, abs=1e-4)


def test_result_loads_the_same_model(result, digits):
    images = digits.test.images[:8]
    assert torch.equal(result.load().predict(images), longtail.load(str(result.folder)).predict(images))
    assert result.report == result.folder / "report.html"


def test_logit_prior_tells_what_the_softmax_implies(result, ready, tmp_path, digits):
    plain = longtail.train("digits-lt", method="cross_entropy", out=tmp_path / "plain", **SHORT).load()
    prior = digits.train.class_counts.double() / len(digits.train)
    torch.testing.assert_close(plain.logit_prior.double(), prior, atol=1e-6, rtol=1e-6)
    for adjusted in (result.load(), ready.load()):
        assert torch.allclose(adjusted.logit_prior, torch.tensor(0.1))
        assert torch.equal(adjusted.class_counts, digits.train.class_counts)


# --- The run folder


def test_run_folder_holds_what_was_promised(result):
    names = {path.name for path in result.folder.iterdir()} - {".lock"}
    assert names == set(
        "config.yaml model.safetensors model.json resume metrics.jsonl evaluation.json per_class.csv report.html "
        "environment.json data.json teacher predictions.safetensors predictions.json gallery.json".split()
    )
    [state] = (result.folder / "resume").iterdir()
    assert {path.name for path in state.iterdir()} == {"state.safetensors", "state.json"}


def test_nothing_in_the_run_folder_is_a_pickle(result):
    for name, data in files_of(result.folder).items():
        assert data[:1] != b"\x80", f"{name} starts like a pickle"
        assert data[:4] != b"PK\x03\x04", f"{name} starts like a zip archive, as torch.save writes"
        if name.endswith(".safetensors"):
            length = int.from_bytes(data[:8], "little")
            assert isinstance(json.loads(data[8 : 8 + length]), dict)
        else:
            data.decode("utf-8")


def test_config_holds_every_option_resolved(result):
    values = yaml.safe_load((result.folder / "config.yaml").read_text())
    config = make_config(parse_values(values, "config.yaml"))
    assert set(parse_values(values, "config.yaml")) == set(OPTION_NAMES)
    assert asdict(config) == values
    assert (config.data, config.method, config.backbone, config.batch_size) == ("digits-lt", "gml", "small_net", 32)
    left_open = [key for key, value in parse_values(values, "").items() if value is None]
    assert set(left_open) == {
        *("imbalance", "root", "folds", "image_size", "teacher.run", "decoupled.run"),
        *("optimiser.clip_norm", "optimiser.ema", "start.head", "tune.rank", "tune.encoder_lr"),
        *(f"source.{name}" for name in ("test", "fold", "group_pattern", "mean", "std")),
        *(f"loading.{name}" for name in ("resident", "workers", "resize", "interpolation")),
        *(f"segmentation.{name}" for name in "crop decoder palette resize width window zero_is_other".split()),
    }


def test_metrics_have_a_line_an_epoch(result):
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in lines] == [
        (stage, epoch) for stage in ("teacher", "student") for epoch in range(1, 9)
    ]
    assert lines[7]["classifier"] < lines[0]["classifier"]
    assert lines[15]["gml"] < lines[8]["gml"]
    assert {"classifier", "gml", "distillation", "temperature", "bits", "lr", "step"} <= lines[-1].keys()
    # The test set is not looked at unless asked for.
    assert not any(key.startswith("test") for line in lines for key in line)


def test_curve_on_the_test_set_changes_nothing_else(result, tmp_path):
    options = {"epochs": 8, "teacher": {"epochs": 8}, "evaluate_every": 4}
    watched = longtail.train("digits-lt", out=tmp_path / "run", **{**SHORT, **options})
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "test_top1" in line] == [4, 8, 4, 8]
    assert lines[-1]["test_top1"] == watched.evaluation["top1"]
    # Neither does the folder, nor how often the state is written.
    name = "model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (result.folder / name).read_bytes()


def test_per_class_table(result, digits):
    rows = list(csv.DictReader((result.folder / "per_class.csv").open()))
    assert [int(row["train_images"]) for row in rows] == digits.train.class_counts.tolist()
    assert sum(int(row["correct"]) for row in rows) == round(400 * result.evaluation["top1"])


def test_other_seed_gives_another_model_and_the_same_seed_the_same(ready, tmp_path):
    for seed in (0, 1):
        longtail.train("digits-lt", method="logit_adjustment", seed=seed, out=tmp_path / str(seed), **SHORT)
    first = (ready.folder / "model.safetensors").read_bytes()
    assert (tmp_path / "0" / "model.safetensors").read_bytes() == first
    assert (tmp_path / "1" / "model.safetensors").read_bytes() != first


def test_training_leaves_the_callers_random_numbers_alone(tmp_path):
    before = torch.get_rng_state(), random.getstate()
    longtail.train("digits-lt", method="cross_entropy", out=tmp_path / "run", **SHORT)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_quiet_prints_nothing(tmp_path, capsys):
    longtail.train("digits-lt", method="cross_entropy", out=tmp_path / "run", **SHORT)
    longtail.evaluate(tmp_path / "run", quiet=True)
    assert capsys.readouterr() == ("", "")


# --- Evaluate


def test_evaluate_writes_the_same_bytes_again(result, tmp_path):
    shutil.copytree(result.folder, tmp_path / "run")
    for name in ("evaluation.json", "per_class.csv", "report.html"):
        (tmp_path / "run" / name).unlink()
    again = longtail.evaluate(tmp_path / "run", device="cpu", quiet=True)
    assert again.evaluation == result.evaluation
    for name in ("evaluation.json", "per_class.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (result.folder / name).read_bytes()
    first = (tmp_path / "run" / "report.html").read_bytes()
    longtail.evaluate(tmp_path / "run", device="cpu", quiet=True)
    assert (tmp_path / "run" / "report.html").read_bytes() == first


def test_evaluate_on_other_data_writes_nothing(result, digits, tmp_path):
    half = digits.test.subset(torch.arange(0, 400, 2))
    np.savez(
        tmp_path / "half.npz",
        train_images=digits.train.images[:, 0].numpy(),
        train_labels=digits.train.labels.numpy(),
        test_images=half.images[:, 0].numpy(),
        test_labels=half.labels.numpy(),
        class_names=np.array(digits.test.class_names),
    )
    before = files_of(result.folder)
    other = longtail.evaluate(result.folder, str(tmp_path / "half.npz"), device="cpu", quiet=True)
    predictions = result.load().predict(half.images).argmax(1)
    assert other.evaluation["top1"] == (predictions == half.labels).double().mean().item()
    assert other.evaluation["test_images"] == 200
    assert files_of(result.folder) == before


# --- Teachers


def test_ready_teacher_is_copied_into_the_run_and_not_trained(ready, tmp_path):
    run = longtail.train("digits-lt", out=tmp_path / "run", **{**SHORT, "teacher": {"run": ready.folder}})
    stages = [json.loads(line)["stage"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert set(stages) == {"student"}
    assert (run.folder / "teacher" / "model.safetensors").read_bytes() == (
        ready.folder / "model.safetensors"
    ).read_bytes()
    # The run stands alone from then on.
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert config["teacher"]["run"] == str(ready.folder)


def test_own_and_ready_teacher_of_the_same_weights_give_the_same_student(tmp_path):
    own = longtail.train("digits-lt", out=tmp_path / "own", **SHORT)
    # A run folder's teacher/ is a model like any other.
    given = longtail.train("digits-lt", out=tmp_path / "given", **{**SHORT, "teacher": {"run": own.folder / "teacher"}})
    name = "model.safetensors"
    assert (own.folder / name).read_bytes() == (given.folder / name).read_bytes()


def test_momentum_teacher(tmp_path):
    run = longtail.train("digits-lt", out=tmp_path / "run", **{**SHORT, "teacher": {"kind": "momentum"}})
    assert not (run.folder / "teacher").exists()
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["student"]
    assert lines[0]["distillation"] > 0
    assert run.evaluation["top1"] > 0


# --- Mistakes


def test_mistaken_keywords(tmp_path):
    with pytest.raises(UserError, match=r"train: unknown option --epoch; did you mean --epochs"):
        longtail.train("digits-lt", epoch=3, out=tmp_path / "run")
    with pytest.raises(UserError, match=r"train: --epochs must be a whole number, got 3\.5"):
        longtail.train("digits-lt", epochs=3.5, out=tmp_path / "run")
    with pytest.raises(UserError, match="no data given"):
        longtail.train(out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_may_be_a_path_object(tmp_path):
    with pytest.raises(UserError, match=r"no such file or folder: .*none\.npz"):
        longtail.train(tmp_path / "none.npz")


def test_load_what_is_no_model(tmp_path):
    with pytest.raises(UserError, match=r"is not a run folder: it has no model\.json"):
        longtail.load(tmp_path)


def test_what_only_sharded_encoders_need_is_not_imported():
    """It takes torch seconds at every start."""
    code = "import sys, longtail.api, longtail.planning.plan; print('torch.distributed.tensor' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
