"""A whole run without the command line."""

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
