"""Several processes on this machine that train together, without a launcher: forked, so that torch is loaded once."""

import multiprocessing
import os
import socket
import traceback

from longtail import ranks


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _one(pipe, place, function, arguments):
    os.environ.update({key: str(value) for key, value in place.items()})
    try:
        mine = ranks.connect("cpu")
        with mine.together():
            result = "done", function(mine, *arguments)
    except BaseException as error:
        result = type(error).__name__, str(error) or traceback.format_exc()
    pipe.send(result)
    if ranks._connected is not None:
        ranks._connected._farewell()


def in_processes(world, function, *arguments):
    """Return what ``function(ranks, *arguments)`` did in each of ``world`` processes: ("done", value) or the error."""
    context, port = multiprocessing.get_context("fork"), free_port()
    jobs = []
    for rank in range(world):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
        ours, theirs = context.Pipe()
        job = context.Process(target=_one, args=(theirs, place | {"MASTER_PORT": port}, function, arguments))
        job.start()
        jobs.append((job, ours))
    try:
        return [ours.recv() if ours.poll(60) else ("silent", None) for _, ours in jobs]
    finally:
        for job, _ in jobs:
            job.join(20)
            job.kill()
