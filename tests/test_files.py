"""Files that are whole or not there, and that are checked when read."""

import hashlib
import json
import os

import pytest
import torch

from longtail import files
from longtail.errors import UserError
from longtail.files import FORMAT_VERSION, load_tensors, read_json, save_tensors, write_bytes, write_json

TENSORS = {
    "weight": torch.arange(6.0).view(2, 3),
    "count": torch.tensor(7),
    "half": torch.ones(2, dtype=torch.bfloat16),
}
META = {"name": "größe", "values": [1, 2.5, None], "nested": {"b": 1, "a": 2}}


def flip(path, position=-1):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_written_bytes_are_read_back_and_parents_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["file.bin"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_interrupted_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, call):
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, call, stop)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new, and longer")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_the_old_file_is_whole_until_every_new_byte_is_on_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")
    seen, sync, rename = [], os.fsync, os.replace

    def record_sync(handle):
        seen.append(("sync", path.read_bytes(), os.fstat(handle).st_size))
        sync(handle)

    def record_rename(source, target):
        seen.append(("rename", path.read_bytes(), os.stat(source).st_size))
        rename(source, target)

    monkeypatch.setattr(files.os, "fsync", record_sync)
    monkeypatch.setattr(files.os, "replace", record_rename)
    write_bytes(path, b"longer")
    assert seen[:2] == [("sync", b"old", 6), ("rename", b"old", 6)]
    assert [name for name, *_ in seen] == ["sync", "rename", "sync"]  # the last one makes the renaming durable
    assert seen[2][1] == b"longer"


def test_json_is_strict_and_survives_a_value_that_it_cannot_hold(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, META)
    assert read_json(path) == META
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert read_json(path) == META


@pytest.mark.parametrize("text", [b"", b'{"a": [1, 2', b"\xff\xfe\x00", b"a: yaml"])
def test_broken_json_is_named(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(UserError, match=r"a\.json cannot be read as JSON"):
        read_json(path)


def test_missing_json_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no such file: .*a\.json"):
        read_json(tmp_path / "a.json")


def test_tensors_come_back_bit_for_bit(tmp_path):
    # A transposed tensor too: safetensors itself refuses those.
    save_tensors(tmp_path, "state", {**TENSORS, "turned": TENSORS["weight"].T}, META)
    tensors, meta = load_tensors(tmp_path, "state")
    assert meta == META
    assert tensors.keys() == {*TENSORS, "turned"}
    for name, tensor in {**TENSORS, "turned": TENSORS["weight"].T}.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_the_stamp_is_the_files_sha256(tmp_path):
    save_tensors(tmp_path, "state", TENSORS, META)
    stamp = json.loads((tmp_path / "state.json").read_text())
    assert stamp["sha256"] == hashlib.sha256((tmp_path / "state.safetensors").read_bytes()).hexdigest()
    assert stamp["format_version"] == FORMAT_VERSION


def test_same_content_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        save_tensors(tmp_path / name, "state", TENSORS, META)
    for name in ("state.json", "state.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def change_stamp(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGE = {
    "tensors cut off": (
        lambda f: os.truncate(f / "state.safetensors", 100),
        r"state\.safetensors does not match the SHA-256 in state\.json; it was cut off or changed",
    ),
    "tensors empty": (lambda f: os.truncate(f / "state.safetensors", 0), r"state\.safetensors does not match"),
    "one bit of a value": (lambda f: flip(f / "state.safetensors"), r"state\.safetensors does not match"),
    "one bit of the header": (lambda f: flip(f / "state.safetensors", 3), r"state\.safetensors does not match"),
    "tensors gone": (lambda f: os.remove(f / "state.safetensors"), r"no such file: .*state\.safetensors"),
    "json gone": (lambda f: os.remove(f / "state.json"), r"no such file: .*state\.json"),
    "json cut off": (lambda f: os.truncate(f / "state.json", 50), r"state\.json cannot be read as JSON"),
    "json changed": (lambda f: change_stamp(f / "state.json", name="x"), r"state\.json does not match its own SHA-256"),
    "json is another file": (lambda f: write_json(f / "state.json", [1]), r"state\.json is not a file of this program"),
    "newer version": (
        lambda f: change_stamp(f / "state.json", format_version=FORMAT_VERSION + 1),
        rf"state\.json has format version {FORMAT_VERSION + 1}, this program reads version {FORMAT_VERSION}",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_with_the_files_name(tmp_path, name):
    damage, message = DAMAGE[name]
    save_tensors(tmp_path, "state", TENSORS, META)
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load_tensors(tmp_path, "state")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_safetensors_is_refused_even_with_the_right_sum(tmp_path):
    save_tensors(tmp_path, "state", TENSORS, META)
    (tmp_path / "state.safetensors").write_bytes(b"hello")
    change_stamp(tmp_path / "state.json", sha256=hashlib.sha256(b"hello").hexdigest())
    with pytest.raises(UserError, match="is not a safetensors file"):
        load_tensors(tmp_path, "state")
