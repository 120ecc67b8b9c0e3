"""Whole runs: the same bytes again, after a crash at any write, after Ctrl-C; bad steps never enter the state."""

import contextlib
import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from longtail.config import replace_options
from longtail.errors import UserError
from longtail.methods.gml import GML
from longtail.models import Classifier
from longtail.training.guard import Diverged, Interrupted
from longtail.training.run_folder import RunFolder
from whole_runs import run, stop_at_step

RESULTS = ["model.safetensors", "model.json", "metrics.jsonl", "evaluation.json", "per_class.csv"]
RESULTS += [f"teacher/{name}" for name in ("model.safetensors", "model.json", "evaluation.json")]


def assert_finite(path):
    """Every tensor of the newest state is finite."""
    (state,) = (path / "resume").glob("state-*")
    for name, value in load_file(state / "state.safetensors").items():
        assert bool(torch.isfinite(value.float()).all()), name


def results(path):
    return {name: (path / name).read_bytes() for name in RESULTS if (path / name).exists()}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def finished(tmp_path, tiny_config, tiny_splits):
    """An uninterrupted run with a learned temperature, distillation and a moving average: every part has state."""
    config = tiny_config(optimiser__ema=0.9, optimiser__name="adamw", optimiser__clip_norm=1.0)
    run(tmp_path / "whole", config, tiny_splits)
    return config, results(tmp_path / "whole")


def test_same_seed_same_bytes_and_another_seed_another_model(finished, tmp_path, tiny_splits):
    config, expected = finished
    assert set(expected) == set(RESULTS)
    torch.manual_seed(123)  # the caller's generator must not matter, nor be moved
    before = torch.get_rng_state()
    run(tmp_path / "again", config, tiny_splits)
    assert torch.equal(torch.get_rng_state(), before)
    assert results(tmp_path / "again") == expected
    run(tmp_path / "other", replace_options(config, {"seed": 1}), tiny_splits)
    assert results(tmp_path / "other")["model.safetensors"] != expected["model.safetensors"]


def test_a_crash_at_any_write_resumes_to_the_same_bytes(finished, tiny_splits, crash_at_every_write):
    config, expected = finished
    # config, four epochs' states (three files each), two models and evaluations of several files each, environment.
    least = 20
    for path in crash_at_every_write(least, lambda path, resume: run(path, config, tiny_splits, resume=resume)):
        assert results(path) == expected, path.name


@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_a_stop_at_any_step_saves_and_resumes_to_the_same_bytes(step, finished, tmp_path, tiny_splits, monkeypatch):
    config, expected = finished
    path = tmp_path / "stopped"
    stop_at_step(monkeypatch, GML, step)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="its state is saved") as stop:
        run(path, config, tiny_splits)
    assert stop.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is handler
    run(path, config, tiny_splits, resume=True)
    assert results(path) == expected


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(finished, tmp_path, tiny_splits):
    config, expected = finished
    run(tmp_path / "whole", config, tiny_splits, resume=True)
    assert results(tmp_path / "whole") == expected


@pytest.mark.parametrize("bad", ["loss", "gradient", "features"])
def test_a_bad_step_is_named_and_skipped_and_leaves_no_trace(bad, tmp_path, tiny_config, tiny_splits, monkeypatch):
    """Step 5 of the student is poisoned; every tensor of every state must stay finite, the others steps are taken."""
    real, steps = GML.forward, []

    def forward(self, batch, progress):
        steps.append(len(steps))
        if len(steps) == 6:
            if bad == "features":  # as a broken layer would: it reaches BatchNorm before the loss is seen
                batch.views["query"][0] = float("nan")
            losses = real(self, batch, progress)
            if bad == "loss":
                losses["gml"] = losses["gml"] * float("inf")
            if bad == "gradient":
                losses["gml"] = losses["gml"] * 1e30
            return losses
        return real(self, batch, progress)

    monkeypatch.setattr(GML, "forward", forward)
    config = tiny_config(optimiser__ema=0.9)
    run(tmp_path / "run", config, tiny_splits)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    skipped = [line for line in lines if "skipped_step" in line]
    assert [(line["stage"], line["skipped_step"], line["epoch"]) for line in skipped] == [("student", 5, 2)]
    assert ("gradient" if bad == "gradient" else "loss") in skipped[0]["why"]
    assert lines[-1]["steps_taken"] == 3
    assert_finite(tmp_path / "run")


