"""open_clip's image towers: the same features as open_clip's own, and every mistake in one sentence."""

import sys

import open_clip
import pytest
import torch
from open_clip.pretrained import _PRETRAINED

import tiny_clip
from longtail.data import Framing
from longtail.errors import UserError
from longtail.models import build_classifier, build_encoder, choose_weights, encoder_defaults, feature_dim, load_weights
from longtail.models.open_clip_encoder import activation_note, default_tag

VIT, RN = "open_clip:tiny-ViT", "open_clip:tiny-RN"
SIDE = {"tiny-RN": 64, "tiny-timm": 64}


@pytest.fixture(scope="module", autouse=True)
def _architectures(tmp_path_factory):
    tiny_clip.register(tmp_path_factory.mktemp("architectures"))


def pictures(side=32):
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(2))


def loaded(name, weights, size=(32, 32)):
    torch.manual_seed(0)
    assert choose_weights(name, str(weights), 3, size) == (str(weights), None)
    encoder = build_encoder(name, 3, size)
    load_weights(encoder, name, str(weights), 3)
    return encoder.eval()


@pytest.mark.parametrize("architecture", list(tiny_clip.ARCHITECTURES))
def test_features_are_those_of_open_clip(architecture, tmp_path):
    model, path = tiny_clip.model_and_file(architecture, tmp_path)
    side = SIDE.get(architecture, 32)
    encoder = loaded(f"open_clip:{architecture}", path, (side, side))
    assert feature_dim(encoder) == 24
    with torch.no_grad():
        theirs = model.encode_image(pictures(side))
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs  # with tokens, where the architecture says so
        torch.testing.assert_close(encoder(pictures(side)), theirs, atol=1e-6, rtol=1e-6)
        assert theirs.std(0).max() > 1e-3  # images differ


def test_the_state_is_the_image_tower_and_nothing_else(tmp_path):
    model, path = tiny_clip.model_and_file("tiny-ViT", tmp_path)
    encoder = loaded(VIT, path)
    assert encoder.state_dict().keys() == model.visual.state_dict().keys()


def test_the_quick_activation_is_the_architectures(tmp_path):
    _, path = tiny_clip.model_and_file("tiny-ViT", tmp_path)
    with torch.no_grad():
        plain, quick = (loaded(name, path)(pictures()) for name in (VIT, f"{VIT}-quickgelu"))
    assert (plain - quick).abs().max() > 1e-4


def prefixed(state):
    return {f"module.{key}": tensor for key, tensor in state.items()}


@pytest.mark.parametrize(
    "content",
    [
        lambda state: state,
        lambda state: {"epoch": 3, "name": "a", "state_dict": prefixed(state), "optimizer": {}},
        lambda state: {key: tensor.half() for key, tensor in state.items()},
        lambda state: {key.removeprefix("visual."): t for key, t in state.items() if key.startswith("visual.")},
    ],
    ids=["plain", "training", "half", "image tower alone"],
)
def test_files_of_training_programs_are_understood(tmp_path, content):
    model, _ = tiny_clip.model_and_file("tiny-ViT", tmp_path)
    torch.save(content(model.state_dict()), tmp_path / "epoch_3.pt")
    with torch.no_grad():
        found = loaded(VIT, tmp_path / "epoch_3.pt")(pictures())
        torch.testing.assert_close(found, model.encode_image(pictures()), atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize(("architecture", "side"), [("tiny-ViT", 48), ("tiny-ViT", 16), ("tiny-custom", 48)])
def test_position_embeddings_are_resampled_as_open_clip_does(architecture, side, tmp_path):
    _, path = tiny_clip.model_and_file(architecture, tmp_path)
    theirs = open_clip.create_model(architecture, pretrained=str(path), force_image_size=side).visual.state_dict()
    ours = loaded(f"open_clip:{architecture}", path, (side, side)).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())


def test_a_resnets_are_resampled_by_the_same_function(tmp_path):
    model, path = tiny_clip.model_and_file("tiny-RN", tmp_path)
    encoder = loaded(RN, path, (96, 96))
    before = model.visual.attnpool.positional_embedding
    after = encoder.attnpool.positional_embedding
    assert (len(before), len(after)) == (2 * 2 + 1, 3 * 3 + 1)
    assert torch.equal(after[0], before[0])  # of the whole image
    torch.testing.assert_close(after[5], before[1:].mean(0))  # the middle of three lies between the four
    assert encoder(pictures(96)).shape == (3, 24)


