"""Small models of every kind, and a run folder with all its records."""

import json
from dataclasses import asdict

import pytest
import torch
import yaml

from longtail.config import TrainConfig, replace_options
from longtail.data.image_set import Framing
from longtail.models import build_classifier
from longtail.training.evaluation import summarise, write_evaluation

NAMES = ("cat", "lynx | *big*", "<script>alert(1)</script>")
COUNTS = [150, 40, 3]


def build(encoder="small_net", channels=3, side=32, head="cosine", resize=None, interpolation="bilinear", seed=0):
    """Return a classifier with random weights whose BatchNorm statistics are not the neutral ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        framing = Framing((side, side), resize or side, interpolation)
        spec = {"encoder": encoder, "in_channels": channels, "head": head, "scale": 30.0}
        prior = torch.tensor(COUNTS) if head == "linear" else torch.ones(len(COUNTS))
        model = build_classifier(
            spec, NAMES, torch.tensor(COUNTS), prior, [0.4, 0.5, 0.45][:channels], [0.2, 0.25, 0.3][:channels], framing
        )
        for name, buffer in model.encoder.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="session")
def build_model():
    """Return ``build``."""
    return build


@pytest.fixture
def model():
    """A classifier of 16 x 16 pixels, three classes."""
    return build(side=16, resize=20, interpolation="bicubic")


@pytest.fixture
def run(tmp_path, model):
    """A finished run folder of that model."""
    folder = tmp_path / "run"
    model.save(folder)
    config = replace_options(TrainConfig(data="photos/site_1", method="gml", seed=3), {"epochs": 7})
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))
    labels = torch.tensor([0] * 30 + [1] * 12)
    logits = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(0))
    logits[torch.arange(len(labels)), labels] += 1.5
    write_evaluation(folder, summarise(logits, labels, torch.tensor(COUNTS), torch.full((3,), 1 / 3), NAMES))
    data = {"test_split": "given", "train_images": 193, "test_images": 42, "notes": ["a note with _underscores_"]}
    (folder / "data.json").write_text(json.dumps(data))
    environment = {"versions": {"torch": "2.15.0"}, "hardware": {"device": "cpu"}, "seconds": {"student": 90.0}}
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


@pytest.fixture
def calibrated(run):
    """The same run with a temperature."""
    record = {"temperature": 1.7, "images": 20, "nll": [1.2, 1.0], "ece": [0.21, 0.08]}
    (run / "calibration.json").write_text(json.dumps(record))
    return run
