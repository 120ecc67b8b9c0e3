"""Runs with validation images: the epoch that is kept, what is written, and that the test set has no say."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from longtail.data import ImageSet
from longtail.errors import UserError
from longtail.files import load_meta
from longtail.methods.logit_adjustment import LogitAdjustment
from longtail.metrics import fit_temperature, prior_weights
from longtail.models import Classifier
from longtail.training import evaluation as evaluating
from longtail.training import stages
from longtail.training.calibration import calibrate, read_calibration, read_temperature, validation_notes
from longtail.training.evaluation import load_predictions, summarise
from longtail.training.guard import Interrupted
from longtail.training.shortlists import with_shortlists
from whole_runs import run, stop_at_step

pytestmark = pytest.mark.usefixtures("one_thread")

RESULTS = "model.safetensors model.json metrics.jsonl evaluation.json per_class.csv validation.safetensors".split()
RESULTS += ["validation.json", "calibration.json"]


def results(path, names=RESULTS):
    return {name: (path / name).read_bytes() for name in names}


def log_of(path, stage):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == stage]


@pytest.fixture
def splits(tiny_splits):
    """Half of the test images validate, with labels that are mostly wrong: later epochs are worse."""
    places = torch.arange(len(tiny_splits.test))
    held = tiny_splits.test.subset(places[places % 2 == 0])
    labels = held.labels.clone()
    wrong = torch.arange(len(labels)) % 3 > 0
    labels[wrong] = (labels[wrong] + 1) % 3
    return replace(
        tiny_splits, validation=replace(held, labels=labels), test=tiny_splits.test.subset(places[places % 2 == 1])
    )


@pytest.fixture
def options(tiny_config):
    def build(**changes):
        return tiny_config(**{"method": "cross_entropy", "val_fraction": 0.2, "epochs": 4, **changes})

    return build


@pytest.fixture
def watched(monkeypatch):
    """Every classifier that is looked at on the validation images, in order."""
    seen, real = [], stages.quick_look

    def look(classifier, images, *rest, **how):
        if how.get("of") == "val":
            seen.append({name: value.clone() for name, value in classifier.state_dict().items()})
        return real(classifier, images, *rest, **how)

    monkeypatch.setattr(stages, "quick_look", look)
    return seen


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def figures_of(weights, model, images):
    """Top-1 and balanced accuracy of a classifier with these weights, in numpy."""
    model.load_state_dict(weights)
    guessed, labels = model.logits(images.images).argmax(1).numpy(), images.labels.numpy()
    recall = [np.mean(guessed[labels == label] == label) for label in sorted(set(labels.tolist()))]
    return np.mean(guessed == labels), np.mean(recall)


@pytest.mark.parametrize("ema", [None, 0.8])
def test_the_epoch_kept_is_the_last_best_of_an_independent_replay(ema, tmp_path, options, splits, watched):
    config = options(epochs=6, optimiser__ema=ema)
    assert config.select == "best"
    evaluation = run(tmp_path / "run", config, splits)
    lines = log_of(tmp_path / "run", "train")
    model, kept = Classifier.load(tmp_path / "run"), Classifier.load(tmp_path / "run").state_dict()
    kept = {name: value.clone() for name, value in kept.items()}
    replayed = [figures_of(weights, model, splits.validation) for weights in watched]
    assert [(line["val_top1"], line["val_balanced_accuracy"]) for line in lines] == [
        pytest.approx(pair) for pair in replayed
    ]
    values = [line["val_balanced_accuracy"] for line in lines]
    best = max(epoch for epoch, value in enumerate(values, 1) if value == max(values))
    assert best < 6, "the data of this test must make an earlier epoch the best"
    assert same(kept, watched[best - 1])
    assert not same(kept, watched[-1])
    chosen = {"epoch": best, "of": 6, "figure": "val_balanced_accuracy", "value": max(values), "images": 15}
    assert (evaluation["selection"], evaluation["selected"]) == ("best", chosen)


def test_last_keeps_the_last_epoch_and_training_itself_does_not_change(tmp_path, options, splits, watched):
    evaluation = run(tmp_path / "last", options(select="last"), splits)
    assert evaluation["selection"] == "last"
    assert "selected" not in evaluation
    assert same(Classifier.load(tmp_path / "last").state_dict(), watched[-1])
    assert all("val_balanced_accuracy" in line for line in log_of(tmp_path / "last", "train"))
    run(tmp_path / "none", options(val_fraction=0.0), replace(splits, validation=None))
    assert results(tmp_path / "none", ["model.safetensors"]) == results(tmp_path / "last", ["model.safetensors"])
    assert not (tmp_path / "none" / "calibration.json").exists()
    assert read_temperature(tmp_path / "none") is None


def test_looks_are_as_rare_as_asked_for_but_the_last_epoch_has_one(tmp_path, options, splits):
    evaluation = run(tmp_path / "run", options(epochs=5, evaluate_every=2), splits)
    looked = [(line["epoch"], "val_top1" in line, "test_top1" in line) for line in log_of(tmp_path / "run", "train")]
    assert looked == [(1, False, False), (2, True, True), (3, False, False), (4, True, True), (5, True, False)]
    assert evaluation["selected"]["of"] == 3


def test_every_stage_looks_and_keeps_its_best(tmp_path, options, splits, watched):
    run(tmp_path / "run", options(method="gml", epochs=3, teacher__epochs=4), splits)
    assert len(watched) == 7
    for stage, folder, looks in (("teacher", "run/teacher", watched[:4]), ("student", "run", watched[4:])):
        selected = json.loads((tmp_path / folder / "evaluation.json").read_text())["selected"]
        values = [line["val_balanced_accuracy"] for line in log_of(tmp_path / "run", stage)]
        assert selected["epoch"] == len(values) - int(np.argmax(values[::-1]))
        assert selected["of"] == len(looks) == len(values)
        assert same(Classifier.load(tmp_path / folder).state_dict(), looks[selected["epoch"] - 1])
        assert read_calibration(tmp_path / folder)["temperature"] > 0
    # No prior is left in the logits of either, so no strength of one is fitted.
    assert "tau" not in read_calibration(tmp_path / "run")


def test_the_test_labels_choose_nothing(tmp_path, options, splits):
    run(tmp_path / "a", options(), splits)
    other = replace(splits, test=replace(splits.test, labels=splits.test.labels.flip(0)))
    run(tmp_path / "b", options(), other)
    chosen = [name for name in RESULTS if name not in ("evaluation.json", "per_class.csv")]
    assert results(tmp_path / "a", chosen) == results(tmp_path / "b", chosen)
    assert (tmp_path / "a/per_class.csv").read_bytes() != (tmp_path / "b/per_class.csv").read_bytes()


def test_a_crash_at_any_write_keeps_the_same_epoch(tmp_path, options, splits, crash_at_every_write):
    config = options(optimiser__ema=0.8)
    run(tmp_path / "whole", config, splits)
    expected = results(tmp_path / "whole")
    assert json.loads(expected["evaluation.json"])["selected"]["epoch"] < 4
    # config, four states of three files, environment, model, validation, calibration, table and evaluation.
    least = 17
    for path in crash_at_every_write(least, lambda path, resume: run(path, config, splits, resume=resume)):
        assert results(path) == expected, path.name


@pytest.mark.parametrize("step", [2, 8, 9, 15])
def test_a_stop_at_any_step_keeps_the_same_epoch(step, tmp_path, options, splits, monkeypatch):
    config = options(checkpoint__every_seconds=1e6)  # only the stop writes a state
    run(tmp_path / "whole", config, splits)
    stop_at_step(monkeypatch, LogitAdjustment, step)
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", config, splits)
    run(tmp_path / "stopped", config, splits, resume=True)
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")


def test_changed_validation_images_are_noticed(tmp_path, options, splits):
    run(tmp_path / "run", options(), splits)
    changed = replace(splits, validation=replace(splits.validation, labels=splits.validation.labels.flip(0)))
    with pytest.raises(UserError, match="the data is not what the run"):
        run(tmp_path / "run", options(), changed, resume=True)


# --- Calibration


@pytest.fixture
def scattered():
    """A fixed linear model of 5 classes that is often wrong, 400 images, and what it says of them."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.multinomial(torch.tensor([0.5, 0.25, 0.13, 0.08, 0.04]), 400, True, generator=generator)
    images = torch.randint(0, 256, (400, 1, 4, 4), dtype=torch.uint8, generator=generator)
    logits = 6 * torch.randn(400, 5, generator=generator) - 40
    logits[torch.arange(400), labels] += 5
    return images, labels, logits