def test_what_another_run_trained_is_taken(tmp_path):
    torch.manual_seed(5)
    spec = {"encoder": VIT, "in_channels": 3, "head": "cosine"}
    half = [0.5] * 3
    run = build_classifier(spec, ("a", "b"), torch.ones(2), torch.ones(2), half, half, Framing((32, 32), resize=32))
    run.save(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(VIT, tmp_path)(pictures()), run.eval().encoder(pictures()))


@pytest.mark.parametrize(("name", "of"), [(VIT, "tiny-RN"), (RN, "tiny-ViT")])
def test_another_architecture_names_the_first_tensors(name, of, tmp_path):
    _, path = tiny_clip.model_and_file(of, tmp_path)
    size = (64, 64)
    with pytest.raises(UserError, match=rf"{path} does not fit encoder {name} in \d+ tensors, first \w") as caught:
        choose_weights(name, str(path), 3, size)
    assert str(caught.value).count("(file: ") == 3


def test_a_torchscript_archive_is_refused_by_name(tmp_path):
    with pytest.warns(FutureWarning, match="is deprecated"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "ViT-B-32.pt")
    with pytest.raises(UserError, match=r"ViT-B-32.pt is a TorchScript archive.*such as openai"):
        choose_weights(VIT, str(tmp_path / "ViT-B-32.pt"), 3, (32, 32))


def test_names():
    with torch.device("meta"):
        slash, dash = (build_encoder(f"open_clip:ViT-B{sign}32", 3) for sign in "/-")
        tagged = build_encoder("open_clip:ViT-B-32.laion2b_e16", 3, (64, 96))
    assert feature_dim(slash) == feature_dim(dash) == feature_dim(tagged) == 512
    assert slash.state_dict().keys() == dash.state_dict().keys()
    assert tagged.positional_embedding.shape == (2 * 3 + 1, 768)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("open_clip:vit-b-61", r"unknown encoder 'open_clip:vit-b-61'; did you mean .*'open_clip:ViT-B-16'"),
        ("open_clip:ViT-B-16.opnai", r"did you mean 'open_clip:ViT-B-16\.openai'"),
        ("open_clip:zzzzzz", r"open_clip\.list_models\(\)"),
        ("open_clip:", "unknown encoder 'open_clip:'"),
        ("open_clip:hf-hub:someone/model", "unknown encoder"),
    ],
)
def test_unknown_names(name, words):
    with pytest.raises(UserError, match=words) as caught:
        build_encoder(name, 3)
    assert len(str(caught.value)) < 250


def test_images_that_a_tower_cannot_take():
    with pytest.raises(UserError, match=r"takes colour images \(3 channels\), these have 1"):
        build_encoder(VIT, 1)
    with pytest.raises(UserError, match=r"cannot take images of 32x48 pixels .*choose --image_size 64"):
        build_encoder(RN, 3, (32, 48))


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"pip install 'longtail\[clip\]'"):
        build_encoder("open_clip:ViT-B-16", 3)
    assert feature_dim(build_encoder("small_net", 3)) > 0


def test_images_are_prepared_as_for_the_weights():
    openai = encoder_defaults("open_clip:ViT-B-16.openai")
    assert openai == encoder_defaults("open_clip:ViT-B-16")
    assert (openai.image_size, openai.resize, openai.interpolation) == ((224, 224), 224, "bicubic")
    # As OpenAI published them.
    assert openai.mean == (0.48145466, 0.4578275, 0.40821073)
    assert openai.std == (0.26862954, 0.26130258, 0.27577711)
    siglip = encoder_defaults("open_clip:ViT-B-16-SigLIP-256")
    assert (siglip.image_size, siglip.mean, siglip.std) == ((256, 256), (0.5,) * 3, (0.5,) * 3)
    assert encoder_defaults(VIT).image_size == (32, 32)


def test_the_default_weights_were_trained_with_the_architectures_activation():
    assert default_tag("open_clip:ViT-B-16-quickgelu") == "openai"
    assert default_tag("open_clip:ViT-B-16") == "laion2b_s34b_b88k"
    assert default_tag("open_clip:ViT-B-16.datacomp_l_s1b_b8k") == "datacomp_l_s1b_b8k"
    assert default_tag("open_clip:ViT-B-16-SigLIP") == "webli"
    assert default_tag(VIT) is None
    for architecture in ("ViT-B-16", "ViT-B-32-quickgelu", "ViT-L-14"):
        assert activation_note(f"open_clip:{architecture}.{default_tag(f'open_clip:{architecture}')}") is None


