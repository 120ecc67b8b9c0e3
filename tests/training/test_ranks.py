"""Processes that train together end together: differences, failures and kills, told once by the first."""

import functools
import hashlib
import itertools
import json
import os
import shutil
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from longtail import api, launched, ranks
from longtail.data.memory import available_bytes
from longtail.data.shares import Share, check_divides, even_sizes
from longtail.data.streaming import default_workers
from longtail.errors import UserError
from longtail.exchange import gather_rows, set_rows
from longtail.launched import connect
from longtail.models.joint_norm import JointBatchNorm, join_batch_norm
from longtail.ranks import Ranks
from longtail.training import whole_batch
from longtail.training.guard import StopRequest
from longtail.training.job import how_to_begin
from longtail.training.loop import StageRun
from processes import in_processes, start_processes

pytestmark = pytest.mark.usefixtures("one_thread")

RUN = {"method": "gml", "teacher.kind": "momentum", "epochs": 2, "batch_size": 8, "device": "cpu"}
RUN |= {"checkpoint.every_seconds": 0.0, "loading.workers": 0, "image_size": 16, "quiet": True, "queue.capacity": 32}
RUN |= {"backbone": "small_net", "val_fraction": 0.2}
FILES = ("model.safetensors", "metrics.jsonl", "evaluation.json", "predictions.safetensors")


def bytes_of(folder):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


def train(mine, out, data, **more):
    api.train(data, out=out, **{**RUN, **more})
    return sorted(os.listdir(out))


@pytest.fixture(scope="module")
def data(make_photos, tmp_path_factory):
    """A folder of images."""
    return make_photos(tmp_path_factory.mktemp("ranks") / "images", {"a": 20, "b": 9, "c": 6})


@pytest.fixture(scope="module")
def of_one(data, tmp_path_factory):
    """The folder of a run of one process: this one, so that those that are forked have all modules loaded."""
    folder = tmp_path_factory.mktemp("ranks") / "one"
    train(None, folder, data)
    return folder


@pytest.fixture(scope="module")
def of_two(of_one, data, tmp_path_factory):
    """What two processes said of a run, and its folder."""
    folder = tmp_path_factory.mktemp("ranks") / "two"
    return in_processes(2, train, folder, data), folder


def test_a_run_on_files_leaves_what_one_process_leaves(of_one, of_two):
    done, folder = of_two
    assert done == [("done", sorted(os.listdir(of_one)))] * 2
    ours, theirs = (json.loads((path / "evaluation.json").read_text()) for path in (of_one, folder))
    assert (ours["top1"], ours["selected"]) == (theirs["top1"], theirs["selected"])
    # Logits of the test set in order, none twice: float32 sums in another order are all that differs.
    one, two = (load_file(path / "predictions.safetensors") for path in (of_one, folder))
    assert torch.equal(one["labels"], two["labels"])
    assert torch.allclose(one["logits"], two["logits"], atol=1e-3)
    seeds = json.loads((folder / "environment.json").read_text())["ranks"]["seeds"]
    assert len(set(seeds)) == 2


def start_and_kill(victim, out, data):
    """Start two processes, kill one when there is a state, and return both."""
    jobs = start_processes(2, train, out, data, epochs=2)
    until = time.monotonic() + 60
    while not list(out.glob("resume/state-*")) and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(jobs[victim].pid, signal.SIGKILL)
    return jobs


def test_a_killed_process_ends_all_and_the_run_goes_on_to_the_same_bytes(of_one, of_two, data, tmp_path):
    jobs = start_and_kill(1, tmp_path / "killed", data)
    kind, text = jobs[0].result()
    assert (kind, text[:29]) == ("RankFailed", "a process of this job is gone")
    jobs[1].result()
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")
    assert in_processes(2, functools.partial(train, resume=True), tmp_path / "killed", data)[0][0] == "done"
    assert bytes_of(tmp_path / "killed") == bytes_of(of_two[1])
    # One process goes on where two began: float32 sums in another order are all that differs.
    train(None, tmp_path / "alone", data, resume=True)
    one, two = (load_file(path / "predictions.safetensors") for path in (tmp_path / "alone", of_one))
    assert torch.equal(one["labels"], two["labels"])
    assert torch.allclose(one["logits"], two["logits"], atol=1e-3)


