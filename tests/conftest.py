"""Small data and options that several tests train on."""

import pytest
import torch

from longtail.config import replace_options
from longtail.data import DataSplits, ImageSet
from longtail.options import make_config
from longtail.training.defaults import resolve


@pytest.fixture(scope="session")
def tiny_splits():
    """Three classes of noisy 8x8 bars, 24/9/2 training images and 10 test images a class: seconds to train."""
    generator = torch.Generator().manual_seed(0)

    def images(counts):
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        pixels = torch.randint(0, 120, (len(labels), 1, 8, 8), generator=generator)
        for index, label in enumerate(labels.tolist()):
            pixels[index, 0, :, 2 * label : 2 * label + 2] += 130
        return ImageSet(pixels.to(torch.uint8), labels, ("left", "middle", "right"))

    return DataSplits("bars", images([24, 9, 2]), images([10, 10, 10]), (0.4,), (0.25,), "tiny")


@pytest.fixture
def tiny_config(tiny_splits):
    """Return a function from changed options to the resolved options of a run on ``tiny_splits``."""

    def build(**changes):
        options = {
            "data": "bars",
            "epochs": 2,
            "batch_size": 8,
            "device": "cpu",
            "queue.capacity": 24,
            "checkpoint.every_seconds": 0.0,
        }
        options |= {key.replace("__", "."): value for key, value in changes.items()}
        return replace_options(resolve(make_config(options), tiny_splits)[0], {"out": "unused"})

    return build
