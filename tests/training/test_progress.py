"""What a run shows: drawn on a terminal that the test reads back, and in a pipe."""

import contextlib
import fcntl
import os
import pty
import queue
import re
import select
import struct
import sys
import termios
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from longtail.training.pace import PlannedStage
from longtail.training.progress import ProgressReporter, plain_seconds

END = "\x1b[0m\x1b[0;0m"  # what nothing else writes
PLAN = [PlannedStage("teacher", 2, 1.0), PlannedStage("student", 3, 2.5)]


class Clock:
    """The reporter's clock, moved by the test."""

    def __init__(self, monkeypatch):
        self.now, self.busy = 100.0, 0.0
        monkeypatch.setattr("longtail.training.progress.time.monotonic", lambda: self.now)
        monkeypatch.setattr("longtail.training.progress.time.thread_time", lambda: self.busy)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


class Screen:
    """As much of a terminal as a live panel needs: text, lines, cursor up, erased lines, the cursor's visibility."""

    def __init__(self, width, height):
        self.width, self.height, self.lines, self.row, self.column, self.cursor = width, height, [""], 0, 0, True

    def feed(self, text):
        pieces = re.findall(r"\x1b\[([?\d;]*)([A-Za-z])|(\r)|(\n)|([^\x00-\x1f\x7f])|([\x00-\x1f\x7f])", text)
        for numbers, code, home, down, sign, other in pieces:
            assert not other, f"control character {other!r}"
            if home:
                self.column = 0
            elif down:
                self._down()
            elif sign:
                if self.column == self.width:
                    self.column = 0
                    self._down()
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + sign + line[self.column + 1 :]
                self.column += 1
            elif code == "A":
                self.row = max(self.row - int(numbers or 1), len(self.lines) - self.height, 0)
            elif (numbers, code) == ("2", "K"):
                self.lines[self.row] = ""
            elif numbers == "?25":
                self.cursor = code == "h"
            else:
                assert code == "m", f"escape sequence {numbers}{code}"

    def _down(self):
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    @property
    def text(self):
        return "\n".join(line.rstrip() for line in self.lines).strip("\n")


class Terminal:
    """A pseudo-terminal as this process's stdout."""

    def __init__(self, monkeypatch, width=80, height=24, encoding="utf-8"):
        self.master, slave = pty.openpty()
        self.screen, self.raw, self._unseen = Screen(width, height), "", queue.Queue()
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("LINES", str(height))
        monkeypatch.setenv("TERM", "xterm-256color")
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        self.file = os.fdopen(slave, "w", encoding=encoding)
        monkeypatch.setattr(sys, "stdout", self.file)

        # Read all the time: a terminal that nobody reads blocks who writes.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        with contextlib.suppress(OSError):  # the other end was closed
            while data := os.read(self.master, 65536):
                self._unseen.put(data)

    def look(self):
        """Return what the screen shows now."""
        self.file.write(END)
        self.file.flush()
        data = b""
        while not data.endswith(END.encode()):
            data += self._unseen.get(timeout=60)
        text = data.decode().removesuffix(END)
        self.raw += text
        self.screen.feed(text)
        return self.screen.text

    def close(self):
        self.file.close()
        self._reader.join()
        os.close(self.master)


@pytest.fixture
def terminal(monkeypatch):
    made = []

    def make(*args, **kwargs):
        made.append(Terminal(monkeypatch, *args, **kwargs))
        return made[-1]

    yield make
    monkeypatch.undo()
    for one in made:
        one.close()


def reading(value, steps=1):
    return lambda: (steps, {"classifier": value, "bits": 1 / value})


def begun(number=0, done=0, quiet=False, fold=(0, 1)):
    reporter = ProgressReporter(quiet)
    reporter.fold = fold
    reporter.plan("runs/a", Path("runs/a/report.html"), PLAN)
    reporter.start(number, steps=10, done=done, batch_size=32)
    return reporter


# --- On a terminal


