"""`longtail embed`: what it may delete or replace, what it takes for whole, and whose encoder is whose."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import longtail
from longtail.data.feature_files import load_features
from longtail.deployment import embed as module
from longtail.deployment import feature_store
from longtail.errors import UserError
from longtail.models import build_encoder
from longtail.option_groups import DataOptions

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number, (name, count) in enumerate({"ant": 6, "bee": 3}.items()):
        for part, images in (("train", count), ("test", 2)):
            (folder / part / name).mkdir(parents=True)
            for index in range(images):
                pixels = random.integers(0, 90, (16, 16 + index, 3)) + 80 * np.eye(3, dtype=int)[number]
                Image.fromarray(pixels.astype("uint8")).save(folder / part / name / f"{index}.png")
    return folder


def write_weights(path, seed=5, scale=1.0):
    torch.manual_seed(seed)
    tensors = build_encoder("small_net", 3).state_dict()
    for name, tensor in tensors.items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        if scale != 1 and tensor.is_floating_point():
            tensor.mul_(scale)
    save_file(tensors, path)
    return str(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")


@pytest.fixture
def embed(pictures, weights, tmp_path):
    def call(**changes):
        given = {"backbone": "small_net", "pretrained": weights, "quiet": True, "device": "cpu", "shard_images": 4}
        given |= {"out": tmp_path / "f.safetensors", "loading": {"workers": 0}} | changes
        return longtail.embed(given.pop("data", str(pictures)), **given)

    return call


END = ("json", "safetensors")


class Cut(BaseException):
    """The process is killed here."""


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_overwriting_a_folder_leaves_what_embed_did_not_write(embed, tmp_path):
    folder = embed(out=tmp_path / "shards")
    ours = names(folder)
    theirs = {"run/model.json": "{}", "train.csv": "a", "train-1.json": "b", "features.csv": "c", "plan.md": "d"}
    for name, text in theirs.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / ".train-00001.safetensors.123.tmp").write_text("of a write that was killed")
    embed(out=folder, overwrite=True, shard_images=100)
    assert {name: (folder / name).read_text() for name in theirs} == theirs
    left = set(names(folder)) - {Path(name).parts[0] for name in theirs}
    assert left == set(ours) - {f"{stem}.{end}" for stem in ("train-00001", "train-00002") for end in END}
    assert len(load_features(folder, DataOptions()).train) == 9
