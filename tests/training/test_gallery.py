"""The gallery of mistakes: which are shown, what they are nearest to, and that the same run gives the same bytes."""

import base64
import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from longtail.data.thumbnails import SIDE, thumbnail
from longtail.files import load_meta
from longtail.models import Classifier
from longtail.training.checkpoint import CheckpointFolder
from longtail.training.gallery import MOST_MISTAKES, MOST_OF_A_CLASS, choose_mistakes
from longtail.training.neighbours import Keys, nearest, read_keys

pytestmark = pytest.mark.usefixtures("one_thread")

COUNTS = {"ant": 24, "bee": 9, "cat": 3}
TINY = (
    "--backbone small_net --image_size 16 --batch_size 8 --epochs 1 --device cpu --loading.workers 0 --quiet "
    "--optimiser.lr 0.0001"
).split()


def read(path):
    return json.loads(path.read_text())


def opened(uri):
    kind, _, data = uri.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == f"data:image/{image.format.lower()}"
    return image


@pytest.fixture
def photos(desk, make_photos):
    make_photos(desk.folder / "photos" / "train", COUNTS)
    return make_photos(desk.folder / "photos" / "test", dict.fromkeys(COUNTS, 6), first=50)


def test_the_rarest_and_surest_come_first():
    labels = torch.tensor([0] * 9 + [1] * 9 + list(range(2, 12)))
    counts = torch.tensor([5, 3, *[19] * 10])
    confidence = torch.linspace(0.1, 0.9, len(labels), dtype=torch.float64)
    wrong = torch.ones(len(labels), dtype=torch.bool)
    wrong[17] = False
    chosen = choose_mistakes(wrong, labels, confidence, counts).tolist()
    assert chosen == [16, 15, 14, 8, 7, 6, *range(18, 28)]
    many = torch.arange(400) // 4
    shown = choose_mistakes(torch.ones(400, dtype=torch.bool), many, torch.rand(400), torch.arange(100) + 1)
    assert len(shown) == MOST_MISTAKES
    assert torch.bincount(many[shown]).max() == MOST_OF_A_CLASS
    assert choose_mistakes(torch.zeros(4, dtype=torch.bool), many[:4], torch.rand(4), torch.arange(1)).tolist() == []


@pytest.mark.parametrize(("shape", "size"), [((3, 200, 100), (48, 96)), ((1, 8, 8), (8, 8)), ((3, 64, 64), (64, 64))])
def test_thumbnails_keep_channels_and_proportions(shape, size):
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = opened(thumbnail(pixels))
    assert image.size == size
    assert max(size) <= SIDE
    assert image.mode == ("L" if shape[0] == 1 else "RGB")
    if max(size) <= 32:
        assert np.array_equal(np.asarray(image), pixels[0].numpy())
    assert thumbnail(pixels) == thumbnail(pixels)


@pytest.mark.parametrize("resident", ["true", "false"])
def test_a_run_has_a_gallery_and_evaluating_again_gives_its_bytes(desk, photos, resident):
    desk.run("train", "photos", *TINY, "--out", "run", "--loading.resident", resident)
    run = desk.folder / "run"
    before = desk.snapshot("run")
    record = read(run / "gallery.json")
    assert record["group"] == "few"
    assert record["no_neighbours"] is None
    assert record["images"] == 12
    rows = {row["name"]: row for row in map(dict, _table(run))}
    assert record["mistakes"] == sum(6 - int(rows[name]["correct"]) for name in ("bee", "cat"))
    assert len(record["entries"]) == sum(min(3, 6 - int(rows[name]["correct"])) for name in ("bee", "cat")) > 0
    files = load_meta(run, "predictions")["files"]
    assert sorted(files) == sorted(f"test/{name}/{number}.png" for name in COUNTS for number in range(50, 56))
    for entry in record["entries"]:
        assert files[entry["image"]] == entry["file"]
        assert entry["file"].split("/")[1] == entry["true"] != entry["predicted"]
        assert opened(entry["thumbnail"]).size == (16, 16)
        assert len({near["image"] for near in entry["nearest"]}) == 3
        similar = [near["similarity"] for near in entry["nearest"]]
        assert similar == sorted(similar, reverse=True)
        assert all(near["file"].split("/")[1] == near["class"] for near in entry["nearest"])
    assert (run / "gallery.json").stat().st_size < 1_000_000
    desk.run("evaluate", "run", "--quiet")
    assert desk.snapshot("run") == before


