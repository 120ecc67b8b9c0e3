"""`longtail embed`: what it may delete or replace, what it takes for whole, and whose encoder is whose."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cut_shards import saved_shards
from PIL import Image
from safetensors.torch import load_file, save_file

import longtail
from longtail.data.feature_files import load_features
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


@pytest.mark.parametrize("taken", ["f.json", "f.encoder.safetensors", "f.encoder.json"])
def test_no_file_is_replaced_unasked(taken, embed, tmp_path):
    (tmp_path / taken).write_text("mine")
    with pytest.raises(UserError, match=f"would also write .*{taken}, which exists; add --overwrite"):
        embed()
    assert (tmp_path / taken).read_text() == "mine"
    embed(overwrite=True)
    assert len(load_features(tmp_path / "f.safetensors", DataOptions()).train) == 9


@pytest.mark.parametrize("cut", range(5))
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_finish_cut_off_is_no_file_and_goes_on(cut, overwrite, embed, tmp_path, monkeypatch):
    """Killed after each file that the finish writes, and before the first."""
    out, whole = tmp_path / "f.safetensors", embed(out=tmp_path / "whole.safetensors").read_bytes()
    if overwrite:
        embed(seed=1, views=2)
    real, left = longtail.files.write_bytes, [cut]

    def write_bytes(path, data):
        if path.parent == tmp_path:
            if left[0] == 0:
                raise Cut
            left[0] -= 1
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr("longtail.files.write_bytes", write_bytes)
        if cut < 4:
            with pytest.raises(Cut):
                embed(overwrite=overwrite)
        else:  # all four are written, and the shards are not deleted
            remove = feature_store.FeatureStore._remove
            patch.setattr(feature_store.FeatureStore, "_remove", lambda self, but=None: but and remove(self, but))
            embed(overwrite=overwrite)
    if cut < 4 and out.exists():
        with pytest.raises(UserError, match="is unfinished: its shards lie in"):
            load_features(out, DataOptions())
    saved = saved_shards(monkeypatch)
    embed(overwrite=overwrite and cut % 2 == 0)
    assert saved == []
    assert out.read_bytes() == whole
    assert not (tmp_path / "f.safetensors.parts").exists()
    assert len(load_features(out, DataOptions()).train) == 9


def test_the_file_that_is_replaced_stays_until_the_other_is_whole(embed, tmp_path, monkeypatch):
    out = embed()
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    saved_shards(monkeypatch, cut_after=2, error=Cut)
    with pytest.raises(Cut):
        embed(overwrite=True, views=2)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert load_features(out, DataOptions()).train.views == 1
    saved = saved_shards(monkeypatch)
    embed(overwrite=True, views=2)
    assert saved == ["train-00002", "test-00000"]
    assert load_features(out, DataOptions()).train.views == 2


def test_values_that_float16_cannot_hold_are_refused(embed, tmp_path):
    with torch.no_grad():
        large = write_weights(tmp_path / "large.safetensors", scale=12.0)
    kept = load_features(embed(pretrained=large), DataOptions()).train.features
    assert float(kept.abs().max()) > 65504  # else the test shows nothing
    with pytest.raises(UserError, match=r"does not fit float16; use --dtype float32\.$"):
        embed(pretrained=large, out=tmp_path / "half.safetensors", dtype="float16")


@pytest.mark.parametrize("single", [False, True])
def test_a_damaged_shard_is_computed_anew_and_no_other(single, embed, tmp_path, monkeypatch):
    out = tmp_path / ("f.safetensors" if single else "shards")
    folder = tmp_path / "f.safetensors.parts" if single else out
    whole = load_features(embed(out=tmp_path / "whole.safetensors"), DataOptions())
    with monkeypatch.context() as patch:

        def finish(*_):
            raise Cut

        patch.setattr(feature_store.FeatureStore, "finish", finish)
        with pytest.raises(Cut):
            embed(out=out)
    damaged = folder / "train-00000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"else")
    saved = saved_shards(monkeypatch)
    again = load_features(embed(out=out), DataOptions())
    assert saved == ["train-00000"]
    torch.testing.assert_close(again.train.features, whole.train.features)


def test_a_damaged_plan_says_the_way_out(embed, tmp_path):
    folder = embed(out=tmp_path / "shards")
    (folder / "features.json").unlink()
    (folder / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan\.json cannot be read .*; add --overwrite to start anew\.$"):
        embed(out=folder)
    embed(out=folder, overwrite=True)
    assert len(load_features(folder, DataOptions()).train) == 9


@pytest.fixture
def two(embed, tmp_path):
    """Features of the same images by two encoders of one architecture."""
    other = write_weights(tmp_path / "other.safetensors", seed=6)
    return embed(), embed(out=tmp_path / "g.safetensors", pretrained=other)


def train(features, out, **changes):
    return longtail.train(features, out=str(out), epochs=2, device="cpu", **{"quiet": True} | changes)


@pytest.mark.parametrize("records", ["too", "alone stay"])
def test_another_encoder_beside_features_is_refused(records, two, tmp_path):
    first, second = two
    train(first, tmp_path / "before")
    ours = first.with_name("f.encoder.safetensors")
    ours.write_bytes(second.with_name("g.encoder.safetensors").read_bytes())
    if records == "too":
        ours.with_suffix(".json").write_bytes(second.with_name("g.encoder.json").read_bytes())
    words = "is not the encoder that made these features" if records == "too" else "does not match the SHA-256"
    with pytest.raises(UserError, match=words):
        train(first, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    model = (tmp_path / "before" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=words):
        train(first, tmp_path / "before", overwrite=True)
    assert (tmp_path / "before" / "model.safetensors").read_bytes() == model
    with pytest.raises(UserError, match=r"before/encoder\.safetensors does not match"):  # it was written over in place
        longtail.load(tmp_path / "before")


def test_features_of_another_encoder_are_refused_by_predict_and_evaluate(two, tmp_path):
    first, second = two
    run = tmp_path / "run"
    train(first, run)
    for call in (
        lambda data: longtail.predict(run, [str(data)], out=tmp_path / "p.csv", quiet=True, overwrite=True),
        lambda data: longtail.evaluate(run, data, quiet=True),
    ):
        call(first)
        with pytest.raises(UserError, match=r"g\.safetensors holds features by small_net .*other.*small\.safetensors"):
            call(second)
    second.with_suffix(".json").unlink()  # then nobody knows, and what has the width is taken
    longtail.predict(run, [str(second)], out=tmp_path / "p.csv", quiet=True, overwrite=True)


def test_an_encoder_that_is_not_of_its_record_is_refused(two, tmp_path):
    run = tmp_path / "run"
    train(two[0], run)
    record = json.loads((run / "encoder.json").read_text())
    tensors = load_file(two[1].with_name("g.encoder.safetensors"))
    longtail.files.save_tensors(run, "encoder", tensors, {"origin": record["origin"]})
    with pytest.raises(UserError, match="is not the encoder that made the features of this run"):
        longtail.load(run)


def test_training_says_once_that_no_encoder_is_kept(two, tmp_path, capsys):
    said = "predictions will need features"
    train(two[0], tmp_path / "kept", quiet=False)
    assert said not in capsys.readouterr().out
    two[0].with_name("f.encoder.safetensors").unlink()
    train(two[0], tmp_path / "run", quiet=False)
    assert capsys.readouterr().out.count(said) == 1
    train(two[0], tmp_path / "folds", quiet=False, folds=2)
    assert capsys.readouterr().out.count(said) == 1


def test_options_of_a_training_are_named_and_its_notes_are_not_kept(embed, tmp_path, capsys):
    features = embed(quiet=False, epochs=3, method="gml", loss={"temperature": 0.2}, start={"prompts": "photo"})
    said = capsys.readouterr().out
    line = "not read by longtail embed, so without effect: --epochs, --method, --loss.temperature, --start.prompts."
    assert line in said.splitlines()
    assert "larger than the training set" not in said
    assert not any("batch_size" in note for note in json.loads(features.with_suffix(".json").read_text())["notes"])


def test_the_recipe_of_views_is_read_where_there_are_several(embed, tmp_path, capsys):
    embed(quiet=False, **{"views.classifier": "light"})
    assert "without effect: --views.classifier" in capsys.readouterr().out
    one = embed(out=tmp_path / "g.safetensors", quiet=False, views=2, **{"views.classifier": "light"})
    assert "without effect" not in capsys.readouterr().out
    two = embed(out=tmp_path / "h.safetensors", views=2, view="light")
    assert one.read_bytes() == two.read_bytes()


def test_weights_are_used_with_the_statistics_of_their_record(embed, pictures, weights, tmp_path, capsys):
    given = {"mean": [0.3, 0.4, 0.5], "std": [0.2, 0.3, 0.4]}
    features = embed(quiet=False, source=given)
    guessed = "does not say how its images were normalised"
    assert guessed not in capsys.readouterr().out
    train(features, tmp_path / "head")
    longtail.train(
        str(pictures),
        out=str(tmp_path / "run"),
        backbone="small_net",
        method="cross_entropy",
        epochs=1,
        quiet=True,
        device="cpu",
        source=given,
        loading={"workers": 0},
        image_size=16,
    )
    for number, file in enumerate(
        ("f.encoder.safetensors", "head/encoder.safetensors", "run", "run/model.safetensors")
    ):
        again = embed(out=tmp_path / f"again{number}.safetensors", pretrained=str(tmp_path / file), quiet=False)
        assert guessed not in capsys.readouterr().out
        origin = load_features(again, DataOptions()).train.origin
        torch.testing.assert_close(torch.tensor(origin.mean), torch.tensor(given["mean"]))
        torch.testing.assert_close(torch.tensor(origin.std), torch.tensor(given["std"]))
    embed(out=tmp_path / "plain.safetensors", quiet=False)
    assert f"{weights} {guessed}; those of these training images are used" in capsys.readouterr().out