def test_the_panel_follows_the_steps(terminal, clock):
    screen = terminal()
    reporter = begun()
    assert screen.look().splitlines()[0] == "runs/a   teacher, stage 1 of 2"
    assert not screen.screen.cursor
    for step in range(1, 6):
        clock.now += 2.0
        reporter.step(step, 0.1, reading(3.0 / step, step))
    text = screen.look()
    assert text.count("runs/a   teacher") == 1, text
    for part in ("epoch 1/2", "step 5/10", "25%", "50%", "classifier", "0.6", "bits", "1.667", "learning rate 0.1"):
        assert part in text
    assert "0:10 gone, 0:30 left" in text
    assert "whole run about 3:00" in text  # 30 s, and three epochs of 10 steps at 2.5 times 2 s
    assert "16 images/s" in text
    reporter.stop()
    left = "".join(screen.look().splitlines())
    assert left == "teacher  epoch 1/2 step 5/10  classifier 0.6  bits 1.667  16 images/s  left 0:30 (run 3:00)"
    assert screen.screen.cursor


def test_what_is_said_stays_above_the_panel(terminal, clock):
    screen = terminal(width=40)
    reporter = begun()
    reporter.say("a note that is far longer than the terminal's forty columns are")
    print("another library's words")
    print("and its warning", file=sys.stderr)
    clock.now += 1
    reporter.step(1, 0.1, reading(2.0))
    lines = screen.look().splitlines()
    assert "".join(lines[:2]) == "a note that is far longer than the terminal's forty columns are"
    assert lines[2:4] == ["another library's words", "and its warning"]
    assert lines[4].startswith("runs/a")
    reporter.stop()
    assert "teacher  epoch 1/2 step 1/10" in screen.look()


def test_an_error_inside_leaves_the_terminal_in_order(terminal, clock):
    screen = terminal()
    streams = sys.stdout, sys.stderr
    reporter = begun()
    clock.now += 1
    reporter.step(1, 0.1, reading(2.0))
    assert (sys.stdout, sys.stderr) != streams
    with pytest.raises(ZeroDivisionError), reporter:
        raise ZeroDivisionError
    assert (sys.stdout, sys.stderr) == streams
    assert screen.look().startswith("teacher  epoch 1/2 step 1/10")
    assert screen.screen.cursor


def test_a_reporter_that_is_dropped_gives_the_cursor_back(terminal, clock):
    screen = terminal()
    reporter = begun()
    screen.look()
    assert not screen.screen.cursor
    del reporter
    assert screen.look() == ""
    assert screen.screen.cursor


def test_steps_draw_a_few_times_a_second_and_read_at_most_once(terminal, clock):
    screen = terminal()
    reporter, reads = begun(), []

    def read():
        reads.append(clock.now)
        return 1, {"classifier": 1.0}

    screen.look()
    before = len(screen.raw)
    for _ in range(10_000):  # ten seconds at 1000 steps a second
        clock.now += 0.001
        reporter.step(1, 0.1, read)
    screen.look()
    drawn = screen.raw[before:].count("teacher")
    assert 38 <= drawn <= 41
    assert 8 <= len(reads) <= 11
    reporter.stop()


def test_where_drawing_is_slow_it_is_done_less_often(terminal, clock, monkeypatch):
    screen = terminal()
    reporter = begun()
    draw = reporter._draw_stage

    def slowly():
        clock.busy += 0.02
        draw()

    monkeypatch.setattr(reporter, "_draw_stage", slowly)
    screen.look()
    before = len(screen.raw)
    for _ in range(10_000):
        clock.now += 0.001
        reporter.step(1, 0.1, reading(1.0))
    screen.look()
    assert 5 <= screen.raw[before:].count("teacher") <= 6  # 0.02 s is 1 % of 2 s
    reporter.stop()


def test_the_next_stage_leaves_what_stands_above_it(terminal, clock):
    screen = terminal()
    reporter = begun()
    reporter.say("before")
    clock.now += 1
    reporter.step(20, 0.1, reading(2.0))
    reporter.stop()
    reporter.note("preparing student")
    ended = "teacher  epoch 2/2  classifier 2  bits 0.5  640 images/s  took 0:01"
    assert screen.look().splitlines() == ["before", ended, "preparing student"]
    reporter.start(1, 10, 0, 32)
    lines = screen.look().splitlines()
    assert lines[:3] == ["before", ended, "runs/a   student, stage 2 of 2"]
    reporter.stop()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 24), (40, 8), (20, 4), (10, 3)])
def test_redrawing_leaves_no_rests_at_any_size(terminal, clock, width, height):
    screen = terminal(width, height)
    reporter = begun(number=1)
    reporter.say("before")
    for epoch in (1, 2, 3):
        for step in range(1, 11):
            clock.now += 1
            reporter.step(10 * (epoch - 1) + step, 0.1, reading(float(step), step))
        reporter.note("evaluating")
        reporter.epoch(epoch, 10, {"classifier": 1.0, "bits": 0.5, "val_balanced_accuracy": 0.1 * epoch})
    lines = screen.look().splitlines()
    assert lines[0] == "before"
    assert len(lines) <= height
    assert sum(line.startswith("epoch") for line in lines) == 1, lines
    reporter.stop()
    assert "before" in screen.look()
    assert "".join(screen.look().splitlines()).endswith("took 0:30")