def test_large_logits_take_half_the_memory_and_say_the_same(tmp_path, monkeypatch, scattered):
    images, labels, logits = scattered
    names, prior = tuple("abcde"), torch.full((5,), 0.2)
    model = SimpleNamespace(num_classes=5, class_names=names, logit_prior=torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]))
    counts = torch.tensor([200, 100, 52, 32, 16])
    monkeypatch.setattr(evaluating, "_batches", lambda *_: iter(logits.split(64)))
    # Images of their own: one that itself set a threshold lies on it to the last bit.
    moved = logits.flip(0) + torch.rand(400, 5, generator=torch.Generator().manual_seed(3))
    tests = summarise(moved, labels.flip(0), counts, prior, names)
    found = {}
    for name, most in (("whole", 4 * 400 * 5), ("half", 4 * 400 * 5 - 1)):
        monkeypatch.setattr(evaluating, "MOST_BYTES", most)
        (tmp_path / name).mkdir()
        calibrate(tmp_path / name, model, ImageSet(images, labels, names), torch.device("cpu"), 0, None)
        kept = load_predictions(tmp_path / name, "validation")[0]
        shortlists = with_shortlists(tmp_path / name, tests, model.logit_prior).figures["conformal"]["kinds"]
        found[name] = kept, read_calibration(tmp_path / name), shortlists
    assert torch.equal(found["whole"][0], logits)
    assert found["half"][0].dtype == torch.float16
    assert found["half"][0].nbytes == 400 * 5 * 2
    torch.testing.assert_close(found["half"][0].double().softmax(1), logits.double().softmax(1), atol=3e-4, rtol=0)
    one, two = found["whole"][1], found["half"][1]
    assert two["temperature"] == pytest.approx(one["temperature"], rel=1e-3)
    assert two["nll"] == pytest.approx(one["nll"], rel=1e-3)
    assert two["ece"] == pytest.approx(one["ece"], abs=2e-3)
    assert (two["tau"], two["images"]) == (one["tau"], 400)
    for kind, figures in found["whole"][2].items():
        for key in ("coverage", "macro_coverage", "mean_size"):
            assert found["half"][2][kind][key] == pytest.approx(figures[key], abs=0.01), (kind, key)


