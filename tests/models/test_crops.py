"""Crops of an image: the mean of their probabilities, under the same prior."""

import numpy as np
import pytest
import torch
from PIL import Image

import longtail
from longtail.data.image_set import Framing
from longtail.errors import UserError
from longtail.models import build_classifier, with_crops

pytestmark = pytest.mark.usefixtures("one_thread")


def classifier(resize=24):
    torch.manual_seed(0)
    spec = {"encoder": "small_net", "in_channels": 3, "head": "cosine", "scale": 10.0}
    names, counts = ["a", "b", "c"], torch.tensor([6, 3, 1])
    framing = Framing((20, 20), resize)
    return build_classifier(spec, names, counts, counts / 10, [0.4, 0.5, 0.6], [0.2, 0.3, 0.25], framing).eval()


@pytest.mark.parametrize("crops", [5, 10])
def test_logits_are_the_log_of_the_mean_probability_of_the_crops(crops):
    model = classifier()
    many = with_crops(model, crops)
    assert many.image_size == (24, 24)
    images = torch.randint(0, 256, (4, 3, 24, 24), dtype=torch.uint8)
    views = [images[..., t : t + 20, w : w + 20] for t, w in ((2, 2), (0, 0), (0, 4), (4, 0), (4, 4))]
    views += [view.flip(3) for view in views] if crops == 10 else []
    expected = torch.stack([model.predict(view) for view in views]).mean(0)
    torch.testing.assert_close(many.predict(images), expected, rtol=1e-5, atol=1e-6)
    prior = torch.tensor([0.2, 0.2, 0.6])
    shifted = expected * prior / model.logit_prior
    torch.testing.assert_close(many.predict(images, prior=prior), shifted / shifted.sum(1, keepdim=True))


def test_one_crop_is_the_classifier_and_a_small_margin_is_widened():
    model = classifier(resize=20)
    assert with_crops(model, 1) is model
    assert with_crops(model, 5).framing == Framing((23, 23), 23)
    for crops in (0, 3):
        with pytest.raises(UserError, match="1, 5 or 10"):
            with_crops(model, crops)


def test_evaluate_and_predict_by_crops(tmp_path):
    random = np.random.default_rng(0)
    for number, (name, count) in enumerate((("ant", 12), ("bee", 5))):
        for part, images in (("train", count), ("test", 4)):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for index in range(images):
                pixels = random.integers(0, 90, (40, 44, 3)) + 80 * np.eye(3, dtype=int)[number]
                Image.fromarray(pixels.astype("uint8")).save(tmp_path / "photos" / part / name / f"{index}.png")
    run = tmp_path / "run"
    options = {"method": "logit_adjustment", "backbone": "small_net", "epochs": 2, "device": "cpu", "quiet": True}
    longtail.train(tmp_path / "photos", out=str(run), **options)
    before = (run / "evaluation.json").read_bytes()
    found = longtail.evaluate(run, crops=5, quiet=True).evaluation
    assert (run / "evaluation.json").read_bytes() == before
    other = longtail.evaluate(run, tmp_path / "photos" / "test", crops=5, quiet=True).evaluation
    assert other["top1"] == found["top1"]
    table = tmp_path / "found.csv"
    longtail.predict(run, [tmp_path / "photos" / "test"], crops=5, out=table, quiet=True, workers=0)
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    right = sum(("/ant/" in file) == (label == "ant") for file, label, *_ in rows)
    assert right / len(rows) == found["top1"]
    np.savez(tmp_path / "arrays.npz", images=np.zeros((2, 32, 32, 3), dtype=np.uint8))
    with pytest.raises(UserError, match="cut out of image files"):
        longtail.predict(run, [tmp_path / "arrays.npz"], crops=5, quiet=True)
    arrays = longtail.train("digits-lt", out=str(tmp_path / "digits"), **options)
    with pytest.raises(UserError, match="cut out of image files"):
        longtail.evaluate(arrays.folder, crops=10, quiet=True)
