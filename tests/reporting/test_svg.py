"""Tick labels of charts."""

from longtail.reporting.svg import number, told_apart


def test_ticks_close_together_are_told_apart():
    assert told_apart([0.1, 0.2], number) == ["0.1", "0.2"]
    values = [0.10052, 0.10054, 0.10056]
    assert len({number(value) for value in values}) < 3
    assert told_apart(values, number) == ["0.10052", "0.10054", "0.10056"]