def test_when_the_first_process_is_killed_another_says_so_once(of_one, data, tmp_path, capfd):
    jobs = start_and_kill(0, tmp_path / "killed", data)
    kind, _ = jobs[1].result()
    assert kind in ("RankFailed", "silent")
    assert capfd.readouterr().err.count("longtail: a process of this job is gone") == 1
    jobs[0].result()


def sleep_long(mine):
    mine.barrier()
    time.sleep(60)


def test_told_to_end_before_training_each_says_what_the_first_prints():
    jobs = start_processes(2, sleep_long)
    time.sleep(1)
    for job in jobs:
        os.kill(job.pid, signal.SIGTERM)
    for job in jobs:
        kind, text = job.result()
        assert kind == "Ended"
        assert text.startswith("the launcher ended this job: it was told to, or another process is gone")


def train_by_a_clock_that_goes_back(mine, out, data):
    moments = itertools.count(2e9, -3600.0)
    time.time = lambda: next(moments)
    return train(mine, out, data)


def test_a_clock_that_goes_back_changes_nothing(of_two, data, tmp_path):
    kinds = in_processes(2, train_by_a_clock_that_goes_back, tmp_path / "run", data)
    assert [kind for kind, _ in kinds] == ["done", "done"], kinds
    assert bytes_of(tmp_path / "run") == bytes_of(of_two[1])


def fail_at_second_step(mine, out, data, error):
    """Train, and let the second process fail in its second step."""
    if mine.rank == 1:
        real, calls = whole_batch.gather_rows, []

        def gather(values):
            calls.append(0)
            if len(calls) == 4:
                raise error
            return real(values)

        whole_batch.gather_rows = gather
    return train(mine, out, data)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("x.png cannot be read any more."), "process 1: x.png cannot be read any more."),
        (torch.OutOfMemoryError("of 2 GiB"), "process 1: out of memory; try a smaller --batch_size"),
    ],
)
def test_an_error_in_one_process_is_the_sentence_of_the_first(error, sentence, data, tmp_path, capfd):
    first, second = in_processes(2, fail_at_second_step, tmp_path / "run", data, error)
    assert second == (type(error).__name__, str(error))
    # It waits for the other's rows where it cannot look: a thread speaks for it and ends it.
    told = first[1] if first[0] == "RankFailed" else capfd.readouterr().err
    assert told.removeprefix("longtail: ").startswith(sentence), first
    assert told.count("process 1") == 1
    assert not list(tmp_path.glob("run/**/*.tmp"))


def other_data(mine, folder, names, out):
    os.chdir(folder / names[mine.rank])
    return train(mine, out, "images")


def other_options(mine, data, out):
    return train(mine, out, data, seed=mine.rank)


def test_differences_are_refused_with_what_differs(make_photos, tmp_path):
    counts = {"a": 20, "b": 9, "c": 6}
    make_photos(tmp_path / "mine" / "images", counts)
    make_photos(tmp_path / "other" / "images", counts)
    Image.new("RGB", (20, 20)).save(tmp_path / "other" / "images" / "c" / "more.png")
    kinds = in_processes(2, other_data, tmp_path, ("mine", "other"), tmp_path / "run")
    assert {kind for kind, _ in kinds} == {"UserError"}
    assert kinds[0][1].startswith("process 1 of 2 has another number of "), kinds
    assert kinds[0][1].endswith("; give every machine the same data.")
    make_photos(tmp_path / "fewer" / "images", {"a": 20, "b": 15})
    kinds = in_processes(2, other_data, tmp_path, ("mine", "fewer"), tmp_path / "run")
    assert kinds[0] == kinds[1]
    assert kinds[0][1].startswith("process 1 of 2 has another number of classes than process 0 (2, not 3); give"), kinds
    kinds = in_processes(2, other_options, tmp_path / "mine" / "images", tmp_path / "run")
    assert kinds[0] == kinds[1]
    assert kinds[0][1] == (
        "process 1 of 2 has another --seed than process 0 (1, not 0); start all with the same command."
    )
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"--batch_size 9 .*2 processes; give --batch_size 8"):
        check_divides(9, 2, 1)


