"""Trackers get what metrics.jsonl holds, once, and can cost the run nothing."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
from accelerate.tracking import TensorBoardTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from longtail.methods.gml import GML
from longtail.options import make_config
from longtail.training.progress import ProgressReporter
from longtail.training.run_folder import RunFolder
from longtail.training.stages import run_stages
from longtail.training.tracking import Tracking, numbers

EPOCHS = [
    {"stage": "teacher", "epoch": 1, "step": 10, "lr": 0.1, "classifier": 3.0},
    {"stage": "teacher", "skipped_step": 12, "epoch": 2, "why": "loss"},
    {"stage": "teacher", "epoch": 2, "step": 20, "lr": 0.0, "classifier": 2.0},
    {"stage": "student", "epoch": 1, "step": 5, "lr": 0.1, "classifier": 1.5, "gml": 2.5},
    {"stage": "student", "epoch": 2, "step": 10, "lr": 0.1, "classifier": 1.25, "gml": 2.25},
]
FINAL = {"top1": 0.5, "class_names": ["a"], "selection": "last", "few": {"accuracy": None, "classes": 2}, "ok": True}

pytestmark = pytest.mark.usefixtures("one_thread")


def curves(path):
    """Return what TensorBoard shows: {name: [(step, value), ...]}."""
    events = EventAccumulator(str(path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def expected(path):
    """The same from metrics.jsonl, read without any of the tracking's code."""
    shown, before, last, stage = {}, 0, 0, None
    for record in map(json.loads, (path / "metrics.jsonl").read_text().splitlines()):
        if "step" not in record:
            continue
        if stage not in (None, record["stage"]):
            before += last
        stage, last = record["stage"], record["step"]
        for name in record.keys() - {"stage", "step"}:
            value = pytest.approx(record[name], rel=1e-6)
            shown.setdefault(f"{stage}/{name}", []).append((before + last, value))
    return shown


