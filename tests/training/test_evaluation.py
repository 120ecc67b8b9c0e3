"""What an evaluation keeps of its test set, also where the logits are too large to keep."""

from pathlib import Path

import pytest
import torch

from longtail.errors import UserError
from longtail.files import load_tensors, save_tensors
from longtail.training import evaluation
from longtail.training.evaluation import load_predictions, summarise, write_evaluation
from longtail.training.held_out import held_out
from longtail.training.progress import ProgressReporter

pytestmark = pytest.mark.usefixtures("one_thread")


def test_predicted_classes_are_kept_and_logits_where_they_are_small_or_asked_for(tmp_path, monkeypatch):
    logits = torch.tensor([[2.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.5, 3.0], [0.0, 4.0, 3.0]])
    labels = torch.tensor([0, 1, 2, 0])
    evaluated = summarise(logits, labels, torch.tensor([9, 5, 2]), torch.full((3,), 1 / 3), ["a", "b", "c"])
    for most, asked, kept in ((2**28, False, True), (47, False, False), (48, False, True), (47, True, True)):
        monkeypatch.setattr(evaluation, "MOST_BYTES", most)
        write_evaluation(tmp_path, evaluated, keep_logits=asked)
        tensors, _ = load_tensors(tmp_path, "predictions")
        assert tensors["predicted"].dtype == torch.int32
        assert tensors["predicted"].tolist() == [0, 0, 2, 1]  # of equal logits the first wins
        assert torch.equal(tensors["labels"], labels)
        assert ("logits" in tensors) == kept, (most, asked)


def test_logits_that_were_not_kept_are_computed_again(desk, make_photos, monkeypatch):
    make_photos(Path("photos"), {"ant": 8, "bee": 6, "cat": 5})
    words = "--method cross_entropy --epochs 1 --backbone small_net --image_size 16 --batch_size 4 --device cpu --quiet"
    desk.run("train", "photos", *words.split(), "--loading.workers", "0", "--out", "run")
    logits, labels = load_predictions(Path("run"))
    monkeypatch.setattr(evaluation, "MOST_BYTES", 0)
    desk.run("evaluate", "run", "--device", "cpu", "--quiet")
    tensors, meta = load_tensors(Path("run"), "predictions")
    assert "logits" not in tensors
    again = held_out(Path("run"), "photos", None, ProgressReporter(True))
    assert torch.allclose(again.logits, logits, atol=1e-5)
    assert torch.equal(again.labels, labels)
    save_tensors(Path("run"), "predictions", tensors | {"labels": labels.flip(0)}, meta)
    with pytest.raises(UserError, match="not what the run"):
        held_out(Path("run"), "photos", None, ProgressReporter(True))