def test_calibration_is_the_fit_on_the_validation_logits_weighted_to_the_prior_of_the_softmax(
    tmp_path, options, splits, monkeypatch
):
    monkeypatch.setattr("longtail.training.calibration.FEWEST_IMAGES", 1)
    evaluation = run(tmp_path / "run", options(), splits)
    model, path = Classifier.load(tmp_path / "run"), tmp_path / "run"
    logits, labels = load_predictions(path, "validation")
    assert torch.equal(logits, model.logits(splits.validation.images))
    assert torch.equal(labels, splits.validation.labels)
    assert load_meta(path, "validation")["selection"] == "best"
    record = read_calibration(path)
    weights = prior_weights(labels, model.logit_prior)
    assert record["temperature"] == read_temperature(path) == fit_temperature(logits, labels, weights)
    assert record["images"] == 15
    assert record["nll"][1] <= record["nll"][0]
    scaled = torch.nn.functional.cross_entropy(logits.double() / record["temperature"], labels, reduction="none")
    assert record["nll"][1] == pytest.approx(float((weights * scaled).sum() / weights.sum()), rel=1e-9)
    assert len(record["ece"]) == 2

    tested = model.logits(splits.test.images)
    confidence = (tested.double() / record["temperature"]).softmax(1).max(1).values.numpy()
    right = (tested.argmax(1) == splits.test.labels).numpy()
    bins = np.minimum((confidence * 15).astype(int), 14)
    error = sum(abs((right - confidence)[bins == b].sum()) for b in range(15)) / len(right)
    assert evaluation["calibrated"]["ece"] == pytest.approx(error, abs=1e-6)
    assert evaluation["calibrated"]["temperature"] == record["temperature"]
    assert evaluation["calibrated"]["class_ece"] != evaluation["class_ece"]

    # Cross entropy leaves the training prior in: its strength is fitted too, and shown on the test set.
    strength = record["tau"]
    guessed = (tested.double() - strength * model.logit_prior.double().log()).argmax(1)
    recall = [float((guessed[splits.test.labels == c] == c).double().mean()) for c in range(3)]
    assert evaluation["post_hoc"]["tau"] == strength
    assert evaluation["post_hoc"]["balanced_accuracy"] == pytest.approx(sum(recall) / 3)
    assert evaluation["post_hoc"]["groups"]["medium"]["accuracy"] == pytest.approx(recall[0])
    assert evaluation["post_hoc"]["groups"]["few"]["accuracy"] == pytest.approx((recall[1] + recall[2]) / 2)


