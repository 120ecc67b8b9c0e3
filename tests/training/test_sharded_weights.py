"""Encoders whose weights are dealt to the processes: the state that they leave is that of whole ones."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from longtail import api
from longtail.training import loop, sharded_weights
from processes import in_processes

pytestmark = pytest.mark.usefixtures("one_thread")

RUN = {"method": "gml", "teacher.kind": "momentum", "epochs": 2, "batch_size": 8, "device": "cpu", "seed": 3}
RUN |= {"checkpoint.every_seconds": 0.0, "loading.workers": 0, "image_size": 16, "quiet": True, "queue.capacity": 32}
RUN |= {"backbone": "small_net", "val_fraction": 0.2, "optimiser.shard": True, "optimiser.ema": 0.9}
RUN |= {"optimiser.name": "adamw"}
FILES = ("model.safetensors", "metrics.jsonl", "evaluation.json", "predictions.safetensors")


class Cut(Exception):
    """The end of a run, in the first step of its second epoch."""


def train(mine, data, out, cut=False, **more):
    """Train into ``out``; return how much of the encoder lay here, and the names of the state's tensors."""
    parts, real = [], sharded_weights.ShardedWeights.__init__

    def build(self, method, *rest):
        real(self, method, *rest)
        encoder = [p for p in method.encoder.parameters() if p.ndim > 1]  # batch normalisation stays whole
        assert all(isinstance(p, DTensor) for p in encoder)
        parts.append(sum(self.here(p).numel() for p in encoder) / sum(p.numel() for p in encoder))

    sharded_weights.ShardedWeights.__init__ = build
    step = loop.StageRun._set_learning_rate
    if cut:

        def refuse(self):
            if self.step == self.loader.steps_per_epoch:
                raise Cut
            return step(self)

        loop.StageRun._set_learning_rate = refuse
    try:
        api.train(data, out=out, **{**RUN, **more})
    finally:
        sharded_weights.ShardedWeights.__init__, loop.StageRun._set_learning_rate = real, step
    return parts


@pytest.fixture(scope="module")
def data(make_photos, tmp_path_factory):
    """A folder of images."""
    return make_photos(tmp_path_factory.mktemp("sharded") / "images", {"a": 20, "b": 9, "c": 6})


@pytest.fixture(scope="module")
def of_one(data, tmp_path_factory):
    """The run of one process, in which nothing is sharded; here, so that those that are forked have modules loaded."""
    folder = tmp_path_factory.mktemp("sharded") / "one"
    assert train(None, data, folder) == []
    return folder


def gap(first, second):
    """Return the largest difference of two runs' logits, of the same images."""
    one, two = (load_file(path / "predictions.safetensors") for path in (first, second))
    assert torch.equal(one["labels"], two["labels"])
    return float((one["logits"] - two["logits"]).abs().max())


def test_a_run_goes_on_with_any_number_of_processes(of_one, data, tmp_path):
    found = in_processes(2, train, data, tmp_path / "two")
    assert [kind for kind, _ in found] == ["done"] * 2, found
    assert sum(part for _, (part,) in found) == pytest.approx(1)
    assert max(part for _, (part,) in found) < 0.6
    assert gap(of_one, tmp_path / "two") < 1e-3  # float32 sums in another order

    assert in_processes(2, train, data, tmp_path / "cut", True)[0][0] == "Cut"
    state = load_file(next((tmp_path / "cut" / "resume").glob("state-*")) / "state.safetensors")
    model = load_file(of_one / "model.safetensors")
    names = [name for name in model if name.startswith("encoder.")]
    assert {state[f"method.{name}"].shape == model[name].shape for name in names} == {True}
    shutil.copytree(tmp_path / "cut", tmp_path / "by one")
    assert train(None, data, tmp_path / "by one", resume=True) == []
    assert gap(of_one, tmp_path / "by one") < 1e-3
    found = in_processes(2, go_on, data, tmp_path / "cut")
    assert found[0][0] == "done", found
    for name in FILES:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def go_on(mine, data, out):
    return train(mine, data, out, resume=True)


@pytest.mark.check
@pytest.mark.parametrize(
    "more",
    [
        {"backbone": "vit_tiny_patch16_224", "image_size": 32, "tune.kind": "lora", "pretrained": "none"},
        {"method": "logit_adjustment", "precision": "bfloat16", "backbone": "convnext_atto", "image_size": 32},
        {"method": "crt", "decoupled.epochs": 1},
        {"teacher.kind": "frozen", "teacher.epochs": 1, "queue.sharded": True},
        {"backbone": "test_vit", "image_size": 32, "pretrained": "none", "select": "last"},
        {"backbone": "cifar_resnet20", "precision": "bfloat16"},
    ],
)
def test_methods_train_with_sharded_encoders(more, of_one, data, tmp_path):
    more = {**more, "optimiser.ema": None} if "tune.kind" in more else more
    found = in_processes(2, train_with, data, tmp_path / "two", more)
    assert [kind for kind, _ in found] == ["done"] * 2, found
    assert in_processes(2, train_with, data, tmp_path / "whole", {**more, "optimiser.shard": False})[0][0] == "done"
    # Pieces are put together in bfloat16, where autocast leaves normalisation of layers in float32.
    assert gap(tmp_path / "whole", tmp_path / "two") < (0.1 if "precision" in more else 1e-3)


def train_with(mine, data, out, more):
    return train(mine, data, out, **more)
