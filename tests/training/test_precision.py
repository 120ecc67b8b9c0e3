"""The faster precision is the one that was timed to be faster, by a margin."""

import math

import pytest
import torch

from longtail.config import replace_options
from longtail.training.defaults import resolve
from longtail.training.precision import faster_precision, time_encoder


@pytest.mark.parametrize(
    ("float32", "bfloat16", "wanted"), [(2.0, 1.0, "bfloat16"), (1.0, 0.95, "float32"), (1.0, math.inf, "float32")]
)
def test_the_faster_one_is_taken_if_it_is_worth_it(float32, bfloat16, wanted):
    asked = []

    def seconds(low):
        asked.append(low)
        if len(asked) <= 2:  # the first time of each is not what it will be
            return 100.0 if bfloat16 < math.inf else (bfloat16 if low else 100.0)
        return bfloat16 if low else float32

    precision, gain = faster_precision(seconds)
    assert precision == wanted
    assert gain == pytest.approx(float32 / bfloat16)


def test_an_encoder_is_timed_in_both_and_torch_draws_go_on_as_before():
    before = torch.get_rng_state()
    seconds = time_encoder("small_net", 1, (8, 8), 4, torch.device("cpu"))
    assert 0 < seconds(False) < 60
    assert 0 < seconds(True) < 60
    assert torch.equal(torch.get_rng_state(), before)


def test_fastest_is_resolved_and_told(tiny_config, tiny_splits, monkeypatch):
    monkeypatch.setattr("longtail.training.defaults.faster_precision", lambda seconds: ("bfloat16", 1.9))
    config, notes = resolve(replace_options(tiny_config(), {"precision": "fastest"}), tiny_splits)
    assert config.precision == "bfloat16"
    assert "bfloat16 is 1.9 times as fast as float32 here; precision bfloat16 is used." in notes
    assert tiny_config().precision == "float32"
