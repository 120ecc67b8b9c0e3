"""Several processes on this machine that train together, without a launcher: forked, so that torch is loaded once."""

import functools
import multiprocessing
import os
import socket
import traceback

from longtail import launched


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _one(pipe, place, function, arguments):
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    os.environ.update({key: str(value) for key, value in place.items()})
    try:
        mine = launched.connect("cpu")
        with mine.together():
            result = "done", function(mine, *arguments)
    except BaseException as error:
        result = type(error).__name__, str(error) or traceback.format_exc()
    pipe.send(result)
    if launched._connected is not None:
        launched._connected.farewell()


class Job:
    """A process of :func:`start_processes`."""

    def __init__(self, process, pipe):
        self.process, self.pipe, self.pid = process, pipe, process.pid

    def result(self, seconds=60):
        """Return ("done", value), or name and text of the error; ("silent", None) if it ended without a word."""
        result = self.said(seconds)
        self.end()
        return result

    def said(self, seconds=60):
        """Return what :meth:`result` does, and let the process go on to its end."""
        try:
            return self.pipe.recv() if self.pipe.poll(seconds) else ("silent", None)
        except EOFError:
            return "silent", None

    def end(self):
        self.process.join(20)
        self.process.kill()


def start_processes(world, function, *arguments, **more):
    """Start ``function(ranks, *arguments, **more)`` in each of ``world`` processes."""
    context, port = multiprocessing.get_context("fork"), free_port()
    jobs = []
    for rank in range(world):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
        ours, theirs = context.Pipe()
        called = functools.partial(function, **more)
        job = context.Process(target=_one, args=(theirs, place | {"MASTER_PORT": port}, called, arguments))
        job.start()
        theirs.close()
        jobs.append(Job(job, ours))
    return jobs


def in_processes(world, function, *arguments):
    """Return what ``function(ranks, *arguments)`` did in each of ``world`` processes (see :meth:`Job.result`)."""
    jobs = start_processes(world, function, *arguments)
    # The first process waits at its end for the others, and those for their words to be read: all are heard first.
    found = [job.said() for job in jobs]
    for job in jobs:
        job.end()
    return found
