"""Runs work in 4 gloo processes that one interpreter forks: started as a script by the tests of sharded queues.

    python sharded_ranks.py MODULE FUNCTION OUT

imports ``FUNCTION`` of the test module ``MODULE`` (its path), calls ``FUNCTION(rank)`` in each of 4 processes
and writes what it returns in the first of them to OUT as JSON. An exception in any of them: exit code 1.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

WORLD = 4


def run(module, function, folder):
    """Return what `function` of the file `module` returns in the first of 4 processes."""
    out = Path(folder) / f"{function}.json"
    words = [sys.executable, __file__, str(module), function, str(out)]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


def _rank(work, rank, store, out):
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", store=dist.FileStore(store, WORLD), rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    found = work(rank)
    if rank == 0:
        Path(out).write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def main(module, function, out):
    """Fork the processes and wait for them."""
    sys.path[:0] = [str(Path(module).parent), str(Path(module).parents[1])]
    spec = importlib.util.spec_from_file_location("work", module)
    work = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(work)
    import torch

    torch.set_num_threads(1)
    # What is imported late is imported here, once; but no gradient, for which a forked process could take none.
    getattr(work, "ahead", lambda: None)()
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(WORLD):
            child = os.fork()
            if child == 0:
                try:
                    _rank(getattr(work, function), rank, str(Path(folder) / "store"), out)
                    code = 0
                except BaseException:
                    import traceback

                    traceback.print_exc()
                    code = 1
                sys.stderr.flush()
                os._exit(code)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return 1 if any(codes) else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