def test_a_panel_in_ascii_where_the_terminal_knows_no_more(terminal, clock, monkeypatch):
    screen = terminal(encoding="ascii")
    reporter = ProgressReporter()
    reporter.say("Müll")
    reporter.plan("läufe/a", Path("läufe/a/report.html"), PLAN)
    reporter.start(0, 10, 0, 32)
    clock.now += 2
    reporter.step(1, 0.1, reading(1.0))
    lines = screen.look().splitlines()
    assert lines[0] == "M\\xfcll"
    assert lines[1].startswith("l\\xe4ufe/a")
    assert any("###" in line for line in lines)
    reporter.stop()


def test_no_color_leaves_text_and_no_colour(terminal, clock, monkeypatch):
    screen = terminal()
    monkeypatch.setenv("NO_COLOR", "1")
    reporter = begun()
    assert "runs/a" in screen.look()
    assert not re.search(r"\x1b\[[\d;]*(3\d|4\d|9\d)[\d;]*m", screen.raw)
    reporter.stop()


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("TTY_INTERACTIVE", "0")])
def test_terminals_that_cannot_redraw_get_plain_lines(terminal, clock, monkeypatch, name, value):
    screen = terminal()
    monkeypatch.setenv(name, value)
    with begun() as reporter:
        for step in range(1, 11):
            clock.now += 1
            reporter.step(step, 0.1, reading(2.0))
        reporter.epoch(1, 10, {"classifier": 1.0})
    assert screen.look().startswith("teacher  epoch 1/2 ")
    assert "\x1b" not in screen.raw


