"""A study on tiny data."""

import numpy as np
import pytest
from tiny_studies import SHORT, bars

from longtail.studies.study import study


@pytest.fixture
def run(tmp_path, monkeypatch, one_thread):
    """Return a function that runs a study on the bars: ``run("switches", seeds=2, ...)``."""
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "bars.npz", **bars())

    def call(name, **options):
        return study(name, **{"data": "bars.npz", "out": "study", "seeds": 1, "quiet": True, **SHORT, **options})

    return call
