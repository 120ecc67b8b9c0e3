"""Tar shards against the folder that they were packed from and against tarfile; everything that can be wrong in one."""

import csv
import gzip
import io
import json
import signal
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import longtail
from longtail.data import load_data
from longtail.data.decode import BadImage, read_image
from longtail.data.file_splits import FileChecks
from longtail.data.framing import frame_splits
from longtail.data.shard_index import index_shards
from longtail.data.sources import load_test_set
from longtail.data.tar_members import Member, member_at
from longtail.errors import UserError
from longtail.methods.logit_adjustment import LogitAdjustment
from longtail.option_groups import DataOptions
from longtail.options import make_config
from longtail.training.defaults import resolve
from longtail.training.framing_defaults import chosen_framing
from longtail.training.guard import Interrupted
from tar_files import pack, write_tar
from whole_runs import run, stop_at_step

COUNTS = {"ant": 9, "bee": 5, "cat": 2}


def png(shade):
    data = io.BytesIO()
    Image.new("RGB", (9, 7), (10, 200, shade)).save(data, "png")
    return data.getvalue()


PNG = png(0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory, make_photos):
    return make_photos(tmp_path_factory.mktemp("tars") / "photos", COUNTS)


@pytest.fixture(scope="module")
def shards(photos):
    folder = photos.parent / "shards"
    pack(photos, folder)
    return folder


def load(data, checks=None, **source):
    return load_data(str(data), source=DataOptions(**source), checks=checks)


def paths(images):
    return [images.paths[index] for index in range(len(images))]


def two(**more):
    """Members of a good shard of two classes, and more."""
    good = {"a/0.png": png(0), "a/0.cls": b"ant\n", "b/1.png": png(1), "b/1.cls": b"bee"}
    good |= {"a/2.png": png(2), "a/2.cls": b"ant"}
    return good | {name.replace("__", "."): data for name, data in more.items()}


# --- The same data as the folder


@pytest.mark.parametrize(("shard_count", "label"), [(1, "cls"), (4, "json")])
def test_any_sharding_of_a_folder_is_the_folder(photos, tmp_path, shard_count, label):
    pack(photos, tmp_path / "packed", shard_count, label)
    folder, packed = load(photos), load(tmp_path / "packed")
    for one, other in ((folder.train, packed.train), (folder.test, packed.test)):
        assert paths(one) == paths(other)
        assert one.class_names == other.class_names == tuple(COUNTS)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.digests, other.digests)
        assert one.fingerprint() == other.fingerprint()
    assert (packed.train.class_counts + packed.test.class_counts).tolist() == list(COUNTS.values())


def test_offsets_are_those_of_tarfile_whatever_the_form_of_the_header(tmp_path):
    random = np.random.default_rng(0)
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        shard = tmp_path / f"{form}.tar"
        long = "x" * 80 + "/" + ("y" * 90 if form == tarfile.USTAR_FORMAT else "ü" * 120) + ".jpg"
        names = ["./a/short.jpg", long, "z.webp"]
        with tarfile.open(shard, "w", format=form) as tar:
            folder = tarfile.TarInfo("a")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            for name in names:
                info, data = tarfile.TarInfo(name), random.bytes(int(random.integers(1, 3000)))
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                label = tarfile.TarInfo(name.rpartition(".")[0] + ".cls")
                label.size = 1
                tar.addfile(label, io.BytesIO(b"3"))
        index = index_shards(tmp_path, [shard.name], "label", "group")
        assert index.shards[0, 2:].tolist() == [3, 0]
        with tarfile.open(shard) as tar:
            for name, (offset, length) in zip(names, index.spans.tolist(), strict=True):
                assert Member(str(shard), offset, length, name).read() == tar.extractfile(name).read()


def test_a_member_is_told_from_a_file_of_any_name(tmp_path):
    member = Member("a::b/x.tar", 12, 34, "c:1::2.tar/d.png")
    assert member_at(member.place()) == member
    assert member_at("x.tar") is None
    odd = tmp_path / "x.tar::1:2:y.png"
    odd.write_bytes(PNG)
    assert read_image(odd).size == (9, 7)


