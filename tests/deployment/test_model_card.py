"""The card says what the records say, no more, and names stay text."""

import json
import re
import shlex
from dataclasses import asdict

import pytest
import yaml

from longtail.config import TrainConfig, replace_options
from longtail.deployment.export import export
from longtail.deployment.model_card import model_card
from longtail.models import Classifier


def card_of(run):
    return model_card(run, Classifier.load(run), "print(1)")


def head_of(text):
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_the_head_is_yaml_with_the_runs_figures(run):
    head, record = head_of(card_of(run)), json.loads((run / "evaluation.json").read_text())
    assert head["library_name"] == "longtail"
    assert head["pipeline_tag"] == "image-classification"
    (model,) = head["model-index"]
    (result,) = model["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {
        "accuracy": round(record["top1"], 4),
        "balanced_accuracy": round(record["balanced_accuracy"], 4),
    }
    assert result["dataset"] == {"name": "site_1", "type": "imagefolder"}
    assert "license" not in head


def test_figures_are_the_records(run):
    text, record = card_of(run), json.loads((run / "evaluation.json").read_text())
    low, high = record["intervals"]["balanced_accuracy"]
    value = 100 * record["balanced_accuracy"]
    assert re.search(rf"\| Balanced +\|.*\| +{value:.1f} \| +{100 * low:.1f} to {100 * high:.1f} \|", text)
    assert "| Few " in text
    assert re.search(r"\| Few +\| +0 tested of 1 class with fewer than 20 training images \| +- \|", text)
    assert "No test image, so nothing is known of 1 class: &lt;script&gt;" in text
    assert "193 training images, 42 test images" in text
    assert "7 epochs, seed 3" in text
    assert "longtail train site_1 \\\n  --method gml" in text
    assert "1.5 minutes" in text
    assert "the test images selected nothing" in text
    assert "uniform prior" in text


def test_no_path_of_the_machine_and_no_tracking(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config |= {"data": "/home/ann/mine/photos.csv", "root": "/home/ann/mine", "out": "/home/ann/run"}
    config |= {"pretrained": "hf-hub:timm/resnet18.a1_in1k", "device": "cuda:1"}
    config["teacher"] |= {"run": "/home/ann/teacher", "pretrained": "/home/ann/weights.pth"}
    config["source"] |= {"test": "/home/ann/mine/test.csv", "group_pattern": "/(site\\d+)/"}
    config["tracking"] = {"to": "wandb", "project": "secret"}
    config["loading"]["workers"] = 3
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    text = card_of(run)
    assert "/home" not in text
    command = shlex.split(re.search(r"```sh\n(.*?)```", text, re.DOTALL).group(1).replace("\\\n", ""))
    given = dict(zip(command[3::2], command[4::2], strict=True))
    assert command[:3] == ["longtail", "train", "photos.csv"]
    assert given == {
        "--method": "gml",
        "--root": "mine",
        "--pretrained": "hf-hub:timm/resnet18.a1_in1k",
        "--epochs": "7",
        "--source.test": "test.csv",
        "--source.group_pattern": r"/(site\d+)/",
        "--teacher.run": "teacher",
        "--teacher.pretrained": "weights.pth",
        "--seed": "3",
    }


def test_the_command_leaves_out_what_the_method_does_not_read(run):
    config = replace_options(
        TrainConfig(data="photos", method="cross_entropy"),
        {"queue.capacity": 77, "teacher.epochs": 5, "loss.scale": 4.0, "views.key": "none", "views.classifier": "none"},
    )
    (run / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    text = card_of(run)
    assert "--views.classifier none" in text
    assert not re.search("--(queue|teacher|loss|views.key)", text)
    (run / "config.yaml").write_text(yaml.safe_dump(asdict(config) | {"method": "someone_elses"}))
    assert "--queue.capacity 77" in card_of(run)


def test_a_model_of_one_answer_is_bad_at_the_rest(run):
    record = json.loads((run / "evaluation.json").read_text())
    assert "calls every" not in card_of(run)
    record["one_class"] = {"class": 0, "called": 42, "others": 12, "others_called": 12}
    (run / "evaluation.json").write_text(json.dumps(record))
    assert "calls every test image 'cat': 42 of 42, and 12 of the 12 images that are of another class" in card_of(run)


def test_names_stay_text(run):
    text = card_of(run)
    body = text.split("```")[0] + text.split("```", 2)[2]
    assert "<script>" not in body
    assert r"lynx \| \*big\*" in body
    assert r"\_underscores\_" in body
    rows = [line for line in body.splitlines() if line.startswith("| lynx")]
    assert rows
    assert all(len(re.findall(r"(?<!\\)\|", row)) in (5, 6) for row in rows)


def test_calibration_and_selection_are_told(calibrated):
    record = json.loads((calibrated / "evaluation.json").read_text())
    record |= {
        "selection": "best",
        "selected": {"epoch": 5, "of": 7, "figure": "val_balanced_accuracy", "value": 0.5, "images": 20},
        "calibrated": {"temperature": 1.7, "ece": 0.0712},
    }
    (calibrated / "evaluation.json").write_text(json.dumps(record))
    text = card_of(calibrated)
    assert "temperature of 1.7 was fitted on 20 validation images" in text
    assert "from 21.0 to 8.0 %" in text
    assert "With it that of the test images is 7.1 %" in text
    assert r"Epoch 5 of 7 was evaluated: the best by val\_balanced\_accuracy on 20 validation images" in text


@pytest.mark.parametrize(
    ("format", "uncalibrated", "said"),
    [
        ("torch", False, "divided by it inside"),
        ("torch", True, "not applied in this file: divide the logits by 1.7 first"),
        ("safetensors", False, "`predict` of the loaded model divide the logits by it"),
        ("card", False, "`predict` of the loaded model divide the logits by it"),
    ],
)
def test_where_the_temperature_is_applied(calibrated, format, uncalibrated, said):
    folder = export(calibrated, format=format, uncalibrated=uncalibrated, quiet=True)
    text = (folder / "README.md").read_text()
    ways = ("by it inside", "not applied in this file", "`predict` of the loaded model")
    assert said in text
    assert sum(way in text for way in ways) == 1


def test_without_records_it_claims_nothing(tmp_path, model):
    model.save(tmp_path)
    text = model_card(tmp_path, Classifier.load(tmp_path))
    assert "model-index" not in head_of(text)
    for absent in ("What it is bad at", "temperature", "Versions", "epochs", "How to use"):
        assert absent not in text
    assert re.search(r"\| cat +\| +0 \| +150 \| +- \|", text)


def test_thousands_of_classes_are_cut(tmp_path, model):
    model.save(tmp_path)
    classifier = Classifier.load(tmp_path)
    import torch

    classifier.class_names = tuple(f"class {k}" for k in range(5000))
    classifier.class_counts = torch.arange(5000, 0, -1)
    classifier.logit_prior = torch.full((5000,), 1 / 5000)
    text = model_card(tmp_path, classifier)
    assert len(text) < 10_000
    assert "10 largest and the 10 smallest of 5000" in text


@pytest.mark.parametrize("where", ["nowhere", None])
def test_the_card_alone(run, tmp_path, where):
    folder = export(run, format="card", out=None if where is None else tmp_path / where, quiet=True)
    assert [p.name for p in folder.iterdir()] == ["README.md"]
    assert "How to use" not in (folder / "README.md").read_text()