def test_few_images_fit_no_temperature(tmp_path, options, splits):
    run(tmp_path / "run", options(), splits)
    record, model = read_calibration(tmp_path / "run"), Classifier.load(tmp_path / "run")
    weights = prior_weights(splits.validation.labels, model.logit_prior)
    assert record["effective_images"] == pytest.approx(float(weights.sum() ** 2 / (weights**2).sum()), abs=0.05)
    assert record["effective_images"] < 30
    assert record["temperature"] == 1
    assert "no temperature is fitted" in validation_notes(tmp_path / "run")[-1]


@pytest.mark.parametrize("text", ["{}", "[]", '{"temperature": 0}', '{"temperature": "1"}', "{"])
def test_a_changed_calibration_is_told(text, tmp_path):
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(UserError, match=r"calibration\.json"):
        read_temperature(tmp_path)


# --- By command line


TINY = (
    "--method cross_entropy --backbone small_net --image_size 16 --batch_size 4 --epochs 2 --device cpu "
    "--loading.workers 0"
).split()
COUNTS = {"ant": 12, "bee": 6, "cat": 2, "dog": 1}


def test_a_run_over_a_folder_tells_what_was_held_out_and_chosen(desk, make_photos):
    make_photos(desk.folder / "photos", COUNTS)
    out, _ = desk.run("train", "photos", *TINY, "--val_fraction", "0.2", "--out", "run")
    assert "3 validation images" in out
    assert "training images are held out for validation" in out
    assert "is kept, the best of 2" in out
    record = json.loads((desk.folder / "run/data.json").read_text())
    assert record["validation_images"] == 3
    assert "seed 0" in record["validation_split"]
    evaluation = json.loads((desk.folder / "run/evaluation.json").read_text())
    assert sum(evaluation["class_counts"]) == record["train_images"]
    page = (desk.folder / "run/report.html").read_text()
    assert f"Figures of epoch {evaluation['selected']['epoch']}" in page
    assert "by balanced accuracy on 3 validation images" in page
    assert "Validation set: 3 images" in page
    assert "Validation balanced accuracy" in page
    before = results(desk.folder / "run")
    (desk.folder / "run/evaluation.json").unlink()
    desk.run("evaluate", "run", "--device", "cpu")
    assert results(desk.folder / "run") == before
    desk.refuse("train", *TINY, "--out", "run", "--resume", "--val_fraction", "0.3", naming=["--val_fraction"])
    desk.run("train", "photos", *TINY, "--out", "run", "--overwrite", "--quiet")
    assert not list((desk.folder / "run").glob("*alid*"))
    assert not (desk.folder / "run/calibration.json").exists()


def test_over_folds_each_fold_has_its_own(desk, make_photos):
    make_photos(desk.folder / "photos", COUNTS)
    desk.run("train", "photos", *TINY, "--quiet", "--folds", "2", "--val_fraction", "0.2", "--out", "run")
    for fold in (0, 1):
        figures = json.loads((desk.folder / f"run/fold-{fold}/evaluation.json").read_text())
        assert figures["selected"]["of"] == 2
        assert read_calibration(desk.folder / f"run/fold-{fold}")["temperature"] > 0
    pooled = json.loads((desk.folder / "run/evaluation.json").read_text())
    assert pooled["selection"] == "best"
    assert "In each fold, figures of the epoch that was best" in (desk.folder / "run/report.html").read_text()


def test_weights_of_a_run_that_knows_the_validation_images_are_noted(desk, make_photos):
    make_photos(desk.folder / "photos", COUNTS)
    desk.run("train", "photos", *TINY, "--quiet", "--out", "whole")
    more = [*TINY, "--val_fraction", "0.2", "--out"]
    out, _ = desk.run("train", "photos", *more, "run", "--pretrained", "whole")
    assert "--pretrained whole was not trained on just these training images" in out
    assert "tested or validated on here" in out
    out, _ = desk.run("train", "photos", *more, "again", "--pretrained", "run")
    assert "flatter" not in out


@pytest.mark.parametrize("fraction", ["1", "-0.1", "1.5", "nan", "20"])
def test_fractions_that_cannot_be_meant(fraction, desk, make_photos):
    make_photos(desk.folder / "photos", COUNTS)
    desk.refuse("train", "photos", *TINY, "--val_fraction", fraction, naming=["--val_fraction", fraction])


def test_best_without_validation_images_is_refused(desk, make_photos):
    make_photos(desk.folder / "photos", COUNTS)
    desk.refuse("train", "photos", *TINY, "--select", "best", naming=["--select best", "--val_fraction 0.2"])
    desk.refuse("train", "photos", *TINY, "--select", "first", naming=["--select", "last, best"])
