"""`longtail embed`: what it writes, that it goes on where it was cut off, and what becomes of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cut_shards import saved_shards
from PIL import Image

import longtail
from longtail.cli import main
from longtail.data import load_data
from longtail.data.feature_files import load_features
from longtail.errors import UserError
from longtail.methods import METHODS
from longtail.models import Classifier, build_encoder, load_weights
from longtail.option_groups import DataOptions

pytestmark = pytest.mark.usefixtures("one_thread")
COUNTS = {"ant": 12, "bee": 5, "fly": 3}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of small pictures, of which classes differ in colour."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number, (name, count) in enumerate(COUNTS.items()):
        for part, images in (("train", count), ("test", 3)):
            (folder / part / name).mkdir(parents=True)
            for index in range(images):
                pixels = random.integers(0, 90, (24, 30 + index, 3)) + 80 * np.eye(3, dtype=int)[number]
                Image.fromarray(pixels.astype("uint8")).save(folder / part / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights of the small network, whose statistics are not the neutral ones."""
    from safetensors.torch import save_file

    torch.manual_seed(5)
    encoder = build_encoder("small_net", 3)
    for name, buffer in encoder.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file(encoder.state_dict(), path)
    return str(path)


@pytest.fixture
def embed(pictures, weights, tmp_path):
    def call(**changes):
        given = {"backbone": "small_net", "pretrained": weights, "quiet": True, "device": "cpu"}
        given |= {"out": tmp_path / "f.safetensors", "loading": {"workers": 0}} | changes
        return longtail.embed(given.pop("data", str(pictures)), **given)

    return call


def test_features_are_those_of_the_encoder_on_each_image_as_it_is(embed, weights, pictures):
    splits = load_features(embed(), DataOptions())
    assert splits.train.class_counts.tolist() == list(COUNTS.values())
    encoder = build_encoder("small_net", 3, splits.train.origin.framing.size).eval()
    load_weights(encoder, "small_net", weights, 3)
    origin = splits.train.origin
    for part, images in ((splits.train, "train"), (splits.test, "test")):
        for index in (0, len(part) - 1):
            path = part.paths[index]
            assert path.startswith(images)
            pixels = np.asarray(Image.open(pictures / path).convert("RGB"))
            side = min(pixels.shape[:2])
            assert side == origin.framing.resize == 24  # so that nothing is resized, and the test can do the rest
            top, left = (round((length - side) / 2) for length in pixels.shape[:2])
            chosen = torch.tensor(pixels[top : top + side, left : left + side]).permute(2, 0, 1)[None] / 255
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (origin.mean, origin.std))
            with torch.no_grad():
                expected = encoder((chosen - mean) / std)[0]
            torch.testing.assert_close(part.features[index, 0], expected, rtol=1e-4, atol=1e-5)


def test_a_command_cut_off_goes_on_and_gives_the_same_bytes(embed, tmp_path, monkeypatch):
    whole = embed(out=tmp_path / "whole.safetensors", shard_images=4, views=2).read_bytes()
    saved_shards(monkeypatch, cut_after=3)
    with pytest.raises(KeyboardInterrupt):
        embed(shard_images=4, views=2)
    assert not (tmp_path / "f.safetensors").exists()
    with pytest.raises(UserError, match="another views; add --overwrite"):
        embed(shard_images=4, views=3)
    shards = saved_shards(monkeypatch)
    again = embed(shard_images=4, views=2)
    assert shards == ["train-00003", "train-00004", "test-00000", "test-00001", "test-00002"]
    assert again.read_bytes() == whole
    assert not (tmp_path / "f.safetensors.parts").exists()


