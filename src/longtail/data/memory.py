"""How much memory there is, and whether images fit into it as pixels."""

from __future__ import annotations

import re
from pathlib import Path

from longtail.data.image_set import DataSplits, Framing, ImageFiles
from longtail.ranks import processes_here

SHARE = 0.8
"""Of the available memory that pixels may take; the rest is for the model, its training and the system."""
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Return how many bytes of memory can be had without swapping, None where the system does not say.

    Within a container it is what the container may still take, if that is less. Processes that train together on this
    machine take the same each, so that one may have its share.
    """
    known = []
    if meminfo.exists():
        found = re.search(r"^MemAvailable:\s*(\d+) kB", meminfo.read_text(), re.MULTILINE)
        known += [1024 * int(found[1])] if found else []
    try:
        most, taken = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        # Files that are only cached count as taken, but give way.
        cached = re.search(r"^inactive_file (\d+)$", (cgroup / "memory.stat").read_text(), re.MULTILINE)
        known += [max(0, int(most) - int(taken) + (int(cached[1]) if cached else 0))] if most != "max" else []
    except (OSError, ValueError):  # another system, or an older kind of control group
        pass
    return min(known) // processes_here() if known else None


def too_large(splits: DataSplits, framing: Framing, available: int | None) -> str | None:
    """Return a sentence if the files of ``splits`` do not fit into memory as pixels of ``framing``, else None.

    Args:
        splits: training, validation and test set; arrays lie in memory already.
        framing: what the files are brought to.
        available: bytes, see :func:`available_bytes`; None = not known, so that everything is taken to fit.
    """
    sets = (splits.train, splits.validation, splits.test)
    images = sum(len(part) for part in sets if isinstance(part, ImageFiles))
    height, width = framing.size
    needed = images * 3 * height * width
    if available is None or needed <= SHARE * available:
        return None
    return (
        f"the {images} images take {needed / 2**30:.3g} GiB as pixels of {height} x {width}, more than "
        f"{100 * SHARE:.0f} % of the {available / 2**30:.3g} GiB of memory available: they are streamed from their "
        "files (--loading.resident false)."
    )
