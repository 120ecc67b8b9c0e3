import inspect
import sys

import pytest
import torch

from longtail.errors import UserError
from longtail.models import (
    FEATURE_ENCODERS,
    SmallNet,
    build_encoder,
    choose_weights,
    encoder_defaults,
    encoder_names,
    feature_dim,
)

OF_IMAGES = [name for name in encoder_names() if name not in FEATURE_ENCODERS]


@pytest.mark.parametrize("name", OF_IMAGES)
@pytest.mark.parametrize("in_channels", [1, 3])
def test_every_encoder_keeps_the_contract(name, in_channels):
    torch.manual_seed(0)
    encoder = build_encoder(name, in_channels).eval()
    images = torch.randn(3, in_channels, 16, 16)
    with torch.no_grad():
        features = encoder(images)
        assert features.shape == (3, feature_dim(encoder))
        # In eval mode an image's features do not depend on its neighbours.
        torch.testing.assert_close(encoder(images[1:2])[0], features[1], rtol=1e-4, atol=1e-5)
        assert (features[0] - features[1]).abs().max() > 1e-3


def test_names_are_the_documented_ones():
    depths = (20, 32, 44, 56, 110)
    own = [*(f"cifar_resnet{depth}" for depth in depths), "small_net"]
    assert encoder_names() == [*own, "features", "residual_adapter"]
    for depth in depths:
        assert build_encoder(f"cifar_resnet{depth}", 3).depth == depth


def test_same_seed_gives_same_weights():
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build_encoder("small_net", 1).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["layers.0.weight"], states[2]["layers.0.weight"])


def test_unknown_name_tells_the_near_ones():
    with pytest.raises(UserError, match=r"unknown encoder 'resnet20'; did you mean 'cifar_resnet20'\?"):
        build_encoder("resnet20", 3)
    with pytest.raises(UserError, match=r"unknown encoder 'cifar_resnet23'; did you mean .*'cifar_resnet20'"):
        build_encoder("cifar_resnet23", 3)
    with pytest.raises(UserError, match="did you mean 'small_net'"):
        build_encoder("smallnet", 3)
    with pytest.raises(UserError, match="did you mean 'vit_base_"):
        build_encoder("vit_base", 3)
    with pytest.raises(UserError, match=r"'resnet50\.a9_in1k'; did you mean .*'resnet50\.a\d_in1k'"):
        encoder_defaults("resnet50.a9_in1k")


@pytest.mark.parametrize("name", ["qqqqqqqq", "", "hf-hub:timm/resnet50.a1_in1k/"])
def test_the_whole_of_timm_is_never_listed(name):
    with pytest.raises(UserError) as caught:
        build_encoder(name, 3)
    assert len(str(caught.value)) < 250


def test_our_own_encoders_need_no_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # importing it is an ImportError now
    build_encoder("cifar_resnet20", 3, (32, 32))
    assert encoder_defaults("small_net") is None
    assert choose_weights("small_net", None, 1, (8, 8)) == ("none", None)
    with pytest.raises(ImportError):
        build_encoder("resnet18", 3)


@pytest.mark.parametrize("in_channels", [0, -1, 1.5])
def test_bad_channel_counts_are_refused(in_channels):
    with pytest.raises(UserError, match="in_channels"):
        build_encoder("small_net", in_channels)


def test_a_module_without_feature_dim_is_no_encoder():
    with pytest.raises(ValueError, match="Linear has no integer feature_dim"):
        feature_dim(torch.nn.Linear(2, 2))


def test_small_net_has_the_stated_layers():
    net = SmallNet(1)
    convolutions = sum(9 * a * b for a, b in ((1, 32), (32, 64), (64, 128)))
    assert sum(p.numel() for p in net.parameters()) == convolutions + 2 * (32 + 64 + 128)
    assert net.layers(torch.zeros(2, 1, 8, 8)).shape == (2, 128, 2, 2)
    assert inspect.signature(SmallNet).parameters["in_channels"].default == 3