def _table(run):
    with (run / "per_class.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_nearest_keys_against_a_slow_search(desk, photos):
    desk.run("train", "photos", *TINY, "--out", "run")
    run = desk.folder / "run"
    teacher = Classifier.load(run / "teacher")
    state, _ = CheckpointFolder(run / "resume").load()
    keys = read_keys(run, Classifier.load(run))
    image = np.asarray(Image.open(desk.folder / "photos" / "test" / "cat" / "50.png").convert("RGB").resize((16, 16)))
    images = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    (found,) = nearest(keys, teacher, images, most=5)
    with torch.no_grad():
        feature = teacher.encoder(teacher.preprocess(images))[0].double()
    best = {}
    for key, index in zip(state["method.queue.features"].double(), state["method.queue.ids"].tolist(), strict=True):
        cosine = float(feature @ key / (feature.norm() * key.norm()))
        best[index] = max(best.get(index, -1.0), cosine)
    expected = sorted(best.items(), key=lambda pair: -pair[1])[:5]
    assert [index for index, _ in found] == [index for index, _ in expected]
    assert [value for _, value in found] == pytest.approx([value for _, value in expected], abs=1e-5)


def test_fewer_training_images_than_asked_for():
    class Same(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :2]

        def preprocess(self, images):
            return images.float()

        mean = torch.zeros(1)

    keys = Keys(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([4, 4, 9]), Same())
    found = nearest(keys, Same(), torch.tensor([[[[3, 0]]], [[[0, 5]]]], dtype=torch.uint8), most=3)
    assert [[index for index, _ in row] for row in found] == [[4, 9], [9, 4]]
    assert found[1][1][1] == pytest.approx(0.8)


def test_why_there_are_no_neighbours(desk, photos):
    desk.run("train", "photos", *TINY, "--method", "cross_entropy", "--out", "plain")
    assert "keeps no queue" in read(desk.folder / "plain" / "gallery.json")["no_neighbours"]
    assert "keeps no queue" in (desk.folder / "plain" / "report.html").read_text()
    desk.run("train", "photos", *TINY, "--teacher.kind", "momentum", "--out", "run")
    run = desk.folder / "run"
    assert read(run / "gallery.json")["no_neighbours"] is None
    ants = desk.folder / "photos" / "train" / "ant"
    (ants / "23.png").rename(ants / "99.png")
    desk.run("evaluate", "run", "--quiet")
    assert read(run / "gallery.json")["no_neighbours"] is None, "the same pixels in the same order are the same images"
    (ants / "99.png").unlink()
    desk.run("evaluate", "run", "--quiet")
    assert "not known to be those" in read(run / "gallery.json")["no_neighbours"]


def test_gray_arrays_have_a_gallery(desk):
    generator = np.random.default_rng(0)
    labels = {"train": np.repeat([0, 1], [30, 5]), "test": np.repeat([0, 1], [8, 8])}
    arrays = {f"{part}_labels": values for part, values in labels.items()}
    arrays |= {
        f"{part}_images": generator.integers(0, 255, (len(y), 12, 12), dtype=np.uint8) for part, y in labels.items()
    }
    np.savez(desk.folder / "gray.npz", **arrays)
    desk.run("train", "gray.npz", "--epochs", "1", "--device", "cpu", "--quiet", "--out", "run")
    record = read(desk.folder / "run" / "gallery.json")
    assert record["entries"]
    assert all(entry["file"] is None and opened(entry["thumbnail"]).mode == "L" for entry in record["entries"])
    assert "files" not in load_meta(desk.folder / "run", "predictions")