def test_a_folder_of_shards_holds_the_same_as_the_file(embed, tmp_path):
    one = load_features(embed(), DataOptions())
    many = load_features(embed(out=tmp_path / "shards", shard_images=7), DataOptions())
    for part in ("train", "test"):
        a, b = getattr(one, part), getattr(many, part)
        assert a.fingerprint() == b.fingerprint()
        assert [a.paths[i] for i in range(len(a))] == [b.paths[i] for i in range(len(b))]
    assert len(list((tmp_path / "shards").glob("train-*.safetensors"))) == 3
    record = tmp_path / "shards" / "train-00001.safetensors"
    record.write_bytes(record.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"train-00001\.safetensors does not match"):
        load_features(tmp_path / "shards", DataOptions())


def test_further_views_are_augmented_and_the_first_is_not(embed, tmp_path):
    one = load_features(embed(), DataOptions())
    three = load_features(embed(out=tmp_path / "g.safetensors", views=3, view="light"), DataOptions())
    assert torch.equal(three.train.features[:, 0], one.train.features[:, 0])
    assert three.test.views == 1
    gaps = [(three.train.features[:, a] - three.train.features[:, b]).abs().amax(1) for a, b in ((0, 1), (1, 2))]
    assert all(float((gap > 1e-4).double().mean()) > 0.5 for gap in gaps)
    half = load_features(embed(out=tmp_path / "h.safetensors", dtype="float16"), DataOptions())
    torch.testing.assert_close(half.train.features.float(), one.train.features, rtol=1e-3, atol=1e-4)


def test_heads_trained_on_features_are_models_of_images(embed, tmp_path, pictures):
    features = embed()
    run = tmp_path / "run"
    longtail.train(features, out=str(run), epochs=3, quiet=True, device="cpu", val_fraction=0.2)
    model, inner = longtail.load(run), Classifier.load(run)
    assert inner.takes_features
    assert not model.takes_features
    data = load_features(features, DataOptions())
    longtail.predict(run, [str(pictures / "test")], out=tmp_path / "images.csv", quiet=True, workers=0)
    longtail.predict(run, [str(features)], out=tmp_path / "features.csv", quiet=True)
    tables = [(tmp_path / f"{kind}.csv").read_text().splitlines()[1:] for kind in ("images", "features")]
    by_image, by_feature = ([float(row.split(",")[2]) for row in table] for table in tables)
    assert by_image == pytest.approx(by_feature, abs=1e-4)
    assert [row.split(",")[1] for row in tables[0]] == [row.split(",")[1] for row in tables[1]]
    # Without the features' files the run still holds all that it needs.
    for path in Path(features).parent.glob("f.*"):
        path.unlink()
    torch.testing.assert_close(longtail.load(run).mean, model.mean)
    folder = longtail.export(run, format="torch", preprocessing=True, quiet=True)
    assert (folder / "model.pt2").exists()
    assert data.test.class_names == model.class_names


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_trains_on_features(method, embed, tmp_path):
    features = embed(views=2)
    result = longtail.train(features, method=method, out=str(tmp_path / "run"), epochs=2, quiet=True, device="cpu")
    assert 0 <= result.evaluation["balanced_accuracy"] <= 1
    assert longtail.load(tmp_path / "run").predict(torch.zeros(1, 3, 24, 24, dtype=torch.uint8)).shape == (1, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": None}, ["--backbone"]),
        ({"pretrained": None}, ["random weights say little", "--pretrained FILE"]),
        ({"view": "light"}, ["--view light", "--views"]),
        ({"views": 0}, ["--views", "1 or more"]),
        ({"dtype": "int8"}, ["--dtype", "float32"]),
        ({"folds": 3}, ["--folds"]),
        ({"out": Path("x.npz")}, [".safetensors"]),
        ({"backbone": "features"}, ["takes features, but the data are images"]),
    ],
)
def test_what_cannot_be_embedded_is_told(changes, words, embed):
    with pytest.raises(UserError) as error:
        embed(**changes)
    for word in words:
        assert word in str(error.value)


