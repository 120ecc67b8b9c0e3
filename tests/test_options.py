"""Options: one meaning from words, YAML and keywords, and one sentence where a value cannot be meant."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from longtail.cli import split_words
from longtail.config import TrainConfig, flatten, get_option, replace_options
from longtail.errors import UserError
from longtail.options import OPTION_NAMES, check_name, make_config, parse_values, parse_words, read_recipe

EVERY_OPTION = """
backbone batch_size capture checkpoint.bad_steps checkpoint.every_seconds data decoupled.epochs decoupled.run
decoupled.tau device epochs evaluate_every folds group_edges image_size imbalance loading.interpolation
loading.prefetch loading.resident loading.resize loading.workers loss.class_pooling loss.class_weights
loss.classifier_weight loss.contrast_weight loss.deferred_from loss.distillation_temperature loss.distillation_weight
loss.effective_beta loss.exclude_own_key loss.focal_gamma loss.learn_temperature loss.max_margin loss.mixup
loss.paco_alpha loss.post_hoc_strength loss.prior_strength loss.scale loss.supcon_log loss.temperature method
on_bad_image optimiser.accumulate optimiser.clip_norm optimiser.decay optimiser.ema optimiser.lr optimiser.milestones
optimiser.momentum optimiser.name optimiser.schedule optimiser.shard optimiser.sharpness optimiser.warmup
optimiser.weight_decay out precision pretrained queue.capacity queue.fresh_share queue.kind queue.min_per_class
queue.project queue.projection_dim queue.sharded root sampler seed
segmentation.crop segmentation.decoder segmentation.flip segmentation.ignore
segmentation.image_edges segmentation.keys_per_class segmentation.overlap_weight segmentation.palette
segmentation.pixel_edges segmentation.prior segmentation.queries segmentation.queries_per_class
segmentation.queue_share segmentation.rare_crops segmentation.region_weight segmentation.resize segmentation.scale
segmentation.stride segmentation.test_mirror segmentation.test_scales segmentation.width segmentation.window
segmentation.zero_is_other select source.check source.fold source.group_column source.group_pattern source.label_column
source.labels source.mean source.path_column source.profile source.repeats source.split_column source.split_seed
source.std source.test source.test_share source.unknown_labels start.head start.prompts task teacher.backbone
teacher.cache teacher.epochs teacher.kind teacher.momentum teacher.pretrained teacher.run tracking.project tracking.to
tune.encoder_lr tune.kind tune.lr_decay tune.prompts tune.rank val_fraction views.classifier views.key views.query
""".split()

WORDS = """
--method gml --epochs 7 --batch-size 16 --imbalance 50 --seed 3 --out runs/a --loss.learn-temperature false
--loss.temperature 0.07 --queue.capacity=512 --teacher.kind momentum --optimiser.lr 1e-3
--optimiser.milestones [0.5,0.75] --optimiser.ema null --precision bfloat16
""".split()
KEYWORDS = {
    "method": "gml",
    "epochs": 7,
    "batch_size": 16,
    "imbalance": 50,
    "seed": 3,
    "out": Path("runs/a"),
    "loss": {"learn_temperature": False, "temperature": 0.07},
    "queue.capacity": 512,
    "teacher": {"kind": "momentum"},
    "optimiser": {"lr": 0.001, "milestones": (0.5, 0.75), "ema": None},
    "precision": "bfloat16",
}
YAML = """
method: gml
epochs: 7
batch-size: 16
imbalance: 50
seed: 3
out: runs/a
loss:
  learn_temperature: no
  temperature: 0.07
queue.capacity: 512
teacher: {kind: momentum}
optimiser:
  lr: 1e-3          # which YAML 1.1 takes for text
  milestones:
  - 0.5
  - 0.75
  ema:
precision: bfloat16
views:
  # classifier: light
