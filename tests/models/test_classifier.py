import hashlib
import json

import pytest
import torch

from longtail.data import Framing
from longtail.errors import UserError
from longtail.models import Classifier, build_classifier

NAMES = ("cat", "dog", "eel")
COUNTS = torch.tensor([60, 30, 10])
TRAIN = COUNTS.double() / 100


def make(logit_prior=None, head="cosine", channels=1, size=(8, 8), seed=0):
    torch.manual_seed(seed)
    spec = {"encoder": "small_net", "in_channels": channels, "head": head, "scale": 30.0}
    prior = torch.ones(3) if logit_prior is None else logit_prior
    mean, std = [0.4, 0.5, 0.6][:channels], [0.2, 0.3, 0.25][:channels]
    model = build_classifier(spec, NAMES, COUNTS, prior, mean, std, Framing(size, resize=max(size) + 3))
    # Running statistics other than 0 and 1, as after training.
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 2)
            part.num_batches_tracked.fill_(17)
    if head == "cosine":
        # Random features share a direction; small logits keep every probability well away from 0 and 1.
        model.head.scale = model.spec["scale"] = 3.0
    return model


def raw_images(n=7, channels=1, size=(8, 8)):
    return torch.randint(0, 256, (n, channels, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("channels", [1, 3])
def test_preprocess_normalises_each_channel(channels):
    model, images = make(channels=channels), raw_images(channels=channels)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    result = model.preprocess(images)
    assert result.dtype == torch.float32
    for c in range(channels):
        expected = (images[:, c].double() / 255 - mean[c]) / std[c]
        torch.testing.assert_close(result[:, c].double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.preprocess(images.float() / 255), result)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (raw_images(channels=3), r"images have shape \[7, 3, 8, 8\].* \[any, 1, 8, 8\]"),
        (raw_images(size=(8, 9)), r"\[7, 1, 8, 9\].*resize"),
        (raw_images()[0], r"\[1, 8, 8\]"),
        (torch.tensor(1.0), "images have shape"),
        (raw_images().long(), "torch.int64; give uint8"),
        (raw_images().float(), r"0\.\.1.*divide by 255"),
        (raw_images() / 255 - 0.5, r"0\.\.1"),
        (torch.full((1, 1, 8, 8), torch.nan), r"0\.\.1"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, words):
    with pytest.raises(UserError, match=words):
        make().predict(images)


def test_without_prior_the_softmax_is_as_it_is():
    model, images = make(TRAIN), raw_images()
    with torch.no_grad():
        expected = model.eval()(model.preprocess(images)).double().softmax(1)
    torch.testing.assert_close(model.predict(images).double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("old", [TRAIN, torch.ones(3) / 3, torch.tensor([1.0, 5.0, 2.0])])
@pytest.mark.parametrize(
    ("prior", "weights"),
    [
        ("uniform", [1, 1, 1]),
        ("train", [60, 30, 10]),
        (torch.tensor([0.2, 0.5, 0.3]), [2, 5, 3]),
        ([4, 0, 12], [4, 0, 12]),
    ],
)
def test_prior_shift_is_bayes_rule(old, prior, weights):
    model, images = make(old), raw_images()
    probabilities = model.predict(images, prior=prior).double()
    # Posterior under the old prior -> likelihood up to a factor -> posterior under the new prior.
    likelihood = model.logits(images).double().softmax(1) / (old.double() / old.double().sum())
    joint = likelihood * torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(probabilities, joint / joint.sum(1, keepdim=True), atol=1e-6, rtol=1e-5)


def test_prior_shift_on_one_worked_case():
    # Posterior 0.6 / 0.3 / 0.1 under that very prior tells nothing: a uniform prior gives thirds.
    model = make(TRAIN, head="linear")
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(TRAIN.log())
    torch.testing.assert_close(model.predict(raw_images(), prior="uniform"), torch.full((7, 3), 1 / 3))
    torch.testing.assert_close(model.predict(raw_images(), prior="train"), TRAIN.float().expand(7, 3))


def test_class_of_prior_zero_is_never_predicted():
    probabilities = make().predict(raw_images(), prior=torch.tensor([0.0, 1e-6, 1e-6]))
    assert torch.equal(probabilities[:, 0], torch.zeros(7))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(7))


def test_class_without_training_images_counts_like_the_rarest_other_one():
    model = make(torch.tensor([0.8, 0.2, 0.0]))
    images = raw_images()
    logits = model.logits(images).double() - torch.tensor([0.8, 0.2, 0.2], dtype=torch.float64).log()
    torch.testing.assert_close(model.predict(images, prior="uniform").double(), logits.softmax(1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        ("unifrom", "unknown prior 'unifrom'; did you mean 'uniform'"),
        (torch.ones(4), "one weight for each of 3 classes"),
        (torch.ones(1, 3), "one weight for each of 3 classes"),
        ([1.0, -0.1, 1.0], "negative or not finite"),
        ([1.0, float("nan"), 1.0], "negative or not finite"),
        ([0.0, 0.0, 0.0], "0 in every class"),
    ],
)
def test_bad_priors_are_refused(prior, words):
    with pytest.raises(UserError, match=words):
        make().predict(raw_images(), prior=prior)


def test_paths_are_not_images():
    with pytest.raises(UserError, match=r"images are a list.*longtail\.predict\(RUN, FILES\)"):
        make().predict(["a.jpg"])


def test_the_temperature_comes_before_the_prior():
    model, images = make(logit_prior=[0.7, 0.2, 0.1]), raw_images()
    logits = model.logits(images)
    model.temperature = 2.5
    assert torch.equal(model.logits(images), logits)
    assert torch.allclose(model.predict(images), (logits / 2.5).softmax(1))
    shifted = logits / 2.5 + torch.tensor([1 / 3, 1 / 3, 1 / 3]).log() - torch.tensor([0.7, 0.2, 0.1]).log()
    assert torch.allclose(model.predict(images, "uniform"), shifted.softmax(1))


def test_batch_size_changes_speed_only():
    model, images = make(), raw_images(7)
    whole = model.logits(images)
    for batch_size in (1, 3, 7, 100):
        torch.testing.assert_close(model.logits(images, batch_size=batch_size), whole, atol=1e-5, rtol=1e-5)
    assert model.predict(images[:0]).shape == (0, 3)
    with pytest.raises(UserError, match="batch_size"):
        model.predict(images, batch_size=0)


def test_predict_leaves_modes_and_statistics_alone_and_gives_ordinary_tensors():
    model = make().train()
    model.encoder.layers[1].eval()
    modes = [part.training for part in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    probabilities = model.predict(raw_images())
    with pytest.raises(UserError):
        model.predict(raw_images().float())
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not probabilities.requires_grad
    assert not model.logits(raw_images()).is_inference()
    assert torch.equal(probabilities, model.eval().predict(raw_images()))


@pytest.mark.parametrize("head", ["cosine", "linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_save_and_load_are_bit_equal(tmp_path, head, dtype):
    model = make(TRAIN, head=head, channels=3, size=(10, 9)).to(dtype)
    model.save(tmp_path / "run")
    torch.manual_seed(5)
    loaded = type(model).load(tmp_path / "run")
    moved_on = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(moved_on, torch.rand(1)), "loading used up the caller's random numbers"
    assert not loaded.training
    assert list(loaded.state_dict()) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == tensor.dtype, name
        assert torch.equal(loaded.state_dict()[name], tensor), name
    images = raw_images(channels=3, size=(10, 9))
    assert torch.equal(loaded.logits(images), model.logits(images))
    assert (loaded.class_names, loaded.image_size, loaded.spec) == (NAMES, (10, 9), model.spec)
    assert loaded.framing == model.framing == Framing((10, 9), resize=13)
    assert torch.equal(loaded.class_counts, COUNTS)
    loaded(loaded.preprocess(images).to(dtype)).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        make().save(tmp_path / folder)
    for file in ("model.safetensors", "model.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("damage", ["cut off", "changed", "missing"])
def test_damaged_weights_are_refused(tmp_path, damage):
    model = make()
    model.save(tmp_path)
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "cut off":
        path.write_bytes(data[:-1])
    elif damage == "changed":
        data[-1] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors"):
        type(model).load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("class_names", ["cat", "dog"], r"class_counts \(file: int64 \[3\]; expected: int64 \[2\]\)"),
        (("spec", "encoder"), "cifar_resnet20", r"encoder\.stem\.weight \(file: missing"),
        (("spec", "head"), "linear", r"head\.bias \(file: missing; expected: float \[3\]\)"),
        (("spec", "encoder"), "small_nett", r"model\.json: unknown encoder .*did you mean 'small_net'"),
        (("spec", "head"), "cos", r"model\.json: unknown head"),
        (("spec", "in_channels"), 3, r"encoder\.layers\.0\.weight"),
        ("spec", None, r"model\.json does not describe a classifier"),
        ("framing", None, r"model\.json: it does not say how images are framed"),
        ("framing", {"size": [8], "resize": 8, "interpolation": "bilinear"}, r"model\.json does not describe"),
        ("framing", {"size": [8, 8], "resize": 7, "interpolation": "bilinear"}, r"model\.json does not describe"),
        ("framing", {"size": [8, 8], "resize": 8, "interpolation": "cubist"}, "interpolation 'cubist'"),
        ("framing", {"size": [8, 8]}, r"model\.json does not describe a classifier"),
        ("class_names", [], r"model\.json does not describe a classifier"),
    ],
)
def test_description_that_does_not_fit_is_refused(tmp_path, key, value, words):
    model = make()
    model.save(tmp_path)
    path = tmp_path / "model.json"
    meta = json.loads(path.read_text())
    if isinstance(key, tuple):
        meta[key[0]][key[1]] = value
    else:
        meta[key] = value
    content = {name: part for name, part in meta.items() if name not in ("format_version", "sha256", "meta_sha256")}
    # Another program could have written it so: what it says of itself is in order.
    meta["meta_sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(meta))
    with pytest.raises(UserError, match=words):
        type(model).load(tmp_path)


def test_exports_with_preprocessing_of_float_images():
    class Whole(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images):
            return self.model(self.model.preprocess(images))

    model = make().eval()
    images = raw_images(4)
    program = torch.export.export(Whole(model), (images / 255,))
    torch.testing.assert_close(program.module()(images / 255), model.logits(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_counts": torch.ones(2)}, "class_counts"),
        ({"mean": [0.5, 0.5]}, "one value for each of 1 channels"),
        ({"std": [0.0]}, "std must be positive"),
        ({"logit_prior": torch.zeros(3)}, "logit_prior is 0 in every class"),
    ],
)
def test_parts_that_do_not_agree_are_refused(change, words):
    spec = {"encoder": "small_net", "in_channels": 1, "head": "linear"}
    parts = {"class_counts": COUNTS, "logit_prior": TRAIN, "mean": [0.5], "std": [0.25], **change}
    with pytest.raises(ValueError, match=words):
        build_classifier(spec, NAMES, framing=Framing((8, 8), resize=8), **parts)


def test_a_timm_encoder_is_saved_with_its_image_size_and_loaded_without_its_pretrained_weights(tmp_path, monkeypatch):
    spec = {"encoder": "test_vit.r160_in1k", "in_channels": 3, "head": "linear"}
    framing = Framing((32, 48), resize=56, interpolation="bicubic")
    model = build_classifier(spec, NAMES, COUNTS, TRAIN, [0.5] * 3, [0.25] * 3, framing)
    assert model.image_size == (32, 48)
    model.save(tmp_path)
    described = json.loads((tmp_path / "model.json").read_text())["framing"]
    assert described == {"size": [32, 48], "resize": 56, "interpolation": "bicubic"}

    def no_hub(weights):
        raise AssertionError(f"asked the hub for {weights}")

    monkeypatch.setattr("longtail.models.pretrained.hub_file", no_hub)
    loaded = Classifier.load(tmp_path)
    images = raw_images(channels=3, size=(32, 48))
    assert loaded.framing == framing
    assert torch.equal(loaded.predict(images), model.predict(images))
    with pytest.raises(UserError, match="resize them first"):
        loaded.predict(raw_images(channels=3, size=(32, 32)))


def test_no_image_at_all_gives_no_logits():
    """Transformers cannot reshape nothing: where every file of a batch is unreadable, none is left to be told of."""
    framing = Framing((32, 32), 32)
    spec = {"encoder": "test_vit", "in_channels": 3, "head": "linear"}
    model = build_classifier(spec, ["a", "b"], torch.ones(2), torch.ones(2), [0.5] * 3, [0.5] * 3, framing)
    assert model.logits(torch.empty(0, 3, 32, 32, dtype=torch.uint8)).shape == (0, 2)
