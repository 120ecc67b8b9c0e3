"""Shortlist figures of an evaluation, against sets made one image at a time; nothing without validation."""

import csv

import numpy as np
import pytest
import torch

from longtail.files import save_tensors, write_json
from longtail.reporting import write_report
from longtail.training.evaluation import summarise, write_evaluation
from longtail.training.shortlists import with_shortlists

COUNTS = torch.tensor([300, 60, 12, 3])
NAMES = ("ant", "bee", "cat", "<dog>")


def scored(counts, seed):
    """Logits whose softmax holds for equally frequent classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(4).repeat_interleave(torch.tensor(counts))
    points = torch.randn(len(labels), 4, generator=generator)
    points[torch.arange(len(labels)), labels] += 1.5
    return 1.5 * points, labels


@pytest.fixture
def folder(tmp_path):
    logits, labels = scored([60, 12, 3, 1], seed=0)
    save_tensors(tmp_path, "validation", {"logits": 2 * logits, "labels": labels}, {})
    write_json(tmp_path / "calibration.json", {"temperature": 2.0, "images": 76, "nll": [1, 1], "ece": [0, 0]})
    return tmp_path


@pytest.fixture
def evaluation():
    logits, labels = scored([50, 50, 50, 0], seed=1)
    return summarise(2 * logits, labels, COUNTS, torch.full((4,), 0.25), NAMES)


def test_figures_against_sets_made_one_by_one(folder, evaluation):
    found = with_shortlists(folder, evaluation, torch.full((4,), 0.25))
    record = found.figures["conformal"]
    assert (record["target"], record["images"]) == (0.9, 76)
    held_out, labels = scored([60, 12, 3, 1], seed=0)
    train = (COUNTS / COUNTS.sum()).double()
    for kind, figures in record["kinds"].items():

        def score(logits, kind=kind):
            if kind == "prevalence":
                return -(logits.double() + train.log()).softmax(-1) / train
            return 1 - logits.double().softmax(-1)

        own = torch.stack([score(row)[label] for row, label in zip(held_out, labels, strict=True)])
        of = [labels >= 0] * 4 if kind != "class" else [labels == 0, labels == 1, *[labels > 1] * 2]
        if kind == "class":  # cat and dog have 4 images together: bee joins them
            of[1] = of[2] = of[3] = labels > 0
        thresholds = []
        # "class" promises to each class; the others are for the training frequencies, 300 to 3 (held out: 60 to 1).
        weight = np.ones(4) if kind == "class" else np.array([300 / 60, 60 / 12, 12 / 3, 3 / 1]) * 76 / 375
        for label, chosen in enumerate(of):
            ranked = sorted((float(own[k]), weight[labels[k]]) for k in chosen.nonzero().flatten().tolist())
            needed = 0.9 * (sum(w for _, w in ranked) + weight[label]) - 1e-9
            reached = np.cumsum([w for _, w in ranked])
            thresholds.append(next((ranked[k][0] for k in range(len(ranked)) if reached[k] >= needed), np.inf))
        held, sizes = [], []
        for row, label in zip(evaluation.logits / 2, evaluation.labels.tolist(), strict=True):
            chosen = {c for c in range(4) if score(row)[c] <= thresholds[c]} | {int(row.argmax())}
            held.append(label in chosen)
            sizes.append(len(chosen))
        held, sizes, truth = np.array(held), np.array(sizes), evaluation.labels.numpy()
        by_class = [held[truth == c].mean() for c in range(3)]
        assert figures["coverage"] == pytest.approx(held.mean())
        assert figures["macro_coverage"] == pytest.approx(np.mean(by_class))
        assert figures["weighted_coverage"] == pytest.approx(np.dot([300, 60, 12], by_class) / 372)
        assert figures["mean_size"] == pytest.approx(sizes.mean())
        assert figures["groups"]["many"]["coverage"] == pytest.approx(by_class[0])
        assert figures["groups"]["medium"]["mean_size"] == pytest.approx(sizes[truth == 1].mean())
        assert figures["groups"]["few"]["coverage"] == pytest.approx(by_class[2])  # dog has no test image
        assert [row[f"{kind}_coverage"] for row in found.rows] == [*map(pytest.approx, by_class), None]
        assert found.rows[3][f"{kind}_size"] is None
    assert found.figures.items() >= evaluation.figures.items()


def test_it_is_written_and_the_report_shows_it(folder, evaluation):
    (folder / "config.yaml").write_text("data: x\nmethod: gml\n")
    write_evaluation(folder, with_shortlists(folder, evaluation, torch.full((4,), 0.25)))
    rows = list(csv.DictReader((folder / "per_class.csv").read_text().splitlines()))
    assert rows[3]["prevalence_coverage"] == ""
    assert float(rows[0]["marginal_size"]) >= 1
    page = write_report(folder).read_text()
    assert 'id="shortlists"' in page
    assert "76 validation images" in page


def test_nothing_is_added_without_enough_validation_images(tmp_path, evaluation):
    assert with_shortlists(tmp_path, evaluation, torch.full((4,), 0.25)) is evaluation
    save_tensors(tmp_path, "validation", {"logits": torch.zeros(8, 4), "labels": torch.zeros(8, dtype=torch.int64)}, {})
    assert with_shortlists(tmp_path, evaluation, torch.full((4,), 0.25)) is evaluation
    (tmp_path / "config.yaml").write_text("data: x\nmethod: gml\n")
    write_evaluation(tmp_path, evaluation)
    assert 'id="shortlists"' not in write_report(tmp_path).read_text()
