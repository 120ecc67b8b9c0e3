import copy
import math

import pytest
import timm
import torch
from timm.data import resolve_data_config

from longtail.errors import UserError
from longtail.models import EncoderDefaults, build_encoder, encoder_defaults, feature_dim, timm_encoder

FAMILIES = [
    ("resnet18", 32),
    ("resnext50_32x4d", 32),
    ("vit_tiny_patch16_224", 32),
    ("convnext_atto", 32),
    ("efficientnet_b0", 32),
    ("mobilenetv3_small_050", 32),
    ("swin_tiny_patch4_window7_224", 32),
]


@pytest.mark.parametrize(("name", "side"), FAMILIES)
def test_feature_dim_is_the_width_of_a_real_forward(name, side):
    torch.manual_seed(0)
    encoder = build_encoder(name, 3, (side, side)).eval()
    with torch.no_grad():
        features = encoder(torch.randn(2, 3, side, side))
    assert features.shape == (2, feature_dim(encoder))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit.r160_in1k", "test_efficientnet"])
@pytest.mark.parametrize(("channels", "size"), [(1, (64, 64)), (3, (48, 80))])
def test_features_are_those_before_timms_own_classifier(name, channels, size):
    torch.manual_seed(1)
    encoder = build_encoder(name, channels, size).eval()
    options = {"img_size": size} if "vit" in name else {}
    whole = timm.create_model(name, in_chans=channels, num_classes=5, **options).eval()
    missing = whole.load_state_dict(encoder.state_dict(), strict=False).missing_keys
    assert {key.split(".")[0] for key in missing} <= {"fc", "head", "classifier"}
    images = torch.randn(2, channels, *size)
    with torch.no_grad():
        expected = whole.forward_head(whole.forward_features(images), pre_logits=True)
        torch.testing.assert_close(encoder(images), expected)
        assert torch.equal(copy.deepcopy(encoder)(images), encoder(images))


def test_weights_come_from_torchs_generator_and_the_probe_draws_nothing():
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(build_encoder("test_vit", 3, (32, 32)).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["patch_embed.proj.weight"], states[2]["patch_embed.proj.weight"])
    # The same draws as without this package, although a size not seen before was probed first.
    torch.manual_seed(3)
    plain = timm.create_model("test_vit", num_classes=0, img_size=(48, 48))
    torch.manual_seed(3)
    ours = build_encoder("test_vit", 3, (48, 48))
    assert all(torch.equal(tensor, ours.state_dict()[key]) for key, tensor in plain.state_dict().items())


def test_without_a_size_it_is_the_models_own():
    assert build_encoder("test_vit", 3).patch_embed.img_size == (160, 160)
    assert build_encoder("test_vit", 3, (64, 96)).patch_embed.img_size == (64, 96)


def test_building_on_the_meta_device_costs_no_memory():
    with torch.device("meta"):
        encoder = build_encoder("vit_large_patch16_224", 3, (224, 224))
    assert feature_dim(encoder) == 1024
    assert all(parameter.is_meta for parameter in encoder.parameters())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_a_size_that_the_model_cannot_take_is_refused(name):
    with pytest.raises(UserError, match=rf"'{name}' cannot take images of 8x9 pixels.*choose another --image_size"):
        build_encoder(name, 3, (8, 9))


def test_a_size_that_cannot_be_had_is_refused_every_time_and_others_are_not():
    for _ in range(2):
        with pytest.raises(UserError, match="cannot take"):
            build_encoder("test_vit", 3, (4, 4))
    assert feature_dim(build_encoder("test_vit", 3, (32, 32))) == 64


def test_a_second_build_probes_nothing(monkeypatch):
    built, create = [], timm_encoder._create
    monkeypatch.setattr(timm_encoder, "_create", lambda *words: built.append(words) or create(*words))
    for models in (2, 3):  # the first builds another one to ask
        build_encoder("test_resnet", 3, (40, 44))
        assert len(built) == models


@pytest.mark.parametrize(
    "name", ["resnet50", "resnext101_32x8d", "vit_base_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto"]
)
def test_defaults_are_timms_own(name):
    data = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    found = encoder_defaults(name)
    assert (3, *found.image_size) == data["input_size"]
    assert found.resize == math.floor(found.image_size[0] / data["crop_pct"])
    assert (found.interpolation, found.mean, found.std) == (data["interpolation"], data["mean"], data["std"])


def test_defaults_of_known_models():
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    # The tag decides: two sets of weights of one architecture were made differently.
    assert encoder_defaults("resnet50.tv_in1k") == EncoderDefaults((224, 224), 256, "bilinear", **imagenet)
    assert encoder_defaults("resnet50.a1_in1k") == EncoderDefaults((224, 224), 235, "bicubic", **imagenet)
    assert encoder_defaults("vit_tiny_patch16_224").mean == (0.5, 0.5, 0.5)


def test_defaults_of_a_model_that_timm_says_nothing_of(monkeypatch):
    monkeypatch.setattr("timm.models.get_pretrained_cfg", lambda name: None)
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    assert encoder_defaults("resnet18") == EncoderDefaults((224, 224), 256, "bicubic", **imagenet)


def test_every_default_of_timm_makes_a_framing():
    from longtail.data import Framing

    for name in timm.list_models(include_tags=True):
        found = encoder_defaults(name)
        Framing(found.image_size, found.resize, found.interpolation)
        assert len(found.mean) == len(found.std)
        assert min(found.std) > 0
