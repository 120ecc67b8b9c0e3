"""Studies that run: resumed, stopped, killed, failing, side by side; cells are what training alone gives."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_studies import SHORT, bars

import longtail
from longtail.errors import UserError
from longtail.files import read_json
from longtail.studies import ledger, runner, worker
from longtail.studies.catalog import STUDIES
from longtail.studies.ledger import Ledger, code_version
from longtail.studies.rows import Row
from longtail.training.guard import Interrupted

PAIR = {"methods": ["cross_entropy", "gml"], "seeds": 2}


def written(folder="study"):
    """When each file of the cells was last written."""
    return {path: path.stat().st_mtime_ns for path in Path(folder, "cells").rglob("*") if path.is_file()}


def cell(row, seed=0, folder="study"):
    [found] = [path for path in Path(folder, "cells").glob(f"*-{row}-seed{seed}-*") if path.is_dir()]
    return found


def figures(result):
    return {run["run"]: run["figures"] for run in result.results["runs"]}


def test_a_finished_cell_is_never_run_twice_and_more_seeds_add_cells(run):
    first = run("methods", **PAIR)
    before, evaluated = written(), figures(first)
    assert first.exit_code == 0
    assert first.results["finished"] == 4
    again = run("methods", **PAIR)
    assert written() == before
    assert figures(again) == evaluated
    more = run("methods", methods=["cross_entropy", "gml"], seeds=3)
    assert {path: when for path, when in written().items() if path in before} == before
    assert more.results["finished"] == 6
    assert figures(more).items() >= evaluated.items()
    other = run("methods", **PAIR, optimiser={"lr": 0.05})  # another identity, other cells; the old ones stay
    assert {path: when for path, when in written().items() if path in before} == before
    assert not figures(other).keys() & evaluated.keys()


def test_a_cell_is_what_training_alone_gives(run):
    run("methods", **PAIR)
    for row in ("cross_entropy", "gml"):
        alone = longtail.train("bars.npz", method=row, seed=1, out=f"{row}-alone", quiet=True, **SHORT)
        kept = cell(row, 1)
        assert alone.evaluation == read_json(kept / "evaluation.json")
        assert (kept / "model.safetensors").read_bytes() == Path(f"{row}-alone/model.safetensors").read_bytes()


def test_a_shared_teacher_gives_the_very_same_student(run):
    result = run("switches")
    assert result.exit_code == 0
    sources = {entry["row"]: entry["stages_taken_from"] for entry in result.results["runs"]}
    first = cell("gml")
    assert sources["gml"] == {}
    for row, options in (
        ("own key out", {"exclude_own_key": True}),
        ("fixed temperature", {"learn_temperature": False}),
    ):
        assert sources[row] == {"teacher": first.name}
        alone = longtail.train("bars.npz", out=row, quiet=True, **SHORT, loss=options)
        kept = cell(row.replace(" ", "-"))
        assert alone.evaluation == read_json(kept / "evaluation.json")
        for file in ("model.safetensors", "teacher/model.safetensors"):
            assert (kept / file).read_bytes() == Path(row, file).read_bytes(), (row, file)
    assert sources["momentum encoder"] == sources["prior strength 0"] == {}


def test_a_shared_representation_gives_the_very_same_classifier(run):
    result = run("methods", methods=["crt", "lws", "ncm"])
    assert result.exit_code == 0, result.results
    sources = {entry["row"]: entry["stages_taken_from"] for entry in result.results["runs"]}
    taken = {"representation": cell("crt").name}
    assert sources == {"crt": {}, "lws": taken, "ncm": taken}
    for row in ("lws", "ncm"):
        alone = longtail.train("bars.npz", method=row, out=row, quiet=True, **SHORT)
        assert alone.evaluation == read_json(cell(row) / "evaluation.json")
        assert (cell(row) / "model.safetensors").read_bytes() == Path(row, "model.safetensors").read_bytes()


def test_a_cell_that_fails_is_told_and_tried_again(run, monkeypatch):
    real = worker.api.train

    def train(*args, **options):
        if options["method"] == "gml" and options["seed"] == 1:
            raise failure
        return real(*args, **options)

    monkeypatch.setattr(worker.api, "train", train)
    failures = {"the queue is <small>.": UserError("the queue is <small>."), "KeyError: 'a'": KeyError("a")}
    for told, failure in failures.items():
        result = run("methods", **PAIR)
        assert result.exit_code == 1
        assert (result.results["finished"], result.results["failed"]) == (3, 1)
        row = result.results["panels"][0]["rows"][1]
        assert (row["name"], row["seeds"], row["failed"]) == ("gml", [0], {"1": told})
        entry = Ledger(Path("study"), "methods")
        [name] = [run["run"] for run in result.results["runs"] if run["error"]]
        trace = entry.entry(Path(name).name).trace
        entry.__exit__()
        assert ("Traceback" in trace) == isinstance(failure, KeyError)
        for page in ("study.md", "study.html"):
            text = Path("study", page).read_text()
            assert "<small>" not in text
            assert "gml, seed 1: failed" in text
    before = written()
    monkeypatch.setattr(worker.api, "train", real)
    assert run("methods", **PAIR).exit_code == 0
    kept = {path for path, when in written().items() if before.get(path) == when}
    assert sum(path.name == "evaluation.json" for path in kept) >= 3


def test_other_code_is_asked_for_and_not_mixed(run, monkeypatch):
    run("methods", **PAIR)
    before = written()
    own = code_version()
    monkeypatch.setattr(ledger, "code_version", lambda: "feedfeedfeed")
    with pytest.raises(
        UserError, match=rf"4 finished cells in study .*{own}; this is feedfeedfeed.*--code keep.*--code anew"
    ):
        run("methods", **PAIR)
    assert written() == before
    kept = run("methods", methods=["cross_entropy", "gml"], seeds=3, code="keep")
    assert {path: when for path, when in written().items() if path in before} == before
    assert kept.results["code"] == sorted([own, "feedfeedfeed"])
    assert "trained by 2 versions of the code" in Path("study/study.md").read_text()
    # A teacher of the other code serves no cell of this one.
    assert all(entry["stages_taken_from"] == {} for entry in kept.results["runs"])
    assert run("methods", **PAIR).exit_code == 0  # kept once, kept for good
    monkeypatch.setattr(ledger, "code_version", lambda: "beefbeefbeef")
    anew = run("methods", methods=["cross_entropy", "gml"], seeds=3, code="anew")
    assert anew.results["code"] == ["beefbeefbeef"]
    times = written()
    assert all(times[path] > when for path, when in before.items() if path.name == "model.safetensors")


def test_half_a_cell_of_other_code_is_begun_anew(run, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(Interrupted):
            run("methods", methods=["gml"], epochs=2)
    half = cell("gml") / "config.yaml"
    before = half.stat().st_mtime_ns
    monkeypatch.setattr(ledger, "code_version", lambda: "feedfeedfeed")
    result = run("methods", methods=["gml"], epochs=2)
    assert half.stat().st_mtime_ns > before
    assert result.results["code"] == ["feedfeedfeed"]
    alone = longtail.train("bars.npz", out="alone", quiet=True, **{**SHORT, "epochs": 2})
    assert alone.evaluation == read_json(cell("gml") / "evaluation.json")


def stop_at(monkeypatch, step, number=signal.SIGINT):
    """Ctrl-C at that training step of the process."""
    from longtail.data.loading import ResidentLoader

    real, taken = ResidentLoader.load, 0

    def load(self, epoch, at):
        nonlocal taken
        taken += 1
        if taken == step:
            os.kill(os.getpid(), number)
        return real(self, epoch, at)

    monkeypatch.setattr(ResidentLoader, "load", load)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_inside_a_cell_it_goes_on_inside_it(run, tmp_path, number, code):
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 14, number)
        with pytest.raises(Interrupted, match=r"stopped with 1 of 2 cells over; the same command goes on") as caught:
            run("methods", methods=["cross_entropy", "gml"], epochs=2)
    assert caught.value.exit_code == code
    text = Path("study/study.md").read_text()
    assert "1 of 2 cells are not finished" in text
    assert (cell("gml") / "resume").exists()
    log = (cell("gml") / "metrics.jsonl").read_text()
    done = run("methods", methods=["cross_entropy", "gml"], epochs=2)
    assert done.exit_code == 0
    assert (cell("gml") / "metrics.jsonl").read_text().startswith(log)
    alone = longtail.train("bars.npz", out="alone", quiet=True, **{**SHORT, "epochs": 2})
    assert alone.evaluation == read_json(cell("gml") / "evaluation.json")


def test_two_processes_come_to_the_same_and_share_teachers(run):
    result = run("switches", jobs=2, out="two")
    assert result.exit_code == 0
    one = run("switches", out="one")
    assert figures(result) == figures(one)
    trained = [entry for entry in result.results["runs"] if "teacher" in entry["stage_seconds"]]
    assert len(trained) == 2  # of gml and of prior strength 0
    threads = {entry["threads"] for entry in result.results["hardware"]}
    assert threads == {max(1, runner.cores() // 2)}


def test_a_worker_that_dies_is_a_failed_cell_and_the_others_go_on(run, tmp_path):
    program = (
        "import os, sys\nfrom longtail.studies import workers\n"
        "from longtail.studies.study import study\n"
        "real = workers.Worker.start\n"
        "def start(self, job):\n"
        "    real(self, job)\n"
        "    if 'seed1' in job.cell and 'gml' in job.cell: os.kill(self._process.pid, 9)\n"
        "workers.Worker.start = start\n"
        f"result = study('methods', data='bars.npz', out='study', methods=['cross_entropy', 'gml'], seeds=2, jobs=2, "
        f"quiet=True, **{SHORT!r})\n"
        "sys.exit(result.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    record = read_json(Path("study/results.json"))
    assert (record["finished"], record["failed"]) == (3, 1)
    [failed] = [entry["error"] for entry in record["runs"] if entry["error"]]
    assert failed.startswith("its process was ended by signal 9")
    assert run("methods", **PAIR).exit_code == 0


def words(*more):
    return [
        *(sys.executable, "-m", "longtail", "study", "methods", "--data", "bars.npz", "--out", "study"),
        *("--methods", "cross_entropy", "gml", "--seeds", "2", "--epochs", "8", "--device", "cpu"),
        *("--batch_size", "8", "--queue.projection_dim", "8", "--checkpoint.every_seconds", "0", *more),
    ]


@pytest.mark.parametrize(
    ("jobs", "number"),
    [
        (2, signal.SIGKILL),
        pytest.param(1, signal.SIGKILL, marks=pytest.mark.check),
        pytest.param(2, signal.SIGTERM, marks=pytest.mark.check),
    ],
)
def test_a_study_is_killed_in_the_middle_and_goes_on(run, jobs, number):
    """As a machine that is switched off: what was finished stays, what was begun goes on from its last state."""
    process = subprocess.Popen(words("--jobs", str(jobs)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 120
    while not list(Path("study").glob("cells/*/resume/*")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 143), out
    assert number == signal.SIGKILL or "the same command goes on" in out
    begun = {path.parent.name: path.read_text() for path in Path("study").glob("cells/*/metrics.jsonl")}
    finished = {path.parent: path.stat().st_mtime_ns for path in Path("study").glob("cells/*/report.html")}
    # Workers whose study is gone stop by themselves, and let go of their folders.
    done = subprocess.run(words("--jobs", str(jobs)), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_json(Path("study/results.json"))["finished"] == 4
    for folder, when in finished.items():
        assert (folder / "report.html").stat().st_mtime_ns == when
    for name, log in begun.items():
        now = Path("study/cells", name, "metrics.jsonl").read_text()
        assert [strip(line) for line in now.splitlines()][: len(log.splitlines())] == [
            strip(line) for line in log.splitlines()
        ]


def strip(line):
    return {key: value for key, value in json.loads(line).items() if "second" not in key}


def test_a_study_folder_is_for_one_study_and_one_process(run, monkeypatch):
    run("methods", methods=["cross_entropy"])
    with pytest.raises(UserError, match="study holds the study methods"):
        run("switches")
    monkeypatch.setattr(ledger, "WAIT", 0.2)
    with Ledger(Path("study"), "methods"), pytest.raises(UserError, match="another process is at work on study"):
        run("methods", methods=["cross_entropy"])
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis is not empty.*chapter\.tex"):
        run("methods", out="thesis")
    assert [path.name for path in Path("thesis").iterdir()] == ["chapter.tex"]


def test_rows_of_the_same_options_are_one_run(run, monkeypatch):
    rows = (Row("gml", {"method": "gml"}), Row("as usual", {"method": "gml", "loss.exclude_own_key": False}))
    monkeypatch.setitem(STUDIES, "switches", replace(STUDIES["switches"], rows=lambda base: list(rows)))
    result = run("switches")
    assert [entry["row"] for entry in result.results["runs"]] == ["gml"]
    one, other = result.results["panels"][0]["rows"]
    assert one["figures"] == other["figures"]
    assert other["differences"]["top1"]["mean"] == 0


def test_bars_are_learnable():
    # Guards the tests above against comparing runs that learn nothing: the classes differ in their pixels.
    arrays = bars()
    columns = torch.from_numpy(arrays["test_images"]).float().mean(1)
    assert (columns[:, :6].reshape(-1, 3, 2).mean(2).argmax(1).numpy() == arrays["test_labels"]).mean() == 1
    assert np.bincount(arrays["train_labels"]).tolist() == [24, 9, 2]


def test_what_helps_is_chosen_by_validation_images(run):
    (rows,) = run("gml-plus").results["added"].values()
    first, *others = rows
    assert first == "gml"
    assert rows[first]["difference"] is None
    for name in others:
        gain = rows[name]["balanced_accuracy"]["mean"] - rows[first]["balanced_accuracy"]["mean"]
        assert rows[name]["difference"]["mean"] == pytest.approx(gain)
    log = [json.loads(line) for line in (cell("gml") / "metrics.jsonl").read_text().splitlines()]
    last = [line["val_balanced_accuracy"] for line in log if "val_balanced_accuracy" in line][-1]
    assert rows["gml"]["balanced_accuracy"]["mean"] == last