def test_a_bad_key_view_never_reaches_the_queue(tmp_path, tiny_config, tiny_splits, monkeypatch):
    real = GML.update_memory

    def update_memory(self, batch):
        batch.views["key"][0] = float("inf")
        real(self, batch)

    monkeypatch.setattr(GML, "update_memory", update_memory)
    run(tmp_path / "run", tiny_config(), tiny_splits)
    state = load_file(next((tmp_path / "run" / "resume").glob("state-*")) / "state.safetensors")
    assert bool(torch.isfinite(state["method.queue.features"]).all())
    assert bool(state["method.queue.filled"].all())


def test_many_bad_steps_end_the_run_with_the_last_good_state(tmp_path, tiny_config, tiny_splits, monkeypatch):
    real, taken, good = GML.forward, 0, {}

    def forward(self, batch, progress):
        nonlocal taken
        taken += 1
        losses = real(self, batch, progress)
        if taken == 3:
            good.update({name: value.detach().clone() for name, value in self.encoder.named_parameters()})
        if taken >= 3:
            losses["classifier"] = losses["classifier"] * float("nan")
        return losses

    monkeypatch.setattr(GML, "forward", forward)
    with pytest.raises(Diverged, match=r"3 steps in a row.*student.*loss 'classifier' is nan.*kept in"):
        run(tmp_path / "run", tiny_config(checkpoint__bad_steps=3), tiny_splits)
    state = load_file(next((tmp_path / "run" / "resume").glob("state-*")) / "state.safetensors")
    assert good
    for name, value in good.items():
        assert torch.equal(state[f"method.encoder.{name}"], value)


def test_a_run_that_diverges_at_the_end_of_an_epoch_resumes_into_the_next(
    tmp_path, tiny_config, tiny_splits, monkeypatch
):
    """The epoch is written before the state: after the fault is gone, its figures do not enter the next one's."""
    real, taken = GML.forward, 0

    def forward(self, batch, progress):
        nonlocal taken
        taken += 1
        losses = real(self, batch, progress)
        if taken in (3, 4):  # the last two steps of the student's first epoch
            losses["classifier"] = losses["classifier"] * float("nan")
        return losses

    monkeypatch.setattr(GML, "forward", forward)
    config = tiny_config(checkpoint__bad_steps=2)
    with pytest.raises(Diverged):
        run(tmp_path / "run", config, tiny_splits)
    run(tmp_path / "run", config, tiny_splits, resume=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    epochs = [(line["epoch"], line["steps_taken"]) for line in lines if line["stage"] == "student" and "lr" in line]
    assert epochs == [(1, 2), (2, 4)]


def test_a_rate_far_too_high_ends_in_a_sentence_not_in_nan(tmp_path, tiny_config, tiny_splits):
    config = tiny_config(optimiser__lr=1000.0, optimiser__weight_decay=1e-3, optimiser__ema=0.9, epochs=8)
    with contextlib.suppress(Diverged):
        run(tmp_path / "run", config, tiny_splits)
    assert_finite(tmp_path / "run")


def test_a_variance_that_overflows_under_finite_losses_is_seen(tmp_path, tiny_config, tiny_splits, monkeypatch):
    """BatchNorm divides by it, so features and losses stay finite while the statistic is lost for good."""
    real, taken = GML.forward, 0

    def forward(self, batch, progress):
        nonlocal taken
        taken += 1
        losses = real(self, batch, progress)
        if taken == 2:
            norm = next(m for m in self.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d))
            norm.running_var.data[0] = float("inf")  # past autograd, as an overflow in the layer itself would be
        return losses

    monkeypatch.setattr(GML, "forward", forward)
    run(tmp_path / "run", tiny_config(optimiser__ema=0.9), tiny_splits)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["why"] for line in lines if "skipped_step" in line] == ["a BatchNorm statistic is not finite"]
    assert_finite(tmp_path / "run")


