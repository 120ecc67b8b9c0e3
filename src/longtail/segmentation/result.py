"""What training or evaluating a run on masks comes to, for Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longtail.deployment.result import FinishedRun
from longtail.deployment.run_records import check_has_model
from longtail.segmentation.models import Segmenter


@dataclass(frozen=True)
class DenseResult(FinishedRun):
    """A finished run of segmentation; attributes as those of :class:`longtail.deployment.result.FinishedRun`."""

    def load(self) -> Segmenter:
        """Return the trained segmenter, as :func:`longtail.load` does."""
        return load_segmenter(self.folder)


def load_segmenter(folder: Path) -> Segmenter:
    """Return the segmenter of the run in ``folder``, in eval mode on the CPU. Nothing is unpickled.

    Raises:
        UserError: the folder holds no finished run, or a file in it is cut off or changed.
    """
    check_has_model(folder)
    return Segmenter.load(folder)
