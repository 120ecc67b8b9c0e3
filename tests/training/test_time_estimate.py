"""The expected time is the timed steps multiplied out; nothing that it does is left behind."""

import os

import pytest
import torch

from longtail.data import load_data
from longtail.options import make_config
from longtail.training import time_estimate
from longtail.training.defaults import resolve
from longtail.training.time_estimate import estimate_time

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def ten_steps_a_second(monkeypatch):
    """Steps that take what the clock of this test says: 0.1 s for 8 images, in proportion."""
    monkeypatch.setattr(
        time_estimate, "_steps", lambda m, c, loader, d: iter([0.0125 * loader.batch_size] * 30), raising=True
    )


def test_steps_and_queue_are_multiplied_out(tiny_splits, tiny_config, ten_steps_a_second):
    config = tiny_config(epochs=3, batch_size=8)
    teacher, student = estimate_time(config, tiny_splits)
    per_epoch = 35 // 8
    assert (teacher.name, teacher.steps, teacher.timed_batch) == ("teacher", 3 * per_epoch, 8)
    assert teacher.seconds == pytest.approx(3 * per_epoch * 0.1)
    # A slot of the queue costs a forward pass of one image: a third of an eighth of a step.
    assert student.seconds == pytest.approx(3 * per_epoch * 0.1 + 24 * 0.1 / 8 / 3)


def test_a_large_batch_is_timed_with_a_part_of_it(tiny_splits, tiny_config, monkeypatch):
    """A step of 4 images takes 2 s: one of 32 would take 16 s, of which a budget of 20 s has no room for three."""
    monkeypatch.setattr(time_estimate, "_steps", lambda m, c, loader, d: iter([0.5 * loader.batch_size] * 30))
    (stage,) = estimate_time(tiny_config(method="cross_entropy", batch_size=32), tiny_splits, budget=20.0)
    assert stage.timed_batch < 32
    assert stage.seconds == pytest.approx(2 * 16.0)


@pytest.mark.parametrize("method", ["tau_norm", "ncm"])
def test_a_stage_without_steps_costs_what_it_looks_at(
    method, tiny_splits, tiny_config, ten_steps_a_second, monkeypatch
):
    """Nearest class means are fitted on the features of every image; rescaled weights on none."""
    monkeypatch.setattr(time_estimate, "_forward_seconds", lambda *_: (0.01, 8))
    first, last = estimate_time(tiny_config(method=method, epochs=3), tiny_splits)
    assert (first.name, first.seconds) == ("representation", pytest.approx(3 * 4 * 0.1))
    assert (last.name, last.epochs, last.steps, last.timed_steps) == ("classifier", 0, 0, 0)
    assert last.seconds == pytest.approx(35 * 0.01 if method == "ncm" else 0.0)
    monkeypatch.undo()
    assert (estimate_time(tiny_config(method=method), tiny_splits, budget=0.5)[-1].seconds > 0) == (method == "ncm")


def test_real_steps_are_timed_and_leave_nothing(tiny_splits, tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    stages = estimate_time(tiny_config(), tiny_splits, budget=1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [stage.timed_steps >= 1 for stage in stages] == [True, True]
    assert all(stage.seconds > 0 for stage in stages)
    assert not list(tmp_path.iterdir())


def test_files_that_are_streamed_are_decoded_for_a_moment(make_photos, tmp_path, ten_steps_a_second, monkeypatch):
    """On the CPU decoding and computing share the cores, so their times add up."""
    make_photos(tmp_path / "photos", {"ant": 12, "bee": 8})
    config = make_config(
        {"data": str(tmp_path / "photos"), "method": "cross_entropy", "epochs": 2, "batch_size": 8, "device": "cpu"}
        | {"backbone": "small_net", "image_size": 16, "loading.resident": False}
    )
    splits = load_data(config.data)
    config, _ = resolve(config, splits)
    monkeypatch.setattr(time_estimate, "default_workers", lambda device: 2)
    monkeypatch.setattr(time_estimate, "_decoding_seconds", lambda config, train, views: 0.5)
    (stage,) = estimate_time(config, splits)
    steps = 2 * (len(splits.train) // 8)
    assert stage.seconds == pytest.approx(steps * (0.1 + 8 * 0.5 / 2))
    monkeypatch.undo()
    (stage,) = estimate_time(config, splits, budget=0.5)  # decodes in earnest
    assert stage.seconds > 0


def test_other_programs_are_noticed(tmp_path, monkeypatch):
    """Of 400 ticks on all processors 300 were worked, and half a second of it was ours."""
    stat, tick = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    own = iter([(1.0, 0.0, 0.0, 0.0, 0.0), (1.25, 0.25, 0.0, 0.0, 0.0)])
    monkeypatch.setattr(time_estimate, "_STAT", stat)
    monkeypatch.setattr(time_estimate.os, "times", lambda: next(own))
    stat.write_text(f"cpu  {10 * tick} 0 0 {20 * tick} 0 0 0 0 0 0\ncpu0 0 0 0 0\n")
    others = time_estimate.OtherPrograms()
    stat.write_text(f"cpu  {11 * tick} 0 {tick} {20 * tick + tick // 2} {tick // 2} {tick} 0 0 0 0\n")
    assert others.share() == pytest.approx((3 - 0.5) / 4)


def test_a_system_that_does_not_say_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(time_estimate, "_STAT", tmp_path / "nothing")
    assert time_estimate.OtherPrograms().share() is None
