"""What the ledger writes down, against closed forms, real tensors and published counts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from longtail.models import build_encoder
from longtail.planning.ledger import counted_step


def on_meta(name):
    with torch.device("meta"):
        return build_encoder(name, 3, (224, 224))


def test_resnet50_has_its_published_number_of_multiplications():
    encoder, images = on_meta("resnet50"), torch.empty(2, 3, 224, 224, device="meta")
    with counted_step(encoder) as ledger:
        encoder(images)
    forward = sum(op.flops for op in ledger.operations) / 2
    assert forward / 2e9 == pytest.approx(4.09, abs=0.005)  # torchvision's table, without its head's 2 million
    with FlopCounterMode(display=False) as torchs:
        encoder(images)
    assert 2 * forward == torchs.get_total_flops()


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_a_convolution_by_hand(groups):
    layer = nn.Conv2d(8, 16, 3, padding=1, groups=groups, bias=False).to("meta")
    with counted_step(layer) as ledger:
        x = torch.zeros(2, 8, 5, 7, device="meta", requires_grad=True)
        layer(x).sum().backward()
    convolutions = [op for op in ledger.operations if op.flops]
    one = 2 * (2 * 16 * 5 * 7) * (8 // groups) * 9
    assert [op.flops for op in convolutions] == [one, 2 * one]
    kind = {1: "convolution", 4: "grouped", 8: "depthwise"}[groups]
    assert {op.kind for op in convolutions} == {kind}
    moved = 4 * (2 * 8 * 35 + 2 * 16 * 35 + 16 * (8 // groups) * 9)
    assert convolutions[0].read_and_written == moved


def test_memory_that_is_alive_is_that_of_real_tensors():
    def network():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    planned, real, images = network().to("meta"), network(), torch.randn(4, 3, 12, 12)
    with counted_step(planned) as ledger:
        features = planned(images.to("meta"))
        held = ledger.alive
    saved, weights = {}, {p.untyped_storage()._cdata for p in (*real.parameters(), *real.buffers())}

    def keep(x):
        saved[x.untyped_storage()._cdata] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = real(images)
    keep(out)
    # What autograd holds of a real pass; the ledger begins with the images already there, but not on its device.
    kept = {key: x.untyped_storage().nbytes() for key, x in saved.items() if key not in weights}
    assert features.shape == out.shape
    assert held == sum(kept.values())


def test_memory_rises_and_falls_in_a_backward_pass():
    with torch.device("meta"):
        layers = nn.Sequential(*[nn.Sequential(nn.Linear(100, 100, bias=False), nn.ReLU()) for _ in range(10)])
    square = 4 * 100 * 100
    images = torch.empty(100, 100, device="meta")
    with counted_step(layers) as ledger:
        result = layers(images)
        assert ledger.alive == 10 * square  # what is rectified serves two layers; the products themselves are let go
        loss = result.sum()
        del result
        loss.backward()
        del loss
    assert ledger.alive == 10 * square  # gradients of the weights
    assert 10 * square < ledger.peak < 14 * square


def test_parts_are_told_apart_in_both_passes():
    with torch.device("meta"):
        first, second = nn.Linear(10, 20, bias=False), nn.Linear(20, 30, bias=False)
    with counted_step(first, second) as ledger:
        ledger.watch(first, "student")
        ledger.watch(second, "contrast")
        hidden = first(torch.empty(5, 10, device="meta"))
        F.relu(second(F.relu(hidden))).sum().backward()
    flops = {part: sum(op.flops for op in ledger.operations if op.part == part) for part in ("student", "contrast")}
    # Nothing asks for the gradient of the input.
    assert flops == {"student": 2 * 2 * 5 * 10 * 20, "contrast": 3 * 2 * 5 * 20 * 30}
