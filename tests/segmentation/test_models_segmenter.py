"""What is saved, loaded, predicted and exported of a segmenter."""

import json

import pytest
import torch

from longtail.errors import UserError
from longtail.segmentation.export import write_segmenter_onnx, write_segmenter_torch
from longtail.segmentation.models import PixelHead, Segmenter, TestView, build_pixel_encoder

NAMES = ("road", "sky", "sign")


def make_segmenter(decoder="fpn", backbone="test_resnet", seed=0, size=(32, 48)):
    torch.manual_seed(seed)
    encoder = build_pixel_encoder(backbone, decoder, 3, 32)
    spec = {"task": "segmentation", "encoder": backbone, "decoder": decoder, "width": 32, "in_channels": 3}
    return Segmenter(
        encoder,
        PixelHead("cosine", encoder.feature_dim, 3, 20.0),
        class_names=NAMES,
        class_counts=torch.tensor([700, 200, 100]),
        image_counts=torch.tensor([10, 9, 3]),
        logit_prior=torch.tensor([0.5, 0.3, 0.2]),
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.25),
        palette=torch.tensor([[0, 0, 0], [9, 8, 7], [255, 0, 1]]),
        size=size,
        spec=spec | {"head": "cosine", "scale": 20.0},
    )


@pytest.fixture(scope="module")
def segmenter():
    return make_segmenter().eval()


def pixels(count, height, width):
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(1)).byte()


def test_what_is_loaded_is_what_was_saved(segmenter, tmp_path):
    segmenter.save(tmp_path)
    state = torch.get_rng_state()
    loaded = Segmenter.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    saved, found = segmenter.state_dict(), loaded.state_dict()
    assert saved.keys() == found.keys()
    assert all(torch.equal(saved[key], found[key]) for key in saved)
    assert (loaded.class_names, loaded.size, loaded.spec) == (NAMES, (32, 48), segmenter.spec)
    assert not loaded.training
    assert loaded.palette.dtype == torch.uint8
    assert torch.equal(loaded.logits(pixels(1, 40, 33)), segmenter.logits(pixels(1, 40, 33)))


@pytest.mark.parametrize("width", [64, 33, None])
def test_a_changed_description_is_refused(segmenter, tmp_path, width):
    segmenter.save(tmp_path)
    record = json.loads((tmp_path / "model.json").read_text())
    record["spec" if "spec" in record else "meta"]["width"] = width
    (tmp_path / "model.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"model\.(json|safetensors)"):
        Segmenter.load(tmp_path)


def test_a_cut_off_file_is_refused(segmenter, tmp_path):
    segmenter.save(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        Segmenter.load(tmp_path)


def test_whole_images_are_a_plain_forward_pass(segmenter):
    images = pixels(2, 37, 50)
    normal = (images.float() / 255 - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.25]).view(
        3, 1, 1
    )
    with torch.no_grad():
        expected = segmenter(normal)
    assert expected.shape == (2, 3, 37, 50)
    for view in (None, TestView(), TestView(window=(64, 50))):
        assert torch.equal(segmenter.logits(images, view), expected)
    assert torch.equal(segmenter.predict(images), expected.softmax(1))


def test_a_prior_shifts_the_logits(segmenter):
    images, prior = pixels(1, 32, 32), [1.0, 0.0, 3.0]
    found = segmenter.predict(images, prior)
    weights = torch.tensor([0.25 / 0.5, 0.0, 0.75 / 0.2]).view(3, 1, 1)
    expected = segmenter.predict(images) * weights
    assert torch.allclose(found, expected / expected.sum(1, keepdim=True), atol=1e-6)
    with pytest.raises(UserError, match="one weight for each of 3"):
        segmenter.predict(images, [1.0, 2.0])


def test_windows_cover_every_pixel_and_average_plainly():
    """With a model that tells a pixel's place in its window: against a loop over windows written out."""

    def model(images):
        rows = torch.arange(images.shape[2]).view(1, 1, -1, 1) * 0.3
        columns = torch.arange(images.shape[3]).view(1, 1, 1, -1) * 0.2
        return torch.cat([images[:, :1] + rows, images[:, :1] * 0 + columns], 1)

    images = torch.randn(3, 1, 11, 9)
    found = TestView(window=(4, 4), stride=0.5).logits(model, images).softmax(1)
    total, seen = torch.zeros(3, 2, 11, 9), torch.zeros(11, 9)
    for top in (0, 2, 4, 6, 7):
        for left in (0, 2, 4, 5):
            total[..., top : top + 4, left : left + 4] += model(images[..., top : top + 4, left : left + 4]).softmax(1)
            seen[top : top + 4, left : left + 4] += 1
    assert bool((seen > 0).all())
    assert torch.allclose(found, total / seen, atol=1e-6)


def test_scales_and_mirror_average_probabilities(segmenter):
    images = pixels(1, 32, 40)
    normal = segmenter.preprocess(images)
    found = segmenter.predict(images, view=TestView(scales=(1.0, 0.5), mirror=True))
    with torch.no_grad():
        half = torch.nn.functional.interpolate(normal, size=(16, 20), mode="bilinear")
        seen = [segmenter(normal).softmax(1), segmenter(normal.flip(3)).softmax(1).flip(3)]
        small = [segmenter(half).softmax(1), segmenter(half.flip(3)).softmax(1).flip(3)]
    seen += [torch.nn.functional.interpolate(part, size=(32, 40), mode="bilinear") for part in small]
    assert torch.allclose(found, sum(seen) / 4, atol=1e-5)
    assert "0.5" in TestView(scales=(1.0, 0.5), mirror=True).describe()


def test_bad_images_are_said(segmenter):
    with pytest.raises(UserError, match="uint8"):
        segmenter.predict(torch.rand(1, 3, 32, 32))
    with pytest.raises(UserError, match=r"\[1, 1, 32, 32\]"):
        segmenter.predict(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))


def test_modes_are_put_back():
    segmenter = make_segmenter().train()
    segmenter.encoder.backbone.eval()
    before = [part.training for part in segmenter.modules()]
    segmenter.predict(pixels(1, 32, 32))
    assert [part.training for part in segmenter.modules()] == before


@pytest.mark.parametrize("write", [write_segmenter_onnx, write_segmenter_torch])
def test_an_export_takes_other_sizes(segmenter, tmp_path, write):
    if write is write_segmenter_onnx:
        pytest.importorskip("onnxscript")
        runtime = pytest.importorskip("onnxruntime")
    said = write(tmp_path, segmenter, preprocessing=True)
    assert "agree" in said[0]
    images = pixels(2, 33, 71)
    if write is write_segmenter_onnx:
        session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
        logits = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
        facts = session.get_modelmeta().custom_metadata_map
    else:
        extra = {"longtail.json": ""}
        logits = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()(images)
        facts = json.loads(extra["longtail.json"])
    assert torch.allclose(logits, segmenter.logits(images), atol=2e-3)
    assert json.loads(facts["class_names"]) == list(NAMES)
    assert json.loads(facts["palette"])[2] == [255, 0, 1]