def sums_of_uneven_slices(mine, images, sizes):
    """Return output, gradients and statistics of two joint layers on this process's slice, gathered."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(27, 4)
    )
    net.append(torch.nn.BatchNorm1d(4, momentum=None))
    net.double()
    if not mine.alone:
        join_batch_norm(net)
        assert JointBatchNorm in type(net[1]).mro()
        assert isinstance(net[1], torch.nn.BatchNorm2d)
        set_rows(sizes)
        images = images.split(list(sizes))[mine.rank]
    for _ in range(2):
        out = gather_rows(net(images))
    (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).pow(3).sum().backward()
    found = {name: p.grad / (1 if mine.alone else mine.world) for name, p in net.named_parameters()}
    if not mine.alone:
        for value in found.values():  # what DistributedDataParallel does: the mean (the division was above)
            torch.distributed.all_reduce(value)
    set_rows(None)
    kept = {"out": out.detach(), **found, **{f"state {k}": v for k, v in net.state_dict().items()}}
    return {name: value.numpy() for name, value in kept.items()}


def test_joint_batch_norm_of_uneven_slices_is_that_of_one_process():
    images = torch.randn(7, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    one = sums_of_uneven_slices(Ranks(), images, (7,))
    for kind, two in in_processes(2, sums_of_uneven_slices, images, (5, 2)):
        assert kind == "done", two
        assert two.keys() == one.keys()
        for name, value in one.items():
            assert abs(value - two[name]).max() < 1e-11, name


def test_shares_make_up_the_batch():
    batches = torch.arange(24)  # two of 12
    for parts in (1, 3):
        made = [Share(rank, 4, parts).of(batches, 12).tolist() for rank in range(4)]
        assert sorted(place for share in made for place in share) == batches.tolist()
    assert Share(1, 4).of(batches, 12).tolist() == [3, 4, 5, 15, 16, 17]
    assert Share(1, 2, 3).of(batches, 12).tolist() == [2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23]
    assert even_sizes(7, 3) == (3, 2, 2)


def test_a_taken_port_is_a_sentence(monkeypatch):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for key, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(key, str(value))
        with pytest.raises(UserError, match=f"the port of 127.0.0.1:{port} is in use"):
            connect("cpu")
    assert launched._connected is None


def test_a_restart_goes_on_with_its_own_run_only(tmp_path):
    note = {"ranks": {"job": "abc 17"}}
    (tmp_path / "environment.json").write_text(json.dumps(note))
    begin = functools.partial(how_to_begin, tmp_path, False, True)
    assert begin(Ranks(job="abc 17")) == (True, False)  # the same launcher, with more processes
    assert begin(Ranks(job="abc 18")) == (False, True)  # another command of the same name
    assert begin(Ranks(job="abc 18", restarts=1)) == (True, False)
    assert begin(Ranks(job="xyz 18", restarts=1)) == (False, True)
    assert begin(Ranks()) == (False, True)
    (tmp_path / "environment.json").unlink()
    assert begin(Ranks(job="abc 18", restarts=1)) == (False, True)
    begin = functools.partial(how_to_begin, tmp_path, False, False)
    assert begin(Ranks(job="abc 18")) == (False, False)
    assert begin(Ranks(job="abc 18", restarts=1)) == (True, False)  # it died before it noted anything
    (tmp_path / "resume").mkdir()
    assert begin(Ranks(job="abc 18", restarts=1)) == (False, False)


def test_a_signal_that_comes_while_processes_agree_is_not_lost():
    stop = StopRequest()

    def exchange(number):
        stop.received = signal.SIGTERM  # after this process has said that nobody asked it
        return number

    run = object.__new__(StageRun)
    run.job = SimpleNamespace(
        ranks=SimpleNamespace(alone=False, any_number=exchange), stop=stop, device=torch.device("cpu")
    )
    run.step, run._stopping = 1, None
    run._agree_to_stop(last=False)
    assert run._stopping is None
    run._agree_to_stop(last=False)
    assert run._stopping == signal.SIGTERM


def meet_late(mine, patient):
    """Wait for the first process, which takes its time, though one was told to stop."""
    ranks._FAREWELL_SECONDS = 0.2
    mine.stopped = lambda: True
    if mine.is_main:
        time.sleep(1.5)
    mine.barrier(patient=patient)


def test_who_was_told_to_stop_waits_for_the_state_however_long_it_takes():
    assert in_processes(2, meet_late, True) == [("done", None)] * 2
    assert in_processes(2, meet_late, False)[1][0] == "RankFailed"


def test_processes_of_a_machine_share_its_cores_and_memory(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(16))
    whole, beside = available_bytes(), torch.device("meta")
    assert [default_workers(device) for device in (torch.device("cpu"), beside, None)] == [8, 15, 16]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert [default_workers(device) for device in (torch.device("cpu"), beside, None)] == [4, 7, 16]
    assert available_bytes() < 0.7 * whole
