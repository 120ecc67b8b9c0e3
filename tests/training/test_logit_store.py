"""Many logits lie in a file: the same figures, a file that nobody sees, and a disk that is full is told."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from longtail.data import ImageSet
from longtail.data.image_set import Framing
from longtail.errors import UserError
from longtail.models import build_classifier
from longtail.training import evaluation, logit_store


def test_large_logits_lie_in_a_file_without_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(logit_store, "IN_MEMORY", 100)
    assert logit_store.logit_store(5, 5).shape == (5, 5)
    kept = logit_store.logit_store(20, 7, tmp_path)
    assert kept.shape == (20, 7)
    assert kept.dtype == torch.float32
    assert list(tmp_path.iterdir()) == []
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path) in maps.read_text()  # it is that folder's disk
    values = torch.randn(20, 7)
    kept.copy_(values)
    assert torch.equal(kept, values)


def test_an_evaluation_is_the_same_from_memory_and_from_disk(tmp_path, monkeypatch):
    torch.manual_seed(0)
    names = [str(k) for k in range(7)]
    spec = {"encoder": "small_net", "in_channels": 1, "head": "cosine"}
    model = build_classifier(
        spec, names, torch.arange(7) * 20 + 1, torch.full((7,), 1 / 7), [0.5], [0.25], Framing((8, 8), 8)
    )
    pixels = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(50) % 7, tuple(names))
    monkeypatch.setattr(evaluation, "_RESIDENT_BATCH", 16)
    in_memory = evaluation.evaluate_classifier(model, images, torch.device("cpu"))
    monkeypatch.setattr(logit_store, "IN_MEMORY", 0)
    on_disk = evaluation.evaluate_classifier(model, images, torch.device("cpu"), scratch=tmp_path)
    assert in_memory.figures == on_disk.figures
    assert in_memory.rows == on_disk.rows
    assert torch.equal(in_memory.logits, on_disk.logits)
    assert torch.equal(on_disk.predictions, on_disk.logits.argmax(1))
    again = evaluation.summarise(
        on_disk.logits, images.labels, model.class_counts, model.logit_prior, names, evaluation.GROUP_EDGES
    )
    assert again.figures == on_disk.figures


def test_a_full_disk_is_told_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(logit_store, "IN_MEMORY", 0)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fake = SimpleNamespace(**{name: getattr(os, name) for name in ("access", "W_OK", "close", "unlink")})
    monkeypatch.setattr(logit_store, "os", SimpleNamespace(**vars(fake), posix_fallocate=full))
    with pytest.raises(UserError, match=r"25000 images and 100000 classes need 9\.3 GiB .*No space left.*make room"):
        logit_store.logit_store(25000, 100000, tmp_path)
    assert list(tmp_path.iterdir()) == []