"""
MEANT = dataclasses.replace(
    TrainConfig(),
    method="gml",
    epochs=7,
    batch_size=16,
    imbalance=50.0,
    seed=3,
    out="runs/a",
    loss=dataclasses.replace(TrainConfig().loss, learn_temperature=False, temperature=0.07),
    queue=dataclasses.replace(TrainConfig().queue, capacity=512),
    teacher=dataclasses.replace(TrainConfig().teacher, kind="momentum"),
    optimiser=dataclasses.replace(TrainConfig().optimiser, lr=0.001, milestones=[0.5, 0.75]),
    precision="bfloat16",
)


def from_words(words):
    _, _, pairs = split_words(words, check=check_name)
    return make_config(parse_words([f"--{name}={value}" for name, value in pairs.items()]))


def refused(call):
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert text[-1] in ".?"
    return text


def test_options_do_not_multiply_unnoticed():
    # A new option belongs in this list, in the docstring of its group, and in nobody's way: think twice.
    assert sorted(OPTION_NAMES) == EVERY_OPTION


def test_words_keywords_and_yaml_mean_the_same():
    assert from_words(WORDS) == MEANT
    assert make_config(parse_values(KEYWORDS, "train")) == MEANT
    assert make_config(parse_values(yaml.safe_load(YAML), "file")) == MEANT


def test_types_are_those_of_the_dataclasses():
    given = parse_words(["--imbalance=50", "--optimiser.lr=1", "--out=123", "--loss.exclude_own_key=true"])
    assert given == {"imbalance": 50.0, "optimiser.lr": 1.0, "out": "123", "loss.exclude_own_key": True}
    assert [type(given[key]) for key in ("imbalance", "optimiser.lr", "out")] == [float, float, str]


def test_only_what_was_given_is_set():
    assert parse_words([]) == {}
    assert parse_values({}, "train") == {}
    assert parse_values({"loss": {"scale": 16}}, "train") == {"loss.scale": 16.0}
    assert parse_values({"queue": None, "loss": {}}, "train") == {}


def test_flatten_and_replace_are_inverse():
    assert replace_options(TrainConfig(), flatten(MEANT)) == MEANT
    assert flatten(MEANT)["optimiser.milestones"] == [0.5, 0.75]
    assert get_option(MEANT, "queue.capacity") == 512


def test_written_config_is_read_back(tmp_path):
    text = yaml.safe_dump(dataclasses.asdict(dataclasses.replace(MEANT, data="a.npz")))
    assert make_config(parse_values(yaml.safe_load(text), "config.yaml")) == dataclasses.replace(MEANT, data="a.npz")


def test_split_words():
    places, flags, pairs = split_words(
        "a --out x --batch-size=8 --quiet b --seed -1 --out=y=z".split(), flags=("quiet",), check=lambda name: None
    )
    assert places == ["a", "b"]
    assert flags == {"quiet"}
    assert pairs == {"out": "y=z", "batch_size": "8", "seed": "-1"}


def test_split_words_of_a_list():
    words = "a --methods x y,z --out o b".split()
    places, _, pairs = split_words(words, check=lambda name: None, lists=("methods",))
    assert places == ["a", "b"]
    assert pairs == {"methods": "x y,z", "out": "o"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--epochs", "--epochs needs a value."),
        ("--epochs --quiet", "--epochs needs a value."),
        ("--out=", "--out needs a value."),
        ("--quiet=yes", "--quiet takes no value."),
        ("-q", "unknown option -q; options are written --name."),
    ],
)
def test_words_that_are_no_option_with_a_value(words, message):
    assert refused(lambda: split_words(words.split(), flags=("quiet",), check=lambda name: None)) == message


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("methd", "--method"),
        ("lr", "--optimiser.lr"),
        ("temperature", "--loss.temperature"),
        ("optimizer.weight_decay", "--optimiser.weight_decay"),
        ("queue.size", "--queue."),
        ("loss", "--loss.temperature"),
        ("resum", "--resume"),
        ("zzz", "longtail train --help"),
    ],
)
def test_unknown_option_names_near_ones(name, near):
    text = refused(lambda: check_name(name, ("resume",)))
    assert text.startswith(f"unknown option --{name}; ")
    assert near in text


@pytest.mark.parametrize(
    ("key", "value", "need"),
    [
        ("epochs", "abc", "a whole number"),
        ("epochs", "1.5", "a whole number"),
        ("epochs", "nan", "a whole number"),
        ("epochs", "true", "a whole number"),
        ("seed", "null", "a whole number"),
        ("imbalance", "ten", "a finite number"),
        ("optimiser.lr", "inf", "a finite number"),
        ("optimiser.lr", "[1]", "a finite number"),
        ("loss.learn_temperature", "maybe", "true or false"),
        ("optimiser.milestones", "0.5", "a list of numbers such as [0.8, 0.9]"),
        ("optimiser.name", "sdg", "one of sgd, adamw"),
        ("optimiser.schedule", "cos", "one of cosine, poly, step, constant"),
        ("teacher.kind", "mean", "one of frozen, pretrained, momentum, none"),
        ("select", "first", "one of last, best"),
    ],
)
def test_wrong_type_says_option_need_and_value(key, value, need):
    assert refused(lambda: parse_words([f"--{key}={value}"])) == f"--{key} must be {need}, got {value}."
    assert refused(lambda: parse_values({key: value}, "file")) == f"file: --{key} must be {need}, got {value}."


def test_wrong_type_of_a_keyword():
    assert refused(lambda: parse_values({"epochs": 3.0}, "train")) == "train: --epochs must be a whole number, got 3.0."
    assert refused(lambda: parse_values({"method": 3}, "train")) == "train: --method must be text, got 3."


def test_data_is_a_place():
    assert "without --data: longtail train x.npz" in parse_error("--data=x.npz")
    assert parse_values({"data": Path("x.npz")}, "recipe") == {"data": "x.npz"}


def parse_error(*words):
    with pytest.raises(UserError) as caught:
        parse_words(words)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "need"),
    [
        ("epochs", 0, "above 0"),
        ("epochs", -1, "above 0"),
        ("teacher.epochs", 0, "above 0"),
        ("batch_size", 0, "above 0"),
        ("queue.capacity", 0, "above 0"),
        ("loss.temperature", 0.0, "above 0"),
        ("loss.temperature", float("nan"), "a finite number"),
        ("optimiser.lr", float("inf"), "a finite number"),
        ("optimiser.lr", 0.0, "above 0"),
        ("optimiser.lr", 1001.0, "at most 1000"),
        ("optimiser.weight_decay", -0.1, "0 or above"),
        ("optimiser.momentum", 1.0, "at least 0 and below 1"),
        ("optimiser.ema", -0.1, "at least 0 and below 1"),
        ("optimiser.warmup", 1.0, "at least 0 and below 1"),
        ("optimiser.milestones", [0.5, 1.0], "shares of the epochs, between 0 and 1"),
        ("teacher.momentum", float("nan"), "a finite number"),
        ("imbalance", 0.5, "1 or above (largest over smallest class)"),
        ("seed", -1, "0 or above"),
        ("checkpoint.bad_steps", 0, "above 0"),
        ("evaluate_every", -1, "0 or above"),
        ("val_fraction", 1.0, "at least 0 and below 1"),
        ("val_fraction", -0.1, "at least 0 and below 1"),
        ("val_fraction", float("nan"), "a finite number"),
        ("out", "", "a text that is not empty"),
    ],
)
def test_values_that_cannot_be_meant(key, value, need):
    assert refused(lambda: make_config({key: value})) == f"--{key} must be {need}, got {value}."


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 1),
        ("loss.distillation_weight", 0.0),
        ("loss.prior_strength", 0.0),
        ("optimiser.weight_decay", 0.0),
        ("optimiser.momentum", 0.0),
        ("optimiser.warmup", 0.0),
        ("imbalance", 1.0),
        ("checkpoint.every_seconds", 0.0),
        ("seed", 2**70),
    ],
)
def test_values_at_the_edge_are_taken(key, value):
    assert get_option(make_config({key: value}), key) == value


def test_recipe_of_the_user(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(YAML)
    assert make_config(read_recipe(str(file))) == MEANT


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("epoch: 3", ["mine.yaml", "--epoch;", "--epochs"]),
        ("loss:\n  temprature: 1", ["mine.yaml", "--loss.temprature;", "--loss.temperature"]),
        ("loss: 3", ["mine.yaml", "--loss;", "--loss.temperature"]),
        ("epochs: many", ["mine.yaml", "--epochs must be a whole number, got many."]),
        ("- epochs", ["mine.yaml", "mapping"]),
        ("", ["mine.yaml", "mapping"]),
        ("seed: 1\nepochs: [1", ["mine.yaml", "not YAML: line 2: "]),
        ("1: 2", ["mine.yaml", "--1;"]),
    ],
)
def test_recipe_of_the_user_with_a_mistake(tmp_path, text, parts):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    message = refused(lambda: read_recipe(str(file)))
    for part in parts:
        assert part in message


def test_recipe_that_cannot_be_read(tmp_path):
    assert "nix.yaml cannot be read" in refused(lambda: read_recipe(str(tmp_path / "nix.yaml")))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "binary.yaml cannot be read" in refused(lambda: read_recipe(str(binary)))


def test_other_words_lead_to_the_option():
    with pytest.raises(UserError, match=r"unknown option --encoder; did you mean --backbone\?"):
        parse_values({"encoder": "resnet50"}, "here")
