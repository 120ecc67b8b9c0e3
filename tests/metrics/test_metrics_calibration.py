"""Calibration error against a loop over bins, and on data whose calibration is known."""

import pytest
import torch

from longtail.metrics import (
    class_calibration_error,
    expected_calibration_error,
    inputs,
    predict_with_confidence,
    reliability,
)


def slow_bins(confidence, correct, bins):
    """Sort images into (low, high] one by one; yields (confidences, hits) of each bin."""
    table = [([], []) for _ in range(bins)]
    for value, hit in zip(confidence, correct, strict=True):
        for b in range(bins):
            if b / bins < value <= (b + 1) / bins or (b == 0 and value == 0):
                table[b][0].append(value)
                table[b][1].append(hit)
    return table


def slow_error(confidence, correct, bins):
    error = 0.0
    for values, hits in slow_bins(confidence, correct, bins):
        if values:
            error += len(values) / len(confidence) * abs(sum(hits) / len(hits) - sum(values) / len(values))
    return error


def random_case(seed, images=400):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(images, generator=generator, dtype=torch.float64)
    correct = torch.rand(images, generator=generator) < 0.6
    labels = (torch.rand(images, generator=generator) ** 2 * 9).long()
    confidence[:16] = torch.arange(16, dtype=torch.float64) / 15  # every edge, 0 and 1 included
    return confidence, correct, labels


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_error_agrees_with_a_loop(bins):
    confidence, correct, _ = random_case(bins)
    expected = slow_error(confidence.tolist(), correct.tolist(), bins)
    assert expected_calibration_error(confidence, correct, bins) == pytest.approx(expected, abs=1e-12)


def test_class_error_is_the_mean_over_classes_of_the_error_on_their_images():
    confidence, correct, labels = random_case(7)
    labels[labels == 3] = 4
    labels[labels == 8] = 7
    labels[0] = 8  # one image
    errors = [
        slow_error(confidence[labels == c].tolist(), correct[labels == c].tolist(), 15)
        for c in sorted(set(labels.tolist()))
    ]
    expected = sum(errors) / len(errors)
    assert len(errors) == 8
    assert class_calibration_error(confidence, correct, labels, 11) == pytest.approx(expected, abs=1e-12)


def test_reliability_table_agrees_with_a_loop():
    confidence, correct, _ = random_case(9)
    confidence = confidence / 2  # the upper bins stay empty
    table = reliability(confidence, correct)
    slow = slow_bins(confidence.tolist(), correct.tolist(), 15)
    assert sum(row["count"] for row in table) == len(confidence)
    for position, (row, (values, hits)) in enumerate(zip(table, slow, strict=True)):
        assert (row["low"], row["high"]) == (position / 15, (position + 1) / 15)
        assert row["count"] == len(values)
        if values:
            assert row["confidence"] == pytest.approx(sum(values) / len(values), abs=1e-12)
            assert row["accuracy"] == pytest.approx(sum(hits) / len(hits), abs=1e-12)
        else:
            assert row["confidence"] is None
            assert row["accuracy"] is None


def test_known_calibration():
    always = torch.ones(10, dtype=torch.bool)
    assert expected_calibration_error(torch.ones(10), always) == 0.0
    assert expected_calibration_error(torch.ones(10), ~always) == 1.0
    # Right 7 times in 10 at confidence 0.9.
    correct = torch.arange(10) < 7
    assert expected_calibration_error(torch.full((10,), 0.9, dtype=torch.float64), correct) == pytest.approx(
        0.2, abs=1e-12
    )
    # A class that is always over-confident weighs half, whatever its share of the images.
    labels = torch.tensor([0] * 99 + [1])
    correct = labels == 0
    assert class_calibration_error(torch.ones(100), correct, labels, 2) == 0.5
    assert expected_calibration_error(torch.ones(100), correct) == pytest.approx(0.01, abs=1e-12)


def test_confidence_is_the_softmax_of_the_first_maximum(monkeypatch):
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * 20
    logits[0] = 0
    logits[1] = 1000.0
    logits[1, 3] = -1000.0
    expected, predictions = logits.double().softmax(1).max(1)
    monkeypatch.setattr(inputs, "BLOCK_NUMBERS", 30)
    found, confidence = predict_with_confidence(logits)
    assert torch.equal(found[2:], predictions[2:])
    assert found[:2].tolist() == [0, 0]
    torch.testing.assert_close(confidence, expected, rtol=1e-12, atol=0)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"confidence must lie in 0\.\.1"):
        expected_calibration_error(torch.tensor([1.5]), torch.tensor([True]))
    with pytest.raises(ValueError, match="correct must be boolean"):
        expected_calibration_error(torch.tensor([0.5]), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"got \[2\] and \[1\]"):
        reliability(torch.tensor([0.5, 0.5]), torch.tensor([True]))
    with pytest.raises(ValueError, match="1 confidences for 2 labels"):
        class_calibration_error(torch.tensor([0.5]), torch.tensor([True]), torch.tensor([0, 1]), 2)
    with pytest.raises(ValueError, match="logits of test image 1 hold a value that is not finite"):
        predict_with_confidence(torch.tensor([[0.0, 1.0], [0.0, float("nan")]]))
