"""A few numbers an image instead of all logits: against torch and loops, in any parts, and never all at once."""

import math

import pytest
import torch

from longtail.metrics import (
    evaluate_predictions,
    inputs,
    mutual_information_bits,
    per_class_table,
    predict_with_confidence,
    topk_accuracy,
)
from longtail.metrics.per_image import summarise_logits
from longtail.metrics.summary import class_rows, figures_of

CLASSES = 9
COUNTS = torch.tensor([500, 300, 120, 100, 40, 20, 19, 2, 1])
PRIOR = COUNTS.double() / COUNTS.sum()


def case(images=60):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(images, CLASSES, generator=generator).mul(4).round().div(4)  # with ties
    labels = torch.randint(0, CLASSES - 1, (images,), generator=generator)  # the last class does not occur
    return logits, labels


def test_each_number_is_what_torch_and_a_loop_say():
    logits, labels = case()
    seen = summarise_logits(torch.split(logits, 7), labels, PRIOR)
    assert torch.equal(seen.predictions, logits.argmax(1))
    assert torch.allclose(seen.confidence, logits.double().softmax(1).max(1).values, atol=1e-14)
    for index, (row, label) in enumerate(zip(logits.tolist(), labels.tolist(), strict=True)):
        order = sorted(range(CLASSES), key=lambda c: (-row[c], c))
        assert seen.rank[index] == order.index(label)
    shares = torch.bincount(labels, minlength=CLASSES).double() / len(labels)
    posterior = (logits.double() - PRIOR.log() + shares.log()).log_softmax(1)
    assert torch.allclose(seen.log_likelihood, posterior[torch.arange(len(labels)), labels], atol=1e-12)


@pytest.mark.parametrize("size", [1, 7, 60])
def test_parts_and_blocks_change_no_bit(monkeypatch, size):
    logits, labels = case()
    whole = summarise_logits([logits], labels, PRIOR)
    monkeypatch.setattr(inputs, "BLOCK_NUMBERS", 3 * CLASSES)
    parts = summarise_logits(iter(torch.split(logits, size)), labels, PRIOR)
    for name in ("predictions", "confidence", "rank", "log_likelihood"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name


def test_figures_are_those_of_the_functions_that_take_all_logits():
    logits, labels = case()
    names = [f"class {c}" for c in range(CLASSES)]
    seen = summarise_logits(torch.split(logits, 11), labels, PRIOR)
    figures = figures_of(seen, COUNTS)
    assert figures == evaluate_predictions(logits, labels, COUNTS, PRIOR)
    assert figures["top5"] == topk_accuracy(logits, labels, 5)
    assert figures["mutual_information_bits"] == pytest.approx(
        mutual_information_bits(logits, labels, PRIOR), abs=1e-12
    )
    rows = class_rows(seen, COUNTS, names)
    assert rows == per_class_table(logits, labels, COUNTS, names)
    confidence = predict_with_confidence(logits)[1]
    assert rows[0]["mean_confidence"] == pytest.approx(float(confidence[labels == 0].mean()), abs=1e-12)


def test_no_information_without_a_prior_of_a_class_that_occurs():
    logits, labels = case()
    gone = PRIOR.clone()
    gone[int(labels[0])] = 0
    assert summarise_logits([logits], labels, gone).log_likelihood is None
    unseen = PRIOR.clone()
    unseen[CLASSES - 1] = 0  # does not occur: no matter
    found = summarise_logits([logits], labels, unseen).log_likelihood
    assert torch.equal(found, summarise_logits([logits], labels, PRIOR).log_likelihood)


def test_the_logits_given_stay_as_they_are():
    logits, labels = case()
    given = logits.double()
    summarise_logits([given], labels, PRIOR)
    assert torch.equal(given, logits.double())


def test_bad_parts_are_told():
    logits, labels = case()
    with pytest.raises(ValueError, match="59 rows of logits for 60 labels"):
        summarise_logits([logits[:59]], labels, PRIOR)
    with pytest.raises(ValueError, match=r"\[2, 9\] do not fit 60 labels of 9"):
        summarise_logits([logits, logits[:2]], labels, PRIOR)
    with pytest.raises(ValueError, match=r"\[60, 8\] do not fit"):
        summarise_logits([logits[:, :8]], labels, PRIOR)
    broken = logits.clone()
    broken[41, 3] = math.nan
    with pytest.raises(ValueError, match="test image 41"):  # counted from the first part's first
        summarise_logits(torch.split(broken, 20), labels, PRIOR)
