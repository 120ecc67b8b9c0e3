"""What the panel says, and that it fits terminals of every size."""

import pytest
from rich.cells import cell_len

from longtail.training.panel import StageView, panel_lines, plain_line, shortened, split_looks
from longtail.training.trend import Trend

FIGURES = {"classifier": 1.23456, "gml": 2.5, "distillation": 0.03, "temperature": 0.0817, "bits": -0.25}


def view(**changes):
    trends = {}
    for name, value in FIGURES.items():
        trends[name] = Trend()
        for epoch in range(12):
            trends[name].read(1, value * (20 - epoch))
            trends[name].end_epoch()
    state = {
        "run": "runs/photos/gml",
        "stage": "student",
        "place": "stage 2 of 2",
        "epochs": 60,
        "steps": 120,
        "report": "runs/photos/gml/report.html",
        "epoch": 7,
        "step": 34,
        "done": (6 * 120 + 34) / 7200,
        "figures": FIGURES,
        "trends": trends,
        "looks": {"val": (6, {"val_balanced_accuracy": 0.612, "val_top1": 0.7004}), "test": (5, {"test_top1": 0.5})},
        "best": (0.63, 3),
        "learning_rate": 0.0421,
        "speed": 1234.4,
        "elapsed": 65.0,
        "left": 125.0,
        "run_left": 3700.0,
    }
    return StageView(**state | changes)


def shown(*args, **kwargs):
    return [line.plain for line in panel_lines(*args, **kwargs)]


def test_everything_is_said_at_80_columns():
    lines = shown(view(), 79, 24)
    text = "\n".join(lines)
    for part in (
        "runs/photos/gml   student, stage 2 of 2",
        "epoch 7/60 ",
        "step 34/120 ",
        "10%",
        "28%",
        "1.235",
        "2.5",
        "0.0817",
        "-0.25",
        "falling",
        "rising",  # bits: from below
        "█▇",
        "validation (epoch 6) balanced accuracy 61.2 %   top-1 70.0 %\nbest balanced 63.0 % at epoch 3",
        "test (epoch 5) top-1 50.0 %",
        "1:05 gone, 2:05 left",
        "whole run about 1:01:40",
        "1234 images/s",
        "learning rate 0.0421",
        "report at the end: runs/photos/gml/report.html",
    ):
        assert part in text, f"{part!r} not in\n{text}"
    assert len(lines) <= 16


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("height", [1, 2, 5, 9, 12, 24, 60])
@pytest.mark.parametrize("width", [1, 5, 12, 20, 39, 40, 79, 80, 200])
def test_it_fits_every_size(width, height, ascii_only):
    for changes in (
        {},
        {"run": "写真/" * 40, "report": "写真/" * 40 + "report.html", "note": "evaluating"},
        {"looks": {}},
    ):
        lines = panel_lines(view(**changes), width, height, ascii_only)
        assert 1 <= len(lines) <= height
        assert max(cell_len(line.plain) for line in lines) <= width
        if ascii_only and not changes:
            assert all(line.plain.isascii() for line in lines)


def test_at_40_columns_the_figures_keep_their_values_and_the_path_its_end():
    lines = shown(view(report="/home/me/experiments/runs/photos/gml/report.html"), 39, 24)
    assert any(line.startswith("classifier") and "1.235" in line and "falling" in line for line in lines)
    assert lines[-1].startswith("report at the end: …")
    assert lines[-1].endswith("gml/report.html")


def test_on_a_low_terminal_the_figures_share_lines():
    lines = shown(view(looks={}), 79, 7)
    assert any("classifier 1.235   gml 2.5" in line for line in lines)
    lines = shown(view(), 79, 3)
    assert lines[0].endswith("stage 2 of 2")
    assert lines[1].startswith("epoch 7/60")
    assert lines[2].startswith("1:05 gone, 2:05 left")


def test_bars_show_the_share_without_colour():
    (epoch, step) = shown(view(done=0.5, step=30), 79, 24)[1:3]
    assert epoch.count("━") == epoch.count("─") == 25
    assert (step.count("━"), step.count("─")) == (12, 38)
    (epoch, _) = shown(view(done=1.0), 79, 24, ascii_only=True)[1:3]
    assert (epoch.count("#"), epoch.count("-")) == (50, 0)


def test_a_stage_that_has_just_begun():
    start = view(epoch=1, step=0, done=0.0, figures={}, trends={}, looks={}, learning_rate=None, speed=None, left=None)
    start.run_left, start.best = None, None
    lines = shown(start, 79, 24)
    assert lines[0].startswith("runs/photos/gml")
    assert lines[-1].startswith("report at the end")
    assert len(lines) == 4
    assert plain_line(start) == "student  epoch 1/60 step 0/120"


def test_the_best_epoch_is_named_only_where_it_is_another():
    text = "\n".join(shown(view(best=(0.612, 6)), 100, 30))
    assert "best" not in text


def test_plain_line():
    assert plain_line(view()) == (
        "student  epoch 7/60 step 34/120  classifier 1.235  gml 2.5  distillation 0.03  temperature 0.0817  "
        "bits -0.25  1234 images/s  left 2:05 (run 1:01:40)"
    )
    ended = view(epoch=6, step=120, figures={"classifier": 1.0}, speed=3.21, run_left=None)
    assert plain_line(ended) == (
        "student  epoch 6/60  classifier 1  val_balanced_accuracy 0.612  val_top1 0.7004  3.2 images/s  left 2:05"
    )
    assert plain_line(view(epoch=60, step=120, done=1.0, figures={}, looks={}, speed=None)).endswith("60/60  took 1:05")


def test_split_looks():
    training, looks = split_looks({"classifier": 1.0, "val_top1": 0.5, "test_top1": 0.4, "validity": 3.0})
    assert training == {"classifier": 1.0, "validity": 3.0}
    assert looks == {"val": {"val_top1": 0.5}, "test": {"test_top1": 0.4}}


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [("abcdef", 6, "abcdef"), ("abcdef", 4, "…def"), ("写真写真", 5, "…写真"), ("写真写真", 4, "…真"), ("ab", 0, "")],
)
def test_shortened(text, width, expected):
    assert shortened(text, width, ascii_only=False) == expected