def write(path, records):
    path.mkdir(exist_ok=True)
    with open(path / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def tracking(path, to="tensorboard"):
    return Tracking(make_config({"data": "x", "tracking.to": to}), path, ProgressReporter())


def test_every_epoch_and_the_final_figures_arrive(tmp_path):
    write(tmp_path, [])
    with tracking(tmp_path) as tracker:
        for record in EPOCHS:
            write(tmp_path, [record])
            tracker.update()
        tracker.finish(FINAL)
    shown = curves(tmp_path)
    assert {name: shown.pop(name) for name in ("final/top1", "final/few/classes")} == {
        "final/top1": [(31, 0.5)],
        "final/few/classes": [(31, 2.0)],
    }
    assert shown == expected(tmp_path)
    assert shown["student/gml"] == [(25, 2.5), (30, 2.25)]


def test_a_resumed_run_goes_on_with_the_same_curve(tmp_path):
    for end in (1, 3, 5):  # each process knows of all epochs so far, and sends those that are new
        with tracking(tmp_path) as tracker:
            write(tmp_path, EPOCHS[len(expected_lines(tmp_path)) : end])
            tracker.update()
    assert curves(tmp_path) == expected(tmp_path)


def expected_lines(path):
    return (path / "metrics.jsonl").read_text().splitlines() if (path / "metrics.jsonl").exists() else []


def test_what_a_killed_process_sent_and_forgot_is_not_shown_twice(tmp_path):
    write(tmp_path, EPOCHS[:3])
    with tracking(tmp_path) as tracker:
        tracker.update()
        remembered = (tmp_path / "tracking.json").read_bytes()
        write(tmp_path, EPOCHS[3:])
        tracker.update()
        tracker.finish(FINAL)
    (tmp_path / "tracking.json").write_bytes(remembered)
    with tracking(tmp_path) as tracker:
        tracker.update()
        tracker.finish(FINAL)
    shown = curves(tmp_path)
    assert shown.pop("final/top1") == [(31, 0.5)]
    assert {name: values for name, values in shown.items() if not name.startswith("final/")} == expected(tmp_path)


def test_a_finished_run_sends_nothing_more(tmp_path):
    write(tmp_path, EPOCHS)
    with tracking(tmp_path) as tracker:
        tracker.update()
        tracker.finish(FINAL)
    files = sorted((tmp_path / "tensorboard").iterdir())
    with tracking(tmp_path) as tracker:
        tracker.update()
        tracker.finish(FINAL)
    assert sorted((tmp_path / "tensorboard").iterdir()) == files


class Killed(BaseException):
    """Stands for kill -9."""


def train(path, config, splits, **how):
    folder = RunFolder(path, **how)
    try:
        if not folder.holds_run:
            folder.write_config(config)
        reporter = ProgressReporter(quiet=True)
        with Tracking(config, path, reporter) as tracker:
            tracker.finish(run_stages(config, splits, folder, reporter, tracker.update))
    finally:
        folder.close()


def test_a_killed_and_resumed_run_has_the_curve_of_its_log(tmp_path, tiny_config, tiny_splits, monkeypatch):
    """The state is older than the last epoch that was sent: epochs are trained again, but not shown again."""
    real, taken = GML.forward, 0

    def forward(self, batch, progress):
        nonlocal taken
        taken += 1
        if taken == 14:
            raise Killed
        return real(self, batch, progress)

    monkeypatch.setattr(GML, "forward", forward)
    config = tiny_config(tracking__to="tensorboard", checkpoint__every_seconds=10**6, epochs=5)
    with pytest.raises(Killed):
        train(tmp_path / "run", config, tiny_splits)
    assert len(curves(tmp_path / "run")["student/gml"]) == 3
    train(tmp_path / "run", config, tiny_splits, resume=True)
    shown = curves(tmp_path / "run")
    assert len(shown["student/gml"]) == 5
    assert shown["final/top1"][0][1] == pytest.approx(
        json.loads((tmp_path / "run" / "evaluation.json").read_text())["top1"]
    )
    assert {name: values for name, values in shown.items() if not name.startswith("final/")} == expected(
        tmp_path / "run"
    )


def test_a_tracker_that_fails_is_named_once_and_the_run_goes_on(
    tmp_path, tiny_config, tiny_splits, monkeypatch, capsys
):
    calls = []

    def log(self, values, step=None):
        calls.append(step)
        raise OSError("No space left on device\nand more")

    monkeypatch.setattr(TensorBoardTracker, "log", log)
    config = tiny_config(tracking__to="tensorboard")
    folder = RunFolder(tmp_path / "run")
    folder.write_config(config)
    with Tracking(config, folder.path, ProgressReporter()) as tracker:
        evaluation = run_stages(config, tiny_splits, folder, ProgressReporter(quiet=True), tracker.update)
        tracker.finish(evaluation)
    folder.close()
    assert len(calls) == 1
    out = capsys.readouterr().out
    assert out.count("--tracking.to tensorboard failed (No space left on device)") == 1
    assert (tmp_path / "run" / "evaluation.json").exists()


@pytest.mark.parametrize(("to", "missing"), [("tensorboard", "accelerate"), ("wandb", "wandb")])
def test_missing_packages_are_told_before_anything_is_read(desk, monkeypatch, to, missing):
    monkeypatch.setattr("longtail.training.tracking.find_spec", lambda name: None if name == missing else name)
    words = ["train", "nowhere.npz", "--out", "run", "--tracking.to", to]
    desk.refuse(*words, naming=[f"--tracking.to {to} needs {missing}", "longtail[tracking]"])


def test_the_options_may_be_given_anew(desk):
    """A run that was started without a tracker is sent when it is resumed with one, all of it."""
    words = "train digits-lt --method cross_entropy --epochs 2 --device cpu --out run --quiet".split()
    desk.run(*words)
    assert not (desk.folder / "run" / "tracking.json").exists()
    desk.run(*words, "--resume", "--tracking.to", "tensorboard", "--tracking.project", "birds")
    shown = curves(desk.folder / "run")
    assert [step for step, _ in shown["train/classifier"]] == [10, 20]
    assert "final/balanced_accuracy" in shown
    desk.run(*words, "--overwrite")
    assert not (desk.folder / "run" / "tensorboard").exists()
    assert not (desk.folder / "run" / "tracking.json").exists()


def test_numbers():
    assert dict(numbers(FINAL)) == {"top1": 0.5, "few/classes": 2}


# --- Weights & Biases, by a stand-in: its server cannot be asked here


class StandIn(ModuleType):
    """What of ``wandb`` is used: a server that keeps runs by id, and refuses steps that it has."""

    def __init__(self, logged_in=True, reachable=True):
        super().__init__("wandb")
        self.logged_in, self.reachable, self.runs, self.inits = logged_in, reachable, {}, []
        self.config = SimpleNamespace(update=lambda values, allow_val_change: self.configs.append(values))
        self.configs, self.torn = [], 0

    def Settings(self, **settings):
        return settings

    def setup(self, settings):
        assert settings["silent"]

    def login(self, prompt, verify):
        assert not prompt
        assert not verify
        return self.logged_in

    def teardown(self):
        self.torn += 1

    def init(self, project, **arguments):
        self.inits.append({"project": project, **arguments})
        offline = arguments.get("mode") == "offline"
        if not offline and not self.reachable:
            raise TimeoutError("no answer")
        history = [] if offline else self.runs.setdefault(arguments["id"], [])
        if offline:
            self.runs.setdefault(f"offline {len(self.inits)}", history)

        def log(values, step):
            assert not history or step > history[-1][0], "steps must rise"
            history.append((step, values))

        start = history[-1][0] + 1 if history else 0
        return SimpleNamespace(
            log=log, finish=lambda: None, offline=offline, starting_step=start, dir="d/files", url="https://wandb/x"
        )


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def put(**how):
        module = StandIn(**how)
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    return put


def test_wandb_goes_on_where_its_server_is(tmp_path, wandb, capsys):
    module = wandb()
    write(tmp_path, EPOCHS[:3])
    with tracking(tmp_path, "wandb") as tracker:
        tracker.update()
    write(tmp_path, EPOCHS[3:])
    with tracking(tmp_path, "wandb") as tracker:
        tracker.update()
        tracker.finish(FINAL)
    first, second = module.inits
    assert first["id"] == second["id"]
    assert (first["project"], first["resume"], first["settings"]["console"]) == ("longtail", "allow", "off")
    [history] = module.runs.values()
    assert [step for step, _ in history] == [10, 20, 25, 30, 31]
    assert history[2][1] == {"student/epoch": 1, "student/lr": 0.1, "student/classifier": 1.5, "student/gml": 2.5}
    assert history[-1][1] == {"final/top1": 0.5, "final/few/classes": 2}
    assert module.configs[0]["tracking.to"] == "wandb"
    assert "wandb: https://wandb/x" in capsys.readouterr().out


@pytest.mark.parametrize("how", [{"logged_in": False}, {"reachable": False}])
def test_wandb_offline_writes_the_whole_curve_in_each_process(tmp_path, wandb, capsys, how):
    module = wandb(**how)
    for end in (3, 5):
        write(tmp_path, EPOCHS[len(expected_lines(tmp_path)) : end])
        with tracking(tmp_path, "wandb") as tracker:
            tracker.update()
    assert [[step for step, _ in history] for history in module.runs.values()] == [[10, 20], [10, 20, 25, 30]]
    out = capsys.readouterr().out
    assert out.count("wandb works offline: ") == 2
    assert "send the run later with: wandb sync d" in out
    assert ("nobody is logged in" in out) == ("logged_in" in how)
    assert module.torn == (2 if "reachable" in how else 0)


def test_a_mode_that_was_chosen_is_kept(tmp_path, wandb, monkeypatch, capsys):
    module = wandb(reachable=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    write(tmp_path, EPOCHS)
    with tracking(tmp_path, "wandb") as tracker:
        tracker.update()
    assert len(module.inits) == 1
    assert "--tracking.to wandb failed (no answer)" in capsys.readouterr().out
