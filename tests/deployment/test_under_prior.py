"""Figures at another prior: Bayes' rule by hand, accuracy that rises where it should, and nothing else touched."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from longtail.deployment.under_prior import evaluate_under_prior
from longtail.errors import UserError
from longtail.training.evaluation import summarise

COUNTS = torch.tensor([200, 50, 10])
NAMES = ("cat", "lynx", "otter")


@pytest.fixture
def classifier(build_model):
    model = build_model(side=8)
    model.class_names, model.class_counts = NAMES, COUNTS
    return model


def bayes_world(images, seed=0):
    """Logits of the true posterior at a uniform prior: unit Gaussians around three corners."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat_interleave(torch.tensor(images))
    centres = 1.2 * torch.eye(3, dtype=torch.float64)
    points = centres[labels] + torch.randn(len(labels), 3, generator=generator, dtype=torch.float64)
    return points @ centres.T, labels


def evaluation_of(logits, labels, classifier):
    return summarise(logits, labels, COUNTS, classifier.logit_prior, NAMES)


def test_predictions_are_bayes_rule_and_the_rest_is_the_models(classifier):
    logits, labels = bayes_world([50, 40, 30])
    prior = torch.tensor([0.7, 0.25, 0.05], dtype=torch.float64)
    before = evaluation_of(logits, labels, classifier)
    after = evaluate_under_prior(before, classifier, prior, "mine.csv", 1.5, (100, 20))
    weight = np.exp(logits.numpy() / 1.5) * prior.numpy() * 3
    predicted = weight.argmax(1)
    assert after.figures["top1"] == pytest.approx((predicted == labels.numpy()).mean())
    recall = [(predicted[labels.numpy() == c] == c).mean() for c in range(3)]
    assert after.figures["balanced_accuracy"] == pytest.approx(np.mean(recall))
    assert after.figures["prior"]["accuracy"]["mean"] == pytest.approx(float(np.dot(prior.numpy(), recall)))
    change = after.figures["prior"]["differences"]["top1"]
    assert change["mean"] == pytest.approx(after.figures["top1"] - before.figures["top1"])
    assert after.figures["test_images"] == before.figures["test_images"]


def test_the_right_prior_raises_the_accuracy_at_that_prior(classifier):
    logits, labels = bayes_world([4000, 4000, 4000])
    prior = torch.tensor([0.9, 0.08, 0.02], dtype=torch.float64)
    record = evaluate_under_prior(
        evaluation_of(logits, labels, classifier), classifier, prior, "x", None, (100, 20)
    ).figures["prior"]
    # Ground truth: new images that come at these rates, told apart by the exact posterior.
    new_logits, new_labels = bayes_world([90_000, 8_000, 2_000], seed=1)
    exact = ((new_logits + prior.log()).argmax(1) == new_labels).double().mean()
    assert record["accuracy"]["mean"] == pytest.approx(float(exact), abs=0.01)
    assert record["accuracy"]["low"] > record["accuracy_without_shift"]["high"]


def test_a_class_that_never_occurs_is_never_predicted(classifier):
    logits, labels = bayes_world([20, 20, 20])
    prior = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    after = evaluate_under_prior(evaluation_of(logits, labels, classifier), classifier, prior, "x", None, (100, 20))
    assert after.rows[2]["correct"] == 0
    assert after.figures["mutual_information_bits"] is None
    assert json.dumps(after.figures, allow_nan=False)


def test_a_prior_on_untested_classes_alone_is_refused(classifier):
    logits, labels = bayes_world([20, 20, 0])
    prior = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    with pytest.raises(UserError, match=r"--prior otters\.csv: no class .* has a test image"):
        evaluate_under_prior(
            evaluation_of(logits, labels, classifier), classifier, prior, "otters.csv", None, (100, 20)
        )


def test_on_the_command_line(desk, make_photos, one_thread):
    make_photos(Path("photos"), {"cat": 24, "lynx": 8, "otter": 5})
    options = ["--method", "cross_entropy", "--epochs", "1", "--image_size", "16", "--device", "cpu"]
    desk.run("train", "photos", "--out", "run", "--quiet", *options)
    Path("prior.csv").write_text("class,prior\notter,3\ncat,1\nlynx,0\n")
    kept = desk.snapshot("run")
    out, _ = desk.run("evaluate", "run", "--prior", "prior.csv", "--out", "figures.json")
    assert "prior prior.csv" in out
    assert "at that prior" in out
    assert "the predictions change; the model and the test images do not" in out
    assert desk.snapshot("run") == kept
    record = json.loads(Path("figures.json").read_text())
    assert record["prior"]["prior"] == pytest.approx([0.25, 0.0, 0.75])
    # Cross entropy's softmax implies the training prior: nothing moves.
    desk.run("evaluate", "run", "--prior", "train", "--out", "figures.json", "--overwrite")
    record = json.loads(Path("figures.json").read_text())["prior"]
    assert record["named"] == "train"
    assert record["accuracy"] == record["accuracy_without_shift"]
    assert record["differences"]["top1"]["mean"] == 0
    desk.refuse("evaluate", "run", "--prior", "unifrm", naming=["unifrm", "uniform"])
    desk.refuse("evaluate", "run", "--prior", "train", "--out", "figures.json", naming=["figures.json", "--overwrite"])
    desk.refuse("evaluate", "run", "--prior", "train", "--out", "figures.txt", naming=["figures.txt", ".json"])
    Path("prior.csv").write_text("class,prior\notter,3\n")
    desk.refuse("evaluate", "run", "--prior", "prior.csv", naming=["prior.csv", "cat"])
    out, _ = desk.run("evaluate", "run", "photos", "--out", "other.json")
    assert "classes tested" in out
    assert json.loads(Path("other.json").read_text())["test_images"] == 37
