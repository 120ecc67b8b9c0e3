"""What is chosen from the data when the user leaves it open."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longtail.config import flatten, get_option
from longtail.data import DataSplits, ImageFiles, ImageSet, exponential_profile
from longtail.data.path_table import PathTable
from longtail.errors import UserError
from longtail.options import make_config
from longtail.training.defaults import describe, resolve
from longtail.training.devices import pick_device


def splits_of(counts, side, channels=3, views="cifar"):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(len(labels), channels, side, side)
    names = tuple(map(str, range(len(counts))))
    one = ImageSet(images, labels, names)
    return DataSplits("made", one, one, (0.5,) * channels, (0.2,) * channels, views)


def test_cifar100_lt_gets_the_published_settings():
    config, notes = resolve(
        make_config({"data": "x", "device": "cpu"}), splits_of(exponential_profile(500, 100, 100), 32)
    )
    published = {
        "backbone": "cifar_resnet32",
        "teacher.backbone": "cifar_resnet56",
        "epochs": 200,
        "teacher.epochs": 200,
        "batch_size": 128,
        "optimiser.lr": 0.1,
        "optimiser.weight_decay": 5e-4,
        "queue.capacity": 4096,
        "queue.min_per_class": 2,
        "queue.projection_dim": 32,
        "loss.temperature": 0.1,
        "loss.distillation_weight": 1.0,
        "views.key": "cifar",
    }
    assert {key: get_option(config, key) for key in published} == published
    assert notes == []


OPEN = {
    *(
        "imbalance",
        "root",
        "folds",
        "image_size",
        "teacher.run",
        "decoupled.run",
        "optimiser.clip_norm",
        "optimiser.ema",
        "tune.rank",
        "tune.encoder_lr",
    ),
    *(f"source.{name}" for name in ("test", "fold", "group_pattern", "mean", "std")),
    *(f"loading.{name}" for name in ("resident", "workers", "resize", "interpolation")),
    *(f"segmentation.{name}" for name in ("crop", "decoder", "palette", "resize", "width", "window", "zero_is_other")),
}
"""What a run on arrays has no use for, or means nothing by leaving open."""


def test_nothing_is_left_open_but_what_may_be():
    config, _ = resolve(make_config({"data": "x", "device": "cpu"}), splits_of([30, 3], 8, 1, "tiny"))
    open_still = {key for key, value in flatten(config).items() if value is None}
    assert open_still == {
        *OPEN,
        "out",
        "pretrained",  # chosen when a run is started, because it may ask a network
        "teacher.pretrained",
        "start.head",  # follows from those weights
    }
    assert config.backbone == config.teacher.backbone == "small_net"


def test_given_options_stay_and_are_not_described_as_chosen():
    given = {"data": "x", "device": "cpu", "epochs": 7, "queue.capacity": 300}
    config, _ = resolve(make_config(given), splits_of([30, 3], 8, 1, "tiny"))
    assert (config.epochs, config.teacher.epochs, config.queue.capacity) == (7, 7, 300)
    line = describe(config, set(given))
    assert "backbone small_net" in line
    assert "queue.capacity" not in line


def test_the_queue_has_room_for_very_many_classes():
    config, _ = resolve(make_config({"data": "x", "device": "cpu"}), splits_of([3] * 8142, 8, 1, "tiny"))
    assert config.queue.capacity >= 8142 * config.queue.min_per_class


def test_a_batch_larger_than_the_data_is_made_smaller_and_said():
    config, notes = resolve(make_config({"data": "x", "device": "cpu"}), splits_of([10, 3], 8, 1, "tiny"))
    assert config.batch_size == 13
    assert "larger than the training set; 13 is used" in notes[0]


def test_a_batch_of_one_and_an_absent_device_are_refused():
    data = splits_of([10, 3], 8, 1, "tiny")
    with pytest.raises(UserError, match="batch_size must be 2"):
        resolve(make_config({"data": "x", "batch_size": 1}), data)
    for device in ("cuda:77", "abacus"):
        with pytest.raises(UserError, match=f"--device {device}"):
            resolve(replace(make_config({"data": "x"}), device=device), data)


# --- Image files


def files_of(counts, height, width):
    """Splits of files that nobody opens: their sizes are all that the defaults look at."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    sizes = torch.tensor([[height, width]], dtype=torch.int32).repeat(len(labels), 1)
    digests = torch.zeros(len(labels), dtype=torch.int64)
    names = tuple(map(str, range(len(counts))))
    one = ImageFiles(Path("nowhere"), PathTable(map(str, range(len(labels)))), labels, names, sizes, digests)
    return DataSplits("made", one, one, (), (), "")


def resolve_files(counts, height, width, **given):
    return resolve(make_config({"data": "x", "device": "cpu", **given}), files_of(counts, height, width))


def values(config, names):
    return {name: get_option(config, name) for name in names}


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (12, 15, ("small_net", 12, True)),
        (28, 28, ("cifar_resnet32", 24, True)),
        (40, 300, ("cifar_resnet32", 32, True)),
        (60, 70, ("resnet18", 64, True)),
        (96, 96, ("resnet18", 96, True)),
        (97, 400, ("resnet50", 224, False)),
        (3000, 4000, ("resnet50", 224, False)),
    ],
)
def test_the_shorter_side_of_files_chooses_encoder_size_and_loading(height, width, expected):
    config, _ = resolve_files([30, 3], height, width)
    assert (config.backbone, config.image_size, config.loading.resident) == expected
    assert config.teacher.backbone == config.backbone
    assert config.loading.resize >= config.image_size


