"""A model of long-tailed digits, used where the tail is reversed: the prior is found, and accuracy rises with it."""

import csv

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import longtail
from longtail.data.digits import digits_lt


def test_digits_with_the_tail_reversed(tmp_path, one_thread):
    options = {"method": "cross_entropy", "imbalance": 10, "epochs": 20, "device": "cpu", "quiet": True}
    run = longtail.train("digits-lt", out=str(tmp_path / "run"), **options).folder
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    trained = {image.tobytes() for image in digits_lt(10).train.images.numpy()}
    chosen, labels = [], []
    for label, count in enumerate([16, 20, 26, 34, 44, 57, 74, 95, 123, 160]):
        places = [i for i in np.flatnonzero(digits.target == label) if pixels[i].tobytes() not in trained]
        chosen += places[:count]
        labels += [label] * len(places[:count])
    np.savez(tmp_path / "fresh.npz", images=pixels[chosen][:, None])
    truth = torch.bincount(torch.tensor(labels)).double() / len(labels)
    accuracy = {}
    for prior in ("none", "uniform", "estimate"):
        table = tmp_path / f"{prior}.csv"
        done = longtail.predict(run, tmp_path / "fresh.npz", prior=prior, out=table, quiet=True)
        answers = [int(row["label"]) for row in csv.DictReader(table.read_text().splitlines())]
        accuracy[prior] = np.mean(np.array(answers) == labels)
    found = torch.tensor([done.prior[str(k)] for k in range(10)], dtype=torch.float64)
    trained_prior = digits_lt(10).train.class_counts.double()
    far = float((trained_prior / trained_prior.sum() - truth).abs().sum() / 2)
    assert accuracy["none"] + 0.01 < accuracy["estimate"]
    assert accuracy["uniform"] <= accuracy["estimate"]
    assert float((found - truth).abs().sum() / 2) < 0.1 < 0.5 < far
    assert found.argmax() == 9


def test_the_estimate_is_relative_to_what_the_model_expects(tmp_path):
    """Two models that differ only in the prior of their softmax find the same prior and say the same."""
    from longtail.data.image_set import Framing
    from longtail.models import build_classifier

    spec = {"encoder": "small_net", "in_channels": 1, "head": "linear"}
    torch.manual_seed(0)
    names, prior = ("a", "b", "c"), torch.tensor([0.7, 0.2, 0.1])
    plain = build_classifier(spec, names, torch.ones(3), torch.ones(3) / 3, [0.5], [0.3], Framing((8, 8), 8))
    other = build_classifier(spec, names, torch.ones(3), prior, [0.5], [0.3], Framing((8, 8), 8))
    plain.save(tmp_path / "plain")
    weights = plain.state_dict() | {"logit_prior": prior}
    weights["head.bias"] = weights["head.bias"] + prior.log()
    other.load_state_dict(weights)
    other.save(tmp_path / "other")
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", images=generator.integers(0, 256, (80, 8, 8, 1), dtype=np.uint8))
    found = {}
    for name in ("plain", "other"):
        out = tmp_path / f"{name}.csv"
        done = longtail.predict(tmp_path / name, tmp_path / "x.npz", prior="estimate", out=out, quiet=True)
        rows = list(csv.DictReader(out.read_text().splitlines()))
        found[name] = (list(done.prior.values()), [float(row["probability"]) for row in rows])
    for one, two in zip(*found.values(), strict=True):
        assert one == pytest.approx(two, abs=1e-3)
