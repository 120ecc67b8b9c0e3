"""Whole runs of the contrastive methods: stopped in each stage and resumed to the same bytes, then used."""

import pytest
import torch

import longtail
from longtail.config import replace_options
from longtail.methods import get_method
from longtail.methods.representation import LinearProbe
from longtail.models import Classifier
from longtail.training.guard import Interrupted
from longtail.training.neighbours import nearest, read_keys
from longtail.training.time_estimate import estimate_time
from whole_runs import run, stop_at_step

pytestmark = pytest.mark.usefixtures("one_thread")
RESULTS = ["model.safetensors", "model.json", "metrics.jsonl", "evaluation.json"]


def results(path):
    return {name: (path / name).read_bytes() for name in RESULTS}


CASES = [
    *(("infonce", {}), ("supcon", {"optimiser__ema": 0.9}), ("supcon_la", {}), ("paco", {}), ("proco", {})),
    *(("bcl", {}), ("bcl", {"teacher__kind": "frozen", "teacher__epochs": 1})),
]


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_a_stop_in_the_middle_of_an_epoch_resumes_to_the_same_bytes(
    name, changes, tmp_path, tiny_config, tiny_splits, monkeypatch
):
    config = tiny_config(method=name, decoupled__epochs=1, **changes)
    evaluation = run(tmp_path / "whole", config, tiny_splits)
    assert evaluation["top1"] > 0
    kinds = [get_method(name)] + ([LinearProbe] if name in ("infonce", "supcon") else [])
    for kind in kinds:
        path = tmp_path / kind.__name__
        stop_at_step(monkeypatch, kind, 3)
        with pytest.raises(Interrupted, match="its state is saved"):
            run(path, config, tiny_splits)
        monkeypatch.undo()
        run(path, config, tiny_splits, resume=True)
        assert results(path) == results(tmp_path / "whole"), kind


def test_a_finished_run_stands_for_the_representation(tmp_path, tiny_config, tiny_splits):
    config = tiny_config(method="infonce", decoupled__epochs=1)
    run(tmp_path / "first", config, tiny_splits)
    ready = tmp_path / "first" / "representation"
    evaluation = run(tmp_path / "second", replace_options(config, {"decoupled.run": str(ready)}), tiny_splits)
    assert evaluation["top1"] > 0
    ends = [Classifier.load(path).encoder.state_dict() for path in (ready, tmp_path / "second")]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    assert not (tmp_path / "first" / "representation" / "evaluation.json").exists()


@pytest.mark.parametrize("name", ["infonce", "supcon", "supcon_la", "bcl", "paco", "proco"])
def test_digits_from_training_to_prediction(name, tmp_path):
    options = {"method": name, "epochs": 2, "imbalance": 20, "device": "cpu", "decoupled": {"epochs": 2}}
    result = longtail.train("digits-lt", out=str(tmp_path / "run"), quiet=True, **options)
    assert result.evaluation["balanced_accuracy"] > 0.15
    model = longtail.load(tmp_path / "run")
    assert model.predict(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)).shape == (3, 10)


@pytest.mark.parametrize("name", ["infonce", "supcon", "supcon_la", "bcl", "paco", "proco"])
def test_the_time_of_every_stage_can_be_estimated(name, tiny_config, tiny_splits):
    config = tiny_config(method=name)
    times = estimate_time(config, tiny_splits, budget=0.2)
    assert [time.name for time in times] == [stage.name for stage in get_method(name).stages(config, name)]
    assert all(time.seconds > 0 for time in times)


def test_the_classifier_on_a_representation_is_trained_as_long_as_that(tiny_config):
    assert tiny_config(method="supcon", epochs=37).decoupled.epochs == 37
    assert tiny_config(method="supcon", epochs=37, decoupled__epochs=5).decoupled.epochs == 5
    assert tiny_config(method="crt", epochs=90).decoupled.epochs == 10


def test_the_report_of_paco_finds_nearest_training_images(tmp_path, tiny_config, tiny_splits):
    """Its queue holds projected keys: an image is looked up by what the momentum encoder and projection make of it."""
    run(tmp_path / "run", tiny_config(method="paco"), tiny_splits)
    model = Classifier.load(tmp_path / "run")
    keys = read_keys(tmp_path / "run", model)
    assert keys.features.shape == (24, 64)
    found = nearest(keys, model, tiny_splits.test.images[:5], 3)
    for row in found:
        assert [similarity for _, similarity in row] == sorted((s for _, s in row), reverse=True)
        assert len({image for image, _ in row}) == 3
        assert all(-1.001 <= similarity <= 1.001 for _, similarity in row)
