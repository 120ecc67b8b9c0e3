"""Figures over folds: against numpy and scipy, with folds that lack a figure, and as JSON."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from longtail.metrics import evaluate_predictions
from longtail.metrics.folds import FOLD_FIGURES, fold_figures


def evaluations(number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(number):
        labels = torch.randint(0, 6, (90,), generator=generator)
        logits = torch.randn(90, 6, generator=generator)
        logits[torch.arange(90), labels] += 1.0
        found.append(evaluate_predictions(logits, labels, torch.tensor([300, 150, 60, 30, 9, 3]), torch.ones(6)))
    return found


def test_mean_spread_and_interval_agree_with_numpy_and_scipy():
    folds, repeats = 4, 3
    of_folds = evaluations(folds * repeats)
    record = fold_figures(of_folds, folds, repeats)
    assert (record["folds"], record["repeats"]) == (folds, repeats)
    assert record["test_images"] == [90] * 12
    assert set(record["figures"]) == set(FOLD_FIGURES)
    given = {
        "top1": [e["top1"] for e in of_folds],
        "balanced_accuracy": [e["balanced_accuracy"] for e in of_folds],
        "ece": [e["ece"] for e in of_folds],
        "worst_class": [e["worst_class"]["accuracy"] for e in of_folds],
        **{group: [e["groups"][group]["accuracy"] for e in of_folds] for group in ("many", "medium", "few")},
    }
    for name, values in given.items():
        found = record["figures"][name]
        assert found["values"] == values
        assert found["undefined"] == 0
        assert found["mean"] == pytest.approx(np.mean(values), abs=1e-12)
        assert found["sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-12)
        means = np.array(values).reshape(repeats, folds).mean(axis=1)
        assert found["repeat_means"] == pytest.approx(means.tolist(), abs=1e-12)
        expected = stats.t.interval(0.95, repeats - 1, loc=means.mean(), scale=stats.sem(means))
        assert found["interval"] == pytest.approx(np.clip(expected, 0, 1).tolist(), abs=1e-9)
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_folds_without_a_figure_are_left_out_and_counted():
    of_folds = evaluations(6)
    for place in (0, 1, 2, 4):
        of_folds[place]["groups"]["few"]["accuracy"] = None
    for evaluation in of_folds:
        evaluation["groups"]["many"]["accuracy"] = None
    found = fold_figures(of_folds, 3, 2)["figures"]
    third, fifth = (of_folds[k]["groups"]["few"]["accuracy"] for k in (3, 5))
    assert found["few"]["values"] == [None, None, None, third, None, fifth]
    assert found["few"]["undefined"] == 4
    assert found["few"]["mean"] == pytest.approx((third + fifth) / 2)
    assert found["few"]["sd"] == pytest.approx(abs(third - fifth) / math.sqrt(2))
    assert found["few"]["repeat_means"] == [found["few"]["mean"]]
    assert found["few"]["interval"] is None
    assert found["many"] == {
        "mean": None,
        "sd": None,
        "values": [None] * 6,
        "undefined": 6,
        "repeat_means": [],
        "interval": None,
    }


def test_one_repeat_has_no_interval():
    assert fold_figures(evaluations(2), 2, 1)["figures"]["top1"]["interval"] is None


def test_the_worst_class_tells_its_test_images():
    of_folds = evaluations(2)
    of_folds[1]["worst_class"]["test_images"] = 17
    assert fold_figures(of_folds, 2, 1)["figures"]["worst_class"]["test_images"] == [None, 17]


def test_wrong_numbers_of_evaluations_are_a_programming_error():
    for folds, repeats in ((2, 1), (1, 3), (3, 0)):
        with pytest.raises(ValueError, match="need as many evaluations, got 3"):
            fold_figures(evaluations(3), folds, repeats)
    broken = evaluations(2)
    del broken[1]["ece"]
    with pytest.raises(ValueError, match="lacks 'ece'"):
        fold_figures(broken, 2, 1)
