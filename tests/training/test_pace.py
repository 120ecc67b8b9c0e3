"""Speed and time left, against sums done by hand on a clock that the test moves."""

import pytest

from longtail.training.pace import Pace, PlannedStage, clock


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0:00"),
        (-3, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (600, "10:00"),
        (3599.7, "1:00:00"),
        (90061, "25:01:01"),
    ],
)
def test_clock(seconds, shown):
    assert clock(seconds) == shown


def test_before_the_first_step_nothing_is_claimed():
    pace = Pace(total=100, done=0, now=5.0)
    assert (pace.steps_per_second(), pace.left(), pace.run_left([PlannedStage("train", 10)], 0)) == (None, None, None)


def test_left_is_the_mean_time_of_a_step_times_the_steps_that_remain():
    pace = Pace(total=100, done=20, now=5.0)  # 20 steps were taken before a resume: their time is not known
    pace.step(30, 9.0)
    assert pace.seconds_per_step() == pytest.approx(0.4)
    assert pace.left() == pytest.approx(0.4 * 70)
    pace.step(100, 33.0)
    assert pace.left() == 0


def test_speed_is_of_the_last_seconds_and_without_evaluations():
    pace = Pace(total=10**6, done=0, now=0.0)
    now, done = 0.0, 0
    for steps, seconds in [(10, 100)] * 5 + [(40, 10)] * 5:  # 0.1 steps a second, then 4
        for _ in range(10):
            now, done = now + seconds / 10, done + steps // 10
            pace.step(done, now)
            speed = pace.steps_per_second()
        now += 1000
        pace.rest(now)
    assert speed == pytest.approx(4.0)
    assert pace.seconds_per_step() == pytest.approx(now / done)  # but they count for the time left


def test_no_time_at_all_is_no_speed():
    pace = Pace(total=10, done=0, now=0.0)
    pace.step(3, 0.0)
    assert pace.steps_per_second() is None
    assert pace.left() == 0


def test_the_run_is_this_stage_the_later_ones_and_the_runs_after_it():
    """5 epochs of 10 steps at 2 s: a unit of work takes 20 s."""
    plan = [PlannedStage("teacher", 5, 1.0), PlannedStage("student", 6, 2.5)]
    pace = Pace(total=50, done=0, now=0.0)
    pace.step(30, 60.0)
    assert pace.left() == pytest.approx(40)
    assert pace.run_left(plan, 0) == pytest.approx(40 + 20 * 15)
    assert pace.run_left(plan, 0, more_runs=2) == pytest.approx(40 + 20 * 15 + 2 * 20 * 20)
    student = Pace(total=60, done=0, now=0.0)
    student.step(30, 150.0)  # 50 s an epoch = 20 s a unit
    assert student.run_left(plan, 1) == pytest.approx(150)
    assert student.run_left(plan, 1, more_runs=1) == pytest.approx(150 + 20 * 20)