def test_what_cannot_be_trained_on_features_is_told(embed, tmp_path, capsys):
    features = str(embed())
    for words, expected in (
        (["--backbone", "resnet18"], "takes images, but the data are features"),
        (["--views.key", "light"], "features are not augmented"),
        (["--source.mean", "[0.1]", "--source.std", "[0.2]"], "their own statistics"),
    ):
        assert main(["train", features, "--out", str(tmp_path / "run"), *words]) == 2
        assert expected in capsys.readouterr().err
    assert main(["embed", features, "--backbone", "small_net"]) == 2
    assert "holds features already" in capsys.readouterr().err
    assert main(["inspect", features]) == 2
    assert "holds features" in capsys.readouterr().err


def test_features_without_their_encoder_are_predicted_from_features_alone(tmp_path, capsys):
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], [30, 8])
    rows = random.normal(size=(38, 4)).astype("float32") + 3 * labels[:, None].astype("float32")
    np.savez(tmp_path / "own.npz", features=rows, labels=labels, class_names=np.array(["no", "yes"]))
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "own.npz"), "--epochs", "30", "--out", str(run), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["predict", str(run), str(tmp_path)]) == 2
    assert "the encoder that makes them of images is not kept" in capsys.readouterr().err
    np.savez(tmp_path / "wide.npz", features=rows[:, :3])
    assert main(["predict", str(run), str(tmp_path / "wide.npz")]) == 2
    assert "width 3, but the model" in capsys.readouterr().err
    folder = longtail.export(run, format="onnx", preprocessing=True, quiet=True)
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    found = session.run(None, {"images": rows})[1]
    expected = longtail.load(run).predict(torch.from_numpy(rows))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == ["no", "yes"]
    assert load_data(str(tmp_path / "own.npz")).train.channels == 4
    with pytest.raises(UserError, match="not finite, first in row 1"):
        longtail.load(run).predict(torch.tensor([[0.0] * 4, [float("nan")] * 4]))


def test_a_run_on_features_is_a_run_on_images_for_other_commands(embed, tmp_path, pictures):
    features, run = embed(), tmp_path / "run"
    trained = longtail.train(features, out=str(run), epochs=3, quiet=True, device="cpu").evaluation
    by_image = longtail.evaluate(run, pictures / "test", quiet=True).evaluation
    assert by_image["top1"] == trained["top1"]
    again = load_features(embed(out=tmp_path / "again.safetensors", pretrained=str(run)), DataOptions())
    assert torch.equal(again.test.features, load_features(features, DataOptions()).test.features)
    with pytest.raises(UserError, match="by which no image can be known again"):
        longtail.inspect(pictures, run=run, quiet=True)
    (run / "encoder.safetensors").unlink()
    (run / "encoder.json").unlink()
    with pytest.raises(UserError, match="their encoder is not kept; name another run"):
        embed(out=tmp_path / "no.safetensors", pretrained=str(run))


def test_a_report_looks_up_what_a_pretrained_teacher_of_another_kind_says(pictures, weights, tmp_path):
    options = {"backbone": "cifar_resnet20", "teacher": {"kind": "pretrained", "backbone": "small_net"}}
    options["teacher"]["pretrained"] = weights
    options |= {"epochs": 1, "quiet": True, "device": "cpu", "pretrained": "none"}
    longtail.train(pictures, out=str(tmp_path / "run"), **options)
    gallery = json.loads((tmp_path / "run" / "gallery.json").read_text())
    assert gallery["no_neighbours"] is None


def test_the_card_of_a_model_of_features_speaks_of_features(tmp_path):
    labels = np.repeat([0, 1], [20, 6])
    np.savez(tmp_path / "own.npz", features=np.eye(26, 4, dtype="float32"), labels=labels)
    longtail.train(tmp_path / "own.npz", epochs=1, out=str(tmp_path / "run"), quiet=True, device="cpu")
    card = (longtail.export(tmp_path / "run", format="card", quiet=True) / "README.md").read_text()
    assert "pipeline_tag: tabular-classification" in card
    assert "a vector of 4 features" in card
    assert "image" not in card.split("## ")[0].replace("longtail", "")
