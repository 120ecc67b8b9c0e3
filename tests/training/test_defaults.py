"""What is chosen from the data when the user leaves it open."""

from dataclasses import replace

import pytest
import torch

from longtail.config import flatten, get_option
from longtail.data import DataSplits, ImageSet, exponential_profile
from longtail.errors import UserError
from longtail.options import make_config
from longtail.training.defaults import describe, resolve


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
    *("imbalance", "root", "folds", "image_size", "teacher.run", "optimiser.clip_norm", "optimiser.ema"),
    *(f"source.{name}" for name in ("test", "fold", "group_pattern", "mean", "std")),
    *(f"loading.{name}" for name in ("resident", "workers", "resize", "interpolation")),
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