def test_a_cached_teacher_resumes_alike(tmp_path, tiny_config, tiny_splits, monkeypatch):
    """The cache is in no checkpoint: it is filled again, and every later draw is the same."""
    config = tiny_config(teacher__cache=2)
    run(tmp_path / "whole", config, tiny_splits)
    stop_at_step(monkeypatch, GML, 6, signal.SIGTERM)  # in the student's second epoch
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", config, tiny_splits)
    run(tmp_path / "stopped", config, tiny_splits, resume=True)
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")


def test_bfloat16_trains_and_resumes_alike(tmp_path, tiny_config, tiny_splits, monkeypatch):
    config, real, seen = tiny_config(precision="bfloat16"), GML.forward, []
    run(tmp_path / "whole", config, tiny_splits)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["steps_taken"] for line in lines] == [4, 4, 4, 4]

    def forward(self, batch, progress):
        hook = self.encoder.register_forward_hook(lambda module, inputs, features: seen.append(features.dtype))
        losses = real(self, batch, progress)
        hook.remove()
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses

    monkeypatch.setattr(GML, "forward", forward)
    with pytest.raises(Interrupted) as stop:
        run(tmp_path / "stopped", config, tiny_splits)
    assert stop.value.exit_code == 143
    run(tmp_path / "stopped", config, tiny_splits, resume=True)
    assert set(seen) == {torch.bfloat16}
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")


@pytest.mark.parametrize("part", ["train", "test"])
def test_changed_data_is_noticed(part, finished, tmp_path, tiny_splits):
    config, _ = finished
    before = getattr(tiny_splits, part)
    images = before.images.clone()
    images[0, 0, 0, 0] += 1
    changed = replace(tiny_splits, **{part: replace(before, images=images)})
    with pytest.raises(UserError, match="the data is not what the run"):
        run(tmp_path / "whole", config, changed, resume=True)


def test_evaluated_and_taught_by_the_moving_average(tmp_path, tiny_config, tiny_splits):
    """With EMA on, the model saved is the average: its weights differ from those trained, and are in the state."""
    run(tmp_path / "run", tiny_config(optimiser__ema=0.9), tiny_splits)
    state = load_file(next((tmp_path / "run" / "resume").glob("state-*")) / "state.safetensors")
    model = Classifier.load(tmp_path / "run")
    name, saved = next(iter(model.encoder.named_parameters()))
    assert torch.equal(saved, state["average.value_0"])
    assert not torch.equal(saved, state[f"method.encoder.{name}"])
    teacher = Classifier.load(tmp_path / "run" / "teacher")
    assert torch.equal(state[f"method.teacher.encoder.{name}"], dict(teacher.encoder.named_parameters())[name])


def test_two_processes_cannot_write_one_run(tmp_path):
    first = RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match="another process is writing"):
        RunFolder(tmp_path / "run", resume=True)
    first.close()
    RunFolder(tmp_path / "run").close()


def test_overwrite_deletes_the_run_and_nothing_else(tmp_path, finished, tiny_splits):
    _config, _expected = finished
    path = tmp_path / "whole"
    (path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"--resume.*--overwrite"):
        RunFolder(path)
    RunFolder(path, overwrite=True).close()
    assert sorted(entry.name for entry in path.iterdir()) == [".lock", "notes.txt"]


def test_leftovers_of_a_killed_process_go_and_a_half_deleted_run_still_counts(tmp_path, finished):
    path = tmp_path / "whole"
    (path / ".model.safetensors.77.tmp").write_bytes(b"half")
    RunFolder(path, resume=True).close()
    assert not list(path.glob(".*.tmp"))
    (path / "evaluation.json").unlink()  # as if --overwrite had been killed
    with pytest.raises(UserError, match="already holds a run"):
        RunFolder(path)
