"""The course of a figure, against plain means over the steps."""

import random

import pytest

from longtail.training.trend import Trend


def followed(values, epoch, every):
    """Read running means over ``values`` as the loop does: now and then, and at each epoch's end."""
    trend, draw = Trend(), random.Random(0)
    for start in range(0, len(values), epoch):
        part = values[start : start + epoch]
        for steps in range(1, len(part) + 1):
            if steps == len(part) or draw.random() < 1 / every:
                trend.read(steps, sum(part[:steps]) / steps)
        trend.end_epoch()
    return trend


@pytest.mark.parametrize(("epoch", "every"), [(1, 1), (10, 3), (10, 100), (3000, 7), (64, 1)])
def test_stretches_hold_every_step_once(epoch, every):
    draw = random.Random(1)
    values = [draw.gauss(3, 1) for _ in range(6000)]
    trend = followed(values, epoch, every)
    assert 2 <= len(trend.points) <= 64
    done = 0
    for steps, mean in trend.points:
        assert mean == pytest.approx(sum(values[done : done + steps]) / steps, abs=1e-9)
        done += steps
    assert done == len(values)


def test_stretches_are_of_equal_length_where_readings_are():
    trend = followed([0.0] * 1000, 10, 10**9)  # one reading an epoch
    lengths = [steps for steps, _ in trend.points]
    assert len(set(lengths[:-1])) == 1
    assert lengths[-1] <= lengths[0]


def test_a_reading_without_new_steps_changes_nothing():
    trend = Trend()
    trend.read(5, 2.0)
    trend.read(5, 7.0)
    assert trend.points == [(5, 2.0)]


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([5, 4, 3, 2, 1, 0, -1, -2], "falling"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "rising"),
        ([9, 5, 2, 1, 1, 1, 1, 1], "level"),
        ([1] * 8, "level"),
        ([9, 1, 5, 5, 5, 5, 5.3, 5.4], "level"),
        ([9, 1, 5, 5, 5, 5, 5.5, 5.5], "rising"),
        ([1, 2, 3, 4, 5, 6, 7], ""),
        ([], ""),
    ],
)
def test_word(values, word):
    trend = Trend()
    for value in values:
        trend.read(1, value)
        trend.end_epoch()
    assert trend.word() == word


def test_bars_run_from_the_lowest_to_the_highest():
    trend = Trend()
    for value in range(8):
        trend.read(1, value / 7)
        trend.end_epoch()
    assert trend.bars(20) == "▁▂▃▄▅▆▇█"
    assert trend.bars(4) == "▁▃▆█"  # means of pairs: 0.5, 2.5, 4.5 and 6.5 of 7
    assert trend.bars(1) == trend.bars(0) == trend.bars(-3) == Trend().bars(20) == ""


def test_bars_of_a_constant():
    trend = Trend()
    for _ in range(3):
        trend.read(1, 2.5)
        trend.end_epoch()
    assert trend.bars(10) == "▁▁▁"
