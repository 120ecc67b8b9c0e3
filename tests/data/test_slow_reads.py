"""Files from storage that answers late: asked for together, in order, the same pixels; fast storage stays serial."""

import threading
import time

import pytest
import torch
from test_streaming import make_files, make_views

from longtail.data import decode, streaming
from longtail.data.slow_reads import AT_ONCE, SlowReads
from longtail.data.streaming import frame_files
from longtail.errors import UserError


def late(seconds, active):
    """A function that takes `seconds` without computing, and notes how many calls are under way."""
    lock, now = threading.Lock(), [0]

    def read(item):
        with lock:
            now[0] += 1
            active.append(now[0])
        time.sleep(seconds)
        with lock:
            now[0] -= 1
        return item * item

    return read


def test_late_answers_are_waited_for_together_and_come_in_order():
    active, reads = [], SlowReads()
    assert reads.all(late(0.004, active), range(4)) == [0, 1, 4, 9]
    assert max(active) == 1
    assert reads.slow
    assert reads.all(late(0.02, active), range(20)) == [n * n for n in range(20)]
    assert 4 < max(active) <= AT_ONCE


def test_what_computes_is_not_taken_for_slow_storage():
    def compute(item):
        began = time.thread_time()
        while time.thread_time() - began < 0.003:
            pass
        return item

    reads = SlowReads()
    for _ in range(5):  # also where other processes take the core away
        reads.all(compute, range(4))
        assert not reads.slow


def test_slow_storage_changes_no_pixel_and_no_error(tmp_path, monkeypatch):
    files, views = make_files(tmp_path), make_views()
    expected = frame_files(files, torch.arange(len(files)), views, None)
    real = decode._bytes_of
    monkeypatch.setattr(decode, "_bytes_of", lambda path: (time.sleep(0.005), real(path))[1])
    monkeypatch.setattr(streaming, "_READS", SlowReads())
    for slow in (False, True):
        assert streaming._READS.slow is slow
        frames = frame_files(files, torch.arange(len(files)), views, None)
        assert all(torch.equal(frames[name], expected[name]) for name in views)
    for name in ("03.jpg", "07.jpg"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"03\.jpg cannot be read any more"):
        frame_files(files, torch.arange(len(files)), views, None)
