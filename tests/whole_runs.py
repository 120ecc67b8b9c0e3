"""Whole runs without the command line, and their being stopped."""

import os
import signal

from longtail.training.progress import ProgressReporter
from longtail.training.run_folder import RunFolder
from longtail.training.stages import run_stages


def run(path, config, splits, **how):
    """Train all stages of a run in the folder `path`, or go on there (resume=True); return its evaluation."""
    folder = RunFolder(path, **how)
    try:
        if not folder.holds_run:
            folder.write_config(config)
        return run_stages(config, splits, folder, ProgressReporter(quiet=True))
    finally:
        folder.close()


def stop_at_step(monkeypatch, method, step, number=signal.SIGINT):
    """Send this process a signal in the `step`-th forward pass of `method`; return the batches seen so far."""
    real, seen = method.forward, []

    def forward(self, batch, progress):
        seen.append(batch)
        if len(seen) == step:
            os.kill(os.getpid(), number)
        return real(self, batch, progress)

    monkeypatch.setattr(method, "forward", forward)
    return seen