def prepared(data, workers=0):
    """Options of a run on streamed images, and the images framed."""
    options = {"data": str(data), "out": "unused", "method": "logit_adjustment", "backbone": "small_net", "epochs": 2}
    options |= {"batch_size": 4, "device": "cpu", "loading.resident": False, "loading.workers": workers}
    splits = load(data)
    config, _ = resolve(make_config(options), splits)
    return config, frame_splits(splits, chosen_framing(config), resident=False, workers=0)


def test_a_run_on_shards_is_the_run_on_the_folder_also_when_stopped_within_an_epoch(
    photos, shards, tmp_path, monkeypatch
):
    run(tmp_path / "folder", *prepared(photos))
    model = (tmp_path / "folder" / "model.safetensors").read_bytes()
    config, splits = prepared(shards, workers=1)
    with monkeypatch.context() as patched:
        stop_at_step(patched, LogitAdjustment, 2, signal.SIGTERM)
        with pytest.raises(Interrupted, match="epoch 1 of 2"):
            run(tmp_path / "packed", config, splits)
    assert not (tmp_path / "packed" / "model.safetensors").exists()
    run(tmp_path / "packed", config, splits, resume=True)
    assert (tmp_path / "packed" / "model.safetensors").read_bytes() == model

    answers = []
    for name, images in (("folder", photos), ("packed", shards)):
        longtail.predict(tmp_path / "folder", [images], out=tmp_path / f"{name}.csv", workers=0, quiet=True)
        with open(tmp_path / f"{name}.csv", newline="") as text:
            answers.append({row["file"][-10:]: (row["label"], row["probability"]) for row in csv.DictReader(text)})
    assert answers[0] == answers[1]
    assert len(answers[0]) == sum(COUNTS.values())
    tested = load_test_set(str(shards), tuple(COUNTS))
    assert tested.test.class_counts.tolist() == list(COUNTS.values())


# --- Names, splits, labels


def test_names_that_several_shards_have_are_told_apart_by_their_shards(tmp_path):
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", two())
    splits = load(tmp_path, check="sample")
    found = sorted(paths(splits.train) + paths(splits.test))
    assert found == [f"{number}.tar/{name}" for number in range(2) for name in ("a/0.png", "a/2.png", "b/1.png")]


def test_the_names_of_shards_say_their_splits(tmp_path, photos):
    for start, count in (("train", 3), ("val", 2), ("Test", 1)):
        pack(photos, tmp_path / "set", count, start=start)
    splits = load(tmp_path / "set")
    assert len(splits.train) == len(splits.test) == sum(COUNTS.values())
    assert any("2 validation shards left aside" in note for note in splits.notes)
    assert {splits.test.members.shards[i] for i in splits.test.members.spans[:, 0]} == {"Test-000000.tar"}
    braces = load(f"{tmp_path}/set/{{train-{{000002..000000}},val-00000?}}.tar")
    assert (braces.test_split, len(braces.test)) == ("given", sum(COUNTS.values()))
    apart = load(f"{tmp_path}/set/train-*.tar", test=f"{tmp_path}/set/val-{{000000..000001}}.tar")
    assert paths(apart.test) == paths(braces.test)
    for start in ("train", "test"):  # folders may say it too
        pack(photos, tmp_path / "folders" / start, 1, start="data")
    assert load(tmp_path / "folders").test_split == "given"


def test_json_holds_labels_and_groups(tmp_path):
    members = {}
    for number in range(8):
        members[f"{number}.jpg.txt"] = b"a caption"
        members[f"{number}.jpeg"] = PNG
        record = {"species": number % 2, "site": f"site-{number // 4}", "other": None}
        members[f"{number}.json"] = json.dumps(record).encode()
    write_tar(tmp_path / "x.tar", members)
    splits = load(tmp_path / "x.tar", label_column="species", group_column="site", check="sample", test_share=0.5)
    assert splits.train.class_names == ("0", "1")
    assert "2 groups kept whole" in splits.test_split
    assert len({path[0] < "4" for path in paths(splits.train)}) == 1
    assert any("8 members" in note and "0.jpg.txt" in note for note in splits.notes)


# --- The index in the cache


