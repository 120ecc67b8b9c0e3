"""The whole record and the table a class: against loops, as JSON, and at iNaturalist's size and beyond."""

import json
import math
import time
from collections import Counter

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, top_k_accuracy_score

from longtail.metrics import evaluate_predictions, inputs, per_class_table, wilson_interval

CLASSES = 8
COUNTS = torch.tensor([500, 300, 120, 100, 40, 20, 19, 2])
NAMES = [f"class {c}" for c in range(CLASSES)]


def random_case(seed=0, images=240):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, CLASSES, generator=generator)
    labels = torch.randint(0, CLASSES, (images,), generator=generator)
    logits[torch.arange(images), labels] += 1.5
    return logits, labels


def test_record_agrees_with_scikit_learn_and_loops():
    logits, labels = random_case()
    prior = COUNTS / COUNTS.sum()
    record = evaluate_predictions(logits, labels, COUNTS, prior)
    predictions = logits.argmax(1)
    recall = [float((predictions[labels == c] == c).double().mean()) for c in range(CLASSES)]
    assert record["test_images"] == 240
    assert record["classes"] == record["tested_classes"] == CLASSES
    assert record["top1"] == pytest.approx(float((predictions == labels).double().mean()), abs=1e-12)
    assert record["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5), abs=1e-12)
    expected = balanced_accuracy_score(labels, predictions)
    assert record["balanced_accuracy"] == pytest.approx(expected, abs=1e-12)
    assert record["macro_f1"] == pytest.approx(f1_score(labels, predictions, average="macro"), abs=1e-12)
    assert record["groups"]["many"]["accuracy"] == pytest.approx(sum(recall[:3]) / 3, abs=1e-12)
    assert record["groups"]["medium"]["accuracy"] == pytest.approx(sum(recall[3:6]) / 3, abs=1e-12)
    assert record["groups"]["few"]["accuracy"] == pytest.approx(sum(recall[6:]) / 2, abs=1e-12)
    assert record["group_edges"] == [100, 20]
    assert record["worst_class"] == {"class": recall.index(min(recall)), "accuracy": min(recall)}
    expected = CLASSES / sum(1 / max(r, record["harmonic_mean_floor"]) for r in recall)
    assert record["harmonic_mean"] == pytest.approx(expected, abs=1e-12)
    assert sum(row["count"] for row in record["reliability"]) == 240
    gaps = [r["count"] * abs(r["accuracy"] - r["confidence"]) for r in record["reliability"] if r["count"]]
    assert record["ece"] == pytest.approx(sum(gaps) / 240, abs=1e-12)
    shares = [n / 240 for n in Counter(labels.tolist()).values()]
    entropy = -sum(p * math.log2(p) for p in shares)
    assert record["label_entropy_bits"] == pytest.approx(entropy, abs=1e-12)
    assert record["mutual_information_bits"] < entropy
    for name in ("top1", "balanced_accuracy"):
        low, high = record["intervals"][name]
        assert low < record[name] < high
    for name in ("many", "medium", "few"):
        low, high = record["intervals"][name]
        assert low < record["groups"][name]["accuracy"] < high


def test_only_the_information_depends_on_the_prior():
    logits, labels = random_case()
    one = evaluate_predictions(logits, labels, COUNTS, COUNTS / COUNTS.sum())
    two = evaluate_predictions(logits, labels, COUNTS, torch.full((CLASSES,), 1 / CLASSES))
    assert one.pop("mutual_information_bits") != two.pop("mutual_information_bits")
    assert one == two


def test_the_seed_reaches_the_bootstrap_and_nothing_else():
    logits, labels = random_case()
    one, two = (evaluate_predictions(logits, labels, COUNTS, COUNTS, seed=seed) for seed in (0, 1))
    found = [record.pop("intervals") for record in (one, two)]
    assert found[0]["method"].endswith("seed 0")
    assert any(found[0][name] != found[1][name] for name in ("top1", "balanced_accuracy", "many"))
    assert one == two


def test_top5_needs_more_than_five_classes():
    logits, labels = torch.zeros(5, 5), torch.arange(5)
    assert evaluate_predictions(logits, labels, torch.ones(5), torch.ones(5))["top5"] is None


def test_same_input_gives_the_same_record_on_any_number_of_threads():
    logits, labels = random_case(3, images=40_000)
    threads = torch.get_num_threads()
    try:
        records = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            records.append(evaluate_predictions(logits, labels, COUNTS, COUNTS, seed=4))
    finally:
        torch.set_num_threads(threads)
    assert records[0] == records[1] == records[2]


def test_missing_classes_empty_groups_and_single_images_are_none_and_json():
    labels = torch.tensor([0, 0, 0, 2])
    logits = torch.tensor([[9.0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9]])
    record = evaluate_predictions(logits, labels, torch.tensor([500, 400, 3]), torch.tensor([0.6, 0.4, 0.0]))
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["top5"] is None
    assert record["tested_classes"] == 2
    assert record["groups"]["many"] == {"accuracy": 2 / 3, "classes": 2, "tested_classes": 1}
    assert record["groups"]["medium"]["accuracy"] is None
    assert record["groups"]["few"]["accuracy"] == 1.0
    assert record["intervals"]["medium"] is None
    assert record["intervals"]["few"] is None
    assert record["balanced_accuracy"] == pytest.approx(5 / 6, abs=1e-12)
    # The model gave class 2 no prior at all, so what its logits tell of it is undefined.
    assert record["mutual_information_bits"] is None
    rows = per_class_table(logits, labels, torch.tensor([500, 400, 3]), ["a", "b", "c"])
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert rows[0]["most_confused_with"] == "b"
    assert rows[1] == {
        "class": 1,
        "name": "b",
        "train_images": 400,
        "group": "many",
        "test_images": 0,
        "correct": 0,
        "accuracy": None,
        "low": 0.0,
        "high": 1.0,
        "mean_confidence": None,
        "most_confused_with": "",
        "confused_count": 0,
    }
    assert (rows[2]["test_images"], rows[2]["accuracy"]) == (1, 1.0)


def test_table_agrees_with_a_loop():
    logits, labels = random_case(1)
    predictions = logits.argmax(1)
    confidence = logits.double().softmax(1).amax(1)
    rows = per_class_table(logits, labels, COUNTS, NAMES)
    groups = ["many"] * 3 + ["medium"] * 3 + ["few"] * 2
    for c, row in enumerate(rows):
        of_class = labels == c
        found = predictions[of_class].tolist()
        wrong = Counter(p for p in found if p != c)
        confused = min((p for p in wrong if wrong[p] == max(wrong.values())), default=None)
        assert (row["class"], row["name"], row["group"]) == (c, NAMES[c], groups[c])
        assert (row["train_images"], row["test_images"]) == (int(COUNTS[c]), len(found))
        assert row["correct"] == found.count(c)
        assert row["accuracy"] == found.count(c) / len(found)
        assert (row["low"], row["high"]) == wilson_interval(found.count(c), len(found))
        assert row["mean_confidence"] == pytest.approx(float(confidence[of_class].mean()), abs=1e-12)
        assert row["most_confused_with"] == ("" if confused is None else NAMES[confused])
        assert row["confused_count"] == max(wrong.values(), default=0)


def test_most_confused_of_equals_is_the_first_class():
    logits = torch.eye(4)[[3, 1, 2, 3, 2]] * 5
    rows = per_class_table(logits, torch.tensor([0, 0, 0, 0, 0]), torch.ones(4), list("abcd"))
    assert (rows[0]["most_confused_with"], rows[0]["confused_count"]) == ("c", 2)


def test_ties_go_to_the_first_class():
    record = evaluate_predictions(torch.zeros(6, 6), torch.arange(6), torch.ones(6), torch.ones(6))
    assert record["top1"] == 1 / 6
    assert record["top5"] == 5 / 6


@pytest.mark.parametrize(("classes", "images"), [(8142, 1500), (100_000, 40)])
def test_thousands_of_classes_are_fast(classes, images):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(images, classes, generator=generator)
    labels = torch.randint(0, classes, (images,), generator=generator)
    logits[torch.arange(images // 2), labels[: images // 2]] += 30
    counts = torch.linspace(1000, 1, classes).long()
    start = time.process_time()
    record = evaluate_predictions(logits, labels, counts, counts / counts.sum())
    rows = per_class_table(logits, labels, counts, [str(c) for c in range(classes)])
    # About 1 s of one core; a C x C matrix or a loop over classes and images would take minutes or 80 GB.
    assert time.process_time() - start < 20
    assert 0.5 <= record["top1"] < 0.51
    assert len(rows) == classes
    assert sum(row["correct"] for row in rows) == round(record["top1"] * images)
    assert record["tested_classes"] == len(set(labels.tolist()))


def test_bad_input_is_named(monkeypatch):
    logits, labels = random_case(images=4)
    ones = torch.ones(CLASSES)
    with pytest.raises(ValueError, match="empty"):
        evaluate_predictions(logits[:0], labels[:0], ones, ones)
    with pytest.raises(ValueError, match="4 rows of logits for 3 labels"):
        evaluate_predictions(logits, labels[:3], ones, ones)
    with pytest.raises(ValueError, match="labels hold 8"):
        evaluate_predictions(logits, labels + 8 - labels, ones, ones)
    with pytest.raises(ValueError, match=r"class_counts must have the shape \[8\], got \[7\]"):
        evaluate_predictions(logits, labels, ones[:7], ones)
    with pytest.raises(ValueError, match=r"logit_prior must have the shape \[8\], got \[9\]"):
        evaluate_predictions(logits, labels, ones, torch.ones(9))
    with pytest.raises(ValueError, match=r"shape \[N, C\]"):
        evaluate_predictions(logits[0], labels, ones, ones)
    with pytest.raises(ValueError, match="2 class names for 8 classes"):
        per_class_table(logits, labels, ones, ["a", "b"])
    logits[2, 5] = math.inf
    monkeypatch.setattr(inputs, "BLOCK_NUMBERS", CLASSES)
    with pytest.raises(ValueError, match="test image 2 hold a value that is not finite"):
        evaluate_predictions(logits, labels, ones, ones)
