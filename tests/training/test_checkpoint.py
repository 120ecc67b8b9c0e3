"""States on disk: complete, checked, and bit-exact for every optimiser."""

import json

import pytest
import torch
from torch import nn

from longtail.errors import UserError
from longtail.training.checkpoint import (
    CheckpointFolder,
    MetricsLog,
    load_module,
    optimiser_state,
    restore_optimiser,
)


def steps(module, optimiser, count, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        optimiser.zero_grad()
        module(torch.randn(8, 4, generator=generator)).square().mean().backward()
        optimiser.step()


@pytest.mark.parametrize(
    "make",
    [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.AdamW(p, lr=0.01)],
    ids=["sgd", "adamw"],
)
def test_optimiser_continues_bit_for_bit_through_the_disk(tmp_path, make):
    torch.manual_seed(0)
    one, other = nn.Linear(4, 3), nn.Linear(4, 3)
    first, second = make(one.parameters()), make(other.parameters())
    steps(one, first, 3, seed=1)
    tensors, numbers = optimiser_state(first)
    folder = CheckpointFolder(tmp_path / "resume")
    folder.save(0, 3, tensors, {"optimiser": numbers})
    tensors, meta = folder.load()
    other.load_state_dict(one.state_dict())
    restore_optimiser(second, tensors, meta["optimiser"])
    steps(one, first, 3, seed=2)
    steps(other, second, 3, seed=2)
    assert torch.equal(one.weight, other.weight)


def test_only_the_newest_state_stays_and_stages_come_before_steps(tmp_path):
    folder = CheckpointFolder(tmp_path)
    assert folder.load() is None
    for stage, step in ((0, 5), (0, 1000), (1, 2)):
        folder.save(stage, step, {"x": torch.tensor([stage, step])}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["state-1-000000002"]
    tensors, meta = folder.load()
    assert tensors["x"].tolist() == [1, 2]
    assert (meta["stage"], meta["step"]) == (1, 2)


def test_leftovers_of_a_killed_process_are_ignored_and_cleared(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(0, 1, {"x": torch.ones(1)}, {})
    half = tmp_path / ".state-0-000000002.77.tmp"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    assert folder.load()[1]["step"] == 1
    folder.save(0, 3, {"x": torch.ones(1)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["state-0-000000003"]


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_damage_is_named(tmp_path, file, damage):
    folder = CheckpointFolder(tmp_path)
    folder.save(0, 1, {"x": torch.ones(100)}, {"log_length": 5})
    path = folder.newest() / file
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        data[-20] ^= 1
        path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    with pytest.raises(UserError, match=r"state\.(json|safetensors)"):
        folder.load()


def test_another_version_is_named(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(0, 1, {"x": torch.ones(1)}, {})
    path = folder.newest() / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(UserError, match="format version 99"):
        folder.load()


def test_a_state_of_another_architecture_names_the_tensors():
    with pytest.raises(UserError, match="weight"):
        load_module(nn.Linear(4, 3), nn.Linear(4, 5).state_dict(), "the state")


def test_log_is_cut_back_to_what_the_state_had_seen(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"epoch": 1})
    length = log.length
    log.write({"epoch": 2})
    again = MetricsLog(tmp_path / "metrics.jsonl", length)
    again.write({"epoch": 3})
    assert [json.loads(line) for line in log.path.read_text().splitlines()] == [{"epoch": 1}, {"epoch": 3}]