def test_only_changed_shards_are_read_again(tmp_path, monkeypatch):
    for number in range(3):
        write_tar(tmp_path / "set" / f"{number}.tar", {f"{number}{key}": data for key, data in two().items()})
    cache = tmp_path / "cache"
    cache.mkdir()
    checks = FileChecks(cache=cache)
    first = load(tmp_path / "set", checks, check="sample")
    read = []
    real = longtail.data.shard_index.scan_shard
    monkeypatch.setattr(longtail.data.shard_index, "scan_shard", lambda *a: read.append(a[0][-5:]) or real(*a))
    again = load(tmp_path / "set", checks, check="sample")
    assert read == []
    assert again.train.fingerprint() == first.train.fingerprint()
    assert torch.equal(again.train.members.spans, first.train.members.spans)
    write_tar(tmp_path / "set" / "1.tar", two(c__png=PNG, c__cls=b"cat"))
    changed = load(tmp_path / "set", checks, check="sample")
    assert read == ["1.tar"]
    assert sorted(paths(changed.train) + paths(changed.test)) == sorted(
        ["a/0.png", "b/1.png", "a/2.png", "c.png"]
        + [f"{number}{name}" for number in (0, 2) for name in ("a/0.png", "b/1.png", "a/2.png")]
    )
    (kept,) = cache.glob("shards-*.npz")
    for broken in (kept.read_bytes()[:-30], b""):
        kept.write_bytes(broken)
        assert load(tmp_path / "set", checks, check="sample").train.fingerprint() == changed.train.fingerprint()


# --- What can be wrong


def test_a_corrupt_member_is_an_error_or_left_out_by_name(tmp_path):
    shard = write_tar(tmp_path / "set" / "one.tar", two(**{"a/bad__png": PNG[:40], "a/bad__cls": b"ant"}))
    with pytest.raises(UserError, match=r"1 of 4 images cannot be read: \S+one\.tar: a/bad\.png \(cut off"):
        load(tmp_path / "set")
    splits = load(tmp_path / "set", FileChecks(on_bad="skip"))
    assert [name for name, _ in splits.skipped] == [f"{shard}: a/bad.png"]
    assert any("a/bad.png" in note and "left out" in note for note in splits.notes)
    assert (splits.train.class_counts + splits.test.class_counts).tolist() == [2, 1]


def test_a_shard_that_shrinks_later_is_told_with_its_member(tmp_path):
    shard = write_tar(tmp_path / "one.tar", two())
    images = load(shard).train
    shard.write_bytes(shard.read_bytes()[: 3 * 512])
    with pytest.raises(BadImage, match="cut off, as its shard is"):
        read_image(images.path(1))


def cut(size):
    return lambda file: file.write_bytes(file.read_bytes()[:size])


def spoil(at, data):
    return lambda file: file.write_bytes(file.read_bytes()[:at] + data + file.read_bytes()[at + len(data) :])


def link(file):
    with tarfile.open(file, "a") as tar:
        info = tarfile.TarInfo("c.png")
        info.type, info.linkname = tarfile.LNKTYPE, "a/0.png"
        tar.addfile(info)