def test_a_terminal_that_is_closed_does_not_end_the_run(terminal, clock, monkeypatch):
    screen = terminal()
    reporter = begun()
    screen.look()

    def gone(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(type(reporter._region), "draw", gone)
    clock.now += 1
    reporter.step(1, 0.1, reading(2.0))
    reporter.step(2, 0.1, reading(2.0))
    assert not reporter.live
    reporter.stop()


def test_the_fold_is_named_and_the_folds_after_it_count(terminal, clock):
    screen = terminal()
    reporter = begun(fold=(1, 3))
    for step in range(1, 11):
        clock.now += 1
        reporter.step(step, 0.1, reading(2.0))
    text = screen.look()
    assert "teacher, fold 2 of 3, stage 1 of 2" in text
    assert "0:10 left" in text
    assert "whole run about 3:00" in text  # 10 s, 75 s of the student, 95 s of the third fold
    reporter.stop()


def test_the_counter_of_a_long_preparation(terminal, clock):
    screen = terminal()
    reporter = ProgressReporter()
    show = reporter.counter("decoding images")
    show(1, 100)
    assert screen.look() == ""
    clock.now += 10
    show(20, 100)
    assert screen.look() == "decoding images: 20 of 100, left 0:40"
    reporter.say("a note")
    show(21, 100)
    assert screen.look().splitlines() == ["a note", "decoding images: 20 of 100, left 0:40"]
    clock.now += 10
    show(100, 100)
    assert screen.look() == "a note"
    assert screen.screen.cursor


# --- Not on a terminal


@pytest.fixture
def pipe(monkeypatch, capsys):
    """What this process prints into a pipe, although colour is forced, as on many CI services."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    return lambda: capsys.readouterr().out


def test_plain_lines_are_few_and_have_no_control_characters(pipe, clock):
    """Two epochs of 10 steps of 60 s."""
    with begun() as reporter:
        for epoch in (1, 2):
            for step in range(1, 11):
                clock.now += 60
                reporter.step(10 * (epoch - 1) + step, 0.1, reading(2.0, step))
            reporter.note("evaluating")
            reporter.epoch(epoch, 10, {"classifier": 1.0, "test_top1": 0.25})
    text = pipe()
    assert not re.search(r"[^\x20-\x7e\n]", text)
    lines = text.splitlines()
    assert lines[-1] == "teacher  epoch 2/2  classifier 1  test_top1 0.25  0.53 images/s  took 20:00"
    assert next(line for line in lines if "step" not in line).startswith("teacher  epoch 1/2  classifier 1  test_top1")
    assert 8 <= len(lines) <= 20
    assert "teacher  epoch 1/2 step 2/10  classifier 2  bits 0.5  0.53 images/s  left 18:00 (run 1:33:00)" in lines


def test_short_epochs_do_not_flood_a_file(pipe, clock, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PLAN", [PlannedStage("train", 5000)])
    reporter, times, lines = begun(), [], []
    for epoch in range(1, 5001):
        for step in range(1, 11):
            clock.now += 0.02
            reporter.step(10 * (epoch - 1) + step, 0.1, reading(2.0, step))
        reporter.epoch(epoch, 10, {"classifier": 1.0})
        lines.append(pipe())
        times += [clock.now] * bool(lines[-1])
    gaps = [b - a for a, b in pairwise(times)]
    assert min(gaps[:-1]) >= 5.0
    assert max(gaps) <= 60.0
    assert 40 <= len(times) <= 90  # of a run of 1000 s
    assert "epoch 1/5000 " in lines[0]
    assert "epoch 5000/5000 " in lines[-1]


def test_plain_seconds():
    assert [plain_seconds(t) for t in (0, 100, 400, 1200, 10**6)] == [5, 5, 20, 60, 60]


def test_quiet_prints_nothing_and_reads_nothing(pipe, clock):
    def read():
        raise AssertionError("a figure was read")

    with begun(quiet=True) as reporter:
        for step in range(1, 11):
            clock.now += 60
            reporter.step(step, 0.1, read)
        reporter.epoch(1, 10, {"classifier": 1.0})
        reporter.say("a note")
        reporter.note("evaluating")
        reporter.counter("decoding")(1, 1)
    assert pipe() == ""


def test_what_files_are_called_cannot_command_the_terminal(pipe, clock):
    ProgressReporter().say("a\x1b[2Jb\nc [red]d[/red]")
    assert pipe() == "a\\x1b[2Jb\\nc [red]d[/red]\n"


# --- A whole run


def resize(handle, width, height):
    fcntl.ioctl(handle, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))


def test_a_run_on_a_terminal_that_is_made_narrower_and_stopped(tmp_path, tiny_splits):
    """Ctrl-C typed into the terminal of a real process: panel gone, cursor back, what to do next in plain sight."""
    parts = {"train": tiny_splits.train, "test": tiny_splits.test}
    arrays = {f"{name}_images": part.images[:, 0].numpy() for name, part in parts.items()}
    labels = {f"{name}_labels": part.labels.numpy() for name, part in parts.items()}
    np.savez(tmp_path / "bars.npz", **arrays, **labels)
    words = [sys.executable, "-m", "longtail", "train", "bars.npz", "--epochs", "100000", "--out", "run"]
    words += ["--method", "cross_entropy", "--device", "cpu", "--batch-size", "8"]
    child, handle = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"}
        for name in ("COLUMNS", "LINES", "TTY_INTERACTIVE", "NO_COLOR"):
            environment.pop(name, None)
        os.execve(words[0], words, environment)
    screen, raw, sent, until = Screen(100, 24), "", [], time.monotonic() + 300
    resize(handle, 100, 24)
    while True:
        assert time.monotonic() < until, screen.text
        if not select.select([handle], [], [], 1.0)[0]:
            continue
        try:
            data = os.read(handle, 65536).decode()
        except OSError:  # the process has ended
            break
        raw += data
        screen.feed(data.replace("\x07", ""))
        if "resized" not in sent and "images/s" in screen.text:
            assert any(len(line) > 50 for line in screen.text.splitlines()[-8:])
            screen.width = 40
            resize(handle, 40, 24)
            sent.append("resized")
            mark = len(raw)
        elif sent == ["resized"] and raw[mark:].count("report at the end") >= 2:
            narrow = screen.text.splitlines()
            os.write(handle, b"\x03")
            sent.append("stopped")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    os.close(handle)
    top = max(index for index, line in enumerate(narrow) if line.endswith("train") and line.startswith("run"))
    assert all(len(line) <= 40 for line in narrow[top:]), narrow
    lines = screen.text.splitlines()
    assert screen.cursor
    assert "Goonwith:longtailtrainbars.npz" in "".join(lines[-8:]).replace(" ", ""), screen.text
    assert "report at the end" not in screen.text
    assert (tmp_path / "run" / "resume").exists()