@pytest.fixture
def published(monkeypatch, tmp_path):
    """Weights of the tiny architecture under tags of open_clip's list, one of them trained with QuickGELU."""
    model, path = tiny_clip.model_and_file("tiny-ViT", tmp_path)
    about = {"hf_hub": "someone/tiny/", "mean": (0.1,) * 3, "std": (0.2,) * 3, "interpolation": "bilinear"}
    tags = {"openai": about | {"quick_gelu": True}, "laion2b_tiny": about}
    monkeypatch.setitem(_PRETRAINED, "tiny-ViT", tags)
    asked = []
    monkeypatch.setattr("longtail.models.pretrained.hub_file", lambda weights: asked.append(weights) or path)
    return model, asked


@pytest.mark.parametrize("wanted", [None, "auto", "hub", "laion2b_tiny", "laion2b-tiny", f"{VIT}.laion2b_tiny"])
def test_published_weights_by_every_name_are_the_same(published, wanted):
    model, asked = published
    chosen = choose_weights(VIT, wanted, 3, (32, 32))
    assert chosen == (f"{VIT}.laion2b_tiny", None)
    assert choose_weights(VIT, chosen[0], 3, (32, 32)) == chosen
    assert set(asked) == {f"{VIT}.laion2b_tiny"}
    encoder = build_encoder(VIT, 3, (32, 32)).eval()
    load_weights(encoder, VIT, chosen[0], 3)
    with torch.no_grad():
        torch.testing.assert_close(encoder(pictures()), model.encode_image(pictures()), atol=1e-6, rtol=1e-6)
    assert encoder_defaults(VIT).interpolation == "bilinear"
    assert encoder_defaults(f"{VIT}.laion2b_tiny").mean == (0.1,) * 3


def test_weights_of_another_activation_load_as_in_open_clip_with_a_word(published, tmp_path):
    chosen, note = choose_weights(VIT, "openai", 3, (32, 32))
    assert chosen == f"{VIT}.openai"
    assert "trained with QuickGELU" in note
    assert f"--backbone {VIT}-quickgelu" in note
    model = open_clip.create_model("tiny-ViT", pretrained=str(tmp_path / "clip.safetensors")).eval()
    encoder = build_encoder(VIT, 3, (32, 32)).eval()
    load_weights(encoder, VIT, chosen, 3)
    with torch.no_grad():
        torch.testing.assert_close(encoder(pictures()), model.encode_image(pictures()), atol=1e-6, rtol=1e-6)


def test_a_repository_of_the_hub_is_asked_for_open_clips_files(published):
    _, asked = published
    assert choose_weights(VIT, "hf-hub:someone/theirs", 3, (32, 32)) == ("hf-hub:someone/theirs", None)
    assert asked == ["open_clip:hf-hub:someone/theirs"]


@pytest.mark.parametrize("wanted", [None, "auto", "hub", "openai", "hf-hub:someone/theirs"])
def test_without_a_network_nothing_starts_from_scratch_unasked(wanted):
    words = r"no network for this hub name .*--pretrained FILE, .*--pretrained none\.$"
    with pytest.raises(UserError, match=words):
        choose_weights("open_clip:ViT-B-16-quickgelu", wanted, 3, (224, 224))
    assert choose_weights("open_clip:ViT-B-16-quickgelu", "none", 3, (224, 224)) == ("none", None)


@pytest.mark.parametrize(
    ("encoder", "wanted", "words"),
    [
        ("open_clip:ViT-B-16", "opnai", r"unknown --pretrained weights of open_clip:ViT-B-16 'opnai'; .*'openai'"),
        ("open_clip:ViT-B-16", "open_clip:RN50.openai", "are weights of open_clip:RN50, but the encoder is"),
        ("open_clip:ViT-B-16", "laion/CLIP", "no such file or folder .*hf-hub:"),
        (VIT, "auto", f"open_clip publishes no weights for {VIT}"),
    ],
)
def test_weights_that_cannot_be_meant(encoder, wanted, words):
    with pytest.raises(UserError, match=words):
        choose_weights(encoder, wanted, 3, (32, 32))
