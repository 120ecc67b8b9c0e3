"""The command that trains a run again."""

from dataclasses import asdict

from longtail.config import TrainConfig, replace_options
from longtail.reporting.reproduce import reproduce_command


def test_it_names_what_was_chosen_and_leaves_out_what_changes_no_figure():
    options = {"seed": 3, "out": "run", "device": "cpu", "epochs": 7, "source.test": "/data/my test"}
    apart = {"tracking.to": "wandb", "tracking.project": "mine", "loading.workers": 3, "checkpoint.bad_steps": 4}
    config = asdict(replace_options(TrainConfig(data="/data/photos"), options | apart))
    words = ["longtail train {}", "--method gml", "--epochs 7", "--source.test {}", "--seed 3"]
    full = " \\\n  ".join(words)
    assert reproduce_command(config) == full.format("/data/photos", "'/data/my test'")
    assert reproduce_command(config, short_paths=True) == full.format("photos", "'my test'")


def test_what_is_no_path_keeps_its_whole_name():
    config = {"data": "x", "method": "gml", "pretrained": "open_clip:ViT-B/16.openai", "start": {"prompts": "a/b.txt"}}
    command = reproduce_command(config, short_paths=True)
    assert "--pretrained open_clip:ViT-B/16.openai " in command
    assert "--start.prompts b.txt" in command