def test_one_large_image_among_small_ones_changes_nothing():
    data = files_of([30, 3], 30, 30)
    data.train.sizes[0] = 5000
    config, _ = resolve(make_config({"data": "x", "device": "cpu"}), data)
    assert config.backbone == "cifar_resnet32"


def test_small_files_are_distilled_and_photographs_are_not():
    names = "views.classifier views.query views.key loss.distillation_weight loss.temperature optimiser.name".split()
    small, _ = resolve_files([30, 3], 32, 32)
    assert list(values(small, names).values()) == ["light", "light", "light", 1.0, 0.1, "sgd"]
    photos, notes = resolve_files([300, 30], 375, 500)
    contrast = "imagenet_contrast"
    assert list(values(photos, names).values()) == ["imagenet", contrast, contrast, 0.0, 0.07, "sgd"]
    assert any("--backbone cifar_resnet32" in note for note in notes)  # said, because the machine has no accelerator
    # The published ImageNet-LT setting at its own batch size.
    assert resolve_files([300, 30], 375, 500, batch_size=128)[0].optimiser.lr == 0.05


@pytest.mark.parametrize(
    ("backbone", "name", "rate", "decay"),
    [
        ("test_resnet", "sgd", 0.1, 5e-4),
        ("cifar_resnet20", "sgd", 0.1, 5e-4),
        ("test_vit", "adamw", 1e-3, 0.05),
        ("test_convnext", "adamw", 1e-3, 0.05),
    ],
)
def test_the_optimiser_follows_the_normalisation(backbone, name, rate, decay):
    config, _ = resolve_files([30, 3], 64, 64, backbone=backbone, image_size=64)
    assert (config.optimiser.name, config.optimiser.lr, config.optimiser.weight_decay) == (name, rate, decay)
    given, _ = resolve_files([30, 3], 64, 64, **{"backbone": backbone, "image_size": 64, "optimiser.name": "adamw"})
    assert (given.optimiser.name, given.optimiser.lr) == ("adamw", 1e-3)


def test_size_crop_and_statistics_follow_the_encoder():
    config, _ = resolve_files([30, 3], 300, 300, backbone="test_resnet")
    # As timm says: 160 pixels, cut out of 160 / 0.95.
    assert (config.image_size, config.loading.resize, config.loading.interpolation) == (160, 168, "bilinear")
    assert (config.source.mean, config.source.std) == ([0.5] * 3, [0.5] * 3)
    assert resolve_files([30, 3], 300, 300)[0].source.mean == pytest.approx([0.485, 0.456, 0.406])
    halved, _ = resolve_files([30, 3], 300, 300, backbone="test_resnet", image_size=80)
    assert (halved.image_size, halved.loading.resize) == (80, 84)
    own, _ = resolve_files([30, 3], 300, 300, backbone="cifar_resnet32")
    assert (own.image_size, own.loading.resize, own.source.mean) == (32, 32, None)  # statistics of its own pixels
    published = replace(files_of([30, 3], 300, 300), mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2))
    options = {"data": "x", "device": "cpu", "backbone": "test_resnet"}
    config, _ = resolve(make_config(options | {"pretrained": "none"}), published)
    assert config.source.mean is None  # those of the published set stay
    config, _ = resolve(make_config(options), published)
    assert config.source.mean == [0.5] * 3  # weights know pixels as they were normalised for them
    arrays, _ = resolve(make_config(options), splits_of([30, 3], 160))
    assert arrays.source.mean == [0.5] * 3
    with pytest.raises(UserError, match=r"--loading\.resize 100 is below --image_size 160"):
        resolve_files([30, 3], 300, 300, **{"backbone": "test_resnet", "loading.resize": 100})


def test_more_images_need_fewer_passes():
    epochs = [resolve_files([count, 3], 32, 32)[0].epochs for count in (50, 1000, 100_000)]
    assert epochs[0] > epochs[1] > epochs[2] >= 5
    # Photographs take more, as training from scratch at 224 pixels does.
    assert resolve_files([100_000, 3], 375, 500)[0].epochs >= epochs[2]


def test_what_was_resolved_resolves_to_itself():
    """A resumed run reads its resolved options and resolves them again."""
    for data in (files_of([30, 3], 12, 12), files_of([30, 3], 64, 64), files_of([300, 30], 375, 500)):
        config, _ = resolve(make_config({"data": "x", "device": "cpu"}), data)
        assert resolve(config, data)[0] == config


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "meta", "mps:7", "cuda:", ""])
def test_a_device_that_is_not_there_is_told_in_one_short_sentence(name):
    with pytest.raises(UserError) as told:
        pick_device(name)
    text = str(told.value)
    assert text.startswith(f"--device {name}")
    assert "use auto" in text
    assert "\n" not in text
    assert len(text) < 300  # torch lists every back end it was ever built for


def test_there_is_one_cpu_whatever_its_number():
    assert pick_device("cpu:3") == pick_device("cpu") == torch.device("cpu")