BAD = {
    "cut in an image": (two(), cut(512 + 20), r"s\.tar is cut off in a/0\.png"),
    "cut in a later label": (two(), cut(1024 + 512 + 2), r"s\.tar is cut off in a/0\.cls"),
    "cut between members": (two(), cut(2048), r"s\.tar is cut off after a/0\.cls"),
    "cut in a header": (two(), cut(2048 + 100), r"s\.tar is cut off after a/0\.cls"),
    "a damaged header": (two(), spoil(2048, b"\xff" * 300), r"s\.tar is damaged after a/0\.cls"),
    "no tar": ({}, lambda file: file.write_bytes(b"PNG" * 400), r"s\.tar is no tar file"),
    "nothing": ({}, lambda file: file.write_bytes(b""), r"s\.tar is no tar file \(empty file\)"),
    "compressed": (two(), lambda f: f.write_bytes(gzip.compress(f.read_bytes())), r"s\.tar is compressed"),
    "no sample": ({"readme.txt": b"hello"}, None, r"no sample in 1 shard"),
    "no label": (two(c__png=PNG), None, r"s\.tar: sample 'c' \(c\.png\) has no label"),
    "no label in JSON": (two(c__png=PNG, c__json=b"{}"), None, r"'c' .*its JSON has no 'label'"),
    "no image": (two(c__cls=b"ant"), None, r"s\.tar: sample 'c' has a label \(c\.cls\) but no image"),
    "two labels": (
        two(a__0=b"", **{"a/0__json": b'{"label": "bee"}'}),
        None,
        r"a/0\.json: label 'bee', but 'ant' in a/0",
    ),
    "a list of labels": (two(c__png=PNG, c__json=b'{"label": [1, 2]}'), None, r"c\.json: field 'label' holds a list"),
    "a label of no kind": (two(c__png=PNG, c__json=b'{"label": 0.5}'), None, r"c\.json has 0\.5 as 'label'"),
    "no JSON": (two(c__png=PNG, c__json=b"{"), None, r"s\.tar: c\.json is not JSON"),
    "an empty label": (two(c__png=PNG, c__cls=b" \n"), None, r"s\.tar: c\.cls is empty"),
    "a label in lines": (two(c__png=PNG, c__cls=b"1\n2"), None, r"s\.tar: c\.cls has several lines"),
    "no text": (two(c__png=PNG, c__cls=b"\xff"), None, r"s\.tar: c\.cls is not UTF-8"),
    "a member twice": ([*two().items(), ("a/0.png", PNG)], None, r"sample 'a/0' occurs twice \(a/0\.png twice\)"),
    "two images of a key": (two(**{"a/0__jpg": PNG}), None, r"sample 'a/0' occurs twice \(a/0\.png and a/0\.jpg\)"),
    "a link": (two(), link, r"s\.tar: c\.png is a link"),
    "a group not everywhere": (two(c__png=PNG, c__json=b'{"label": 1, "group": "g"}'), None, r"0\.png has no 'group'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_shard_is_one_sentence_that_names_it(case, tmp_path):
    members, spoiled, sentence = BAD[case]
    shard = write_tar(tmp_path / "s.tar", members)
    if spoiled is not None:
        spoiled(shard)
    with pytest.raises(UserError, match=sentence) as error:
        load(shard)
    assert str(error.value).count(". ") == 0


def test_shards_that_are_missing_or_named_in_two_ways(tmp_path, photos):
    pack(photos, tmp_path, 3, start="train")
    for pattern, sentence in {
        "train-{000000..000004}.tar": r"of the 5 shards that it names 2 cannot be found, first \S+train-000003\.tar",
        "valid-*.tar": "no file matches",
        "train-7.tar": r"no such shard: \S+train-7\.tar",
        "train-{x}.tar": "neither a range",
        "{0..9999999}.tar": "names 10000000 shards",
        "train-000000.tar.gz": "compressed",
    }.items():
        with pytest.raises(UserError, match=sentence):
            load(tmp_path / pattern)
    with pytest.raises(UserError, match=r"train-000001\.tar is a training shard and a shard of --source\.test"):
        load(tmp_path, test=str(tmp_path / "train-000001.tar"))
    (tmp_path / "more.tar").write_bytes((tmp_path / "train-000000.tar").read_bytes())
    with pytest.raises(UserError, match=r"more\.tar says no split, but that of"):
        load(tmp_path)
    pack(photos, tmp_path / "held", 1, start="test")
    with pytest.raises(UserError, match="holds no training shard"):
        load(tmp_path / "held")


def test_an_archive_beside_class_folders_does_not_make_them_shards(photos, tmp_path, make_photos):
    folder = make_photos(tmp_path / "photos", COUNTS)
    write_tar(folder / "original.tar", two())
    assert len(load(folder).train) + len(load(folder).test) == sum(COUNTS.values())


def test_it_tells_how_many_shards_are_read(shards, tmp_path):
    told = []
    for _ in range(2):  # the second time nothing is read
        load(shards, FileChecks(cache=tmp_path, indexing=lambda *seen: told.append(seen)))
    total = len(list(shards.glob("*.tar")))
    assert told == [(done, total) for done in range(1, total + 1)]
