import pytest
import torch
from torch import nn

from longtail.models.cifar_resnet import BasicBlock, CifarResNet, option_a_shortcut


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def closed_form(depth):
    """Parameters with a 10-class linear layer: 9 in out a convolution, 2 out a BatchNorm."""
    n = (depth - 2) // 6
    total = 9 * 3 * 16 + 2 * 16
    previous = 16
    for width in (16, 32, 64):
        total += 9 * previous * width + 9 * width * width + 4 * width
        total += (n - 1) * (2 * 9 * width * width + 4 * width)
        previous = width
    return total + 64 * 10 + 10


@pytest.mark.parametrize(
    ("depth", "published_millions"), [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85"), (110, "1.7")]
)
def test_parameter_counts_are_the_published_ones(depth, published_millions):
    # He et al. 2016, Table 6, gives millions with these digits; weights of a 10-class classifier included.
    net = nn.Sequential(CifarResNet(depth), nn.Linear(64, 10))
    digits = len(published_millions.split(".")[1])
    assert f"{count(net) / 1e6:.{digits}f}" == published_millions
    assert count(net) == closed_form(depth)


@pytest.mark.parametrize("depth", [20, 32])
def test_depth_counts_weighted_layers_on_the_longest_path(depth):
    convolutions = [m for m in CifarResNet(depth).modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) + 1 == depth
    assert all(c.bias is None and c.kernel_size == (3, 3) for c in convolutions)


@pytest.mark.parametrize("depth", [2, 7, 18, 33, -4])
def test_other_depths_are_refused(depth):
    with pytest.raises(ValueError, match="6n"):
        CifarResNet(depth)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 5)])
@pytest.mark.parametrize(("channels", "out_channels", "stride"), [(16, 32, 2), (4, 4, 2), (3, 6, 1), (5, 5, 1)])
def test_option_a_shortcut_equals_a_loop(height, width, channels, out_channels, stride):
    x = torch.randn(2, channels, height, width)
    rows, columns = -(-height // stride), -(-width // stride)
    expected = torch.zeros(2, out_channels, rows, columns)
    before = (out_channels - channels) // 2
    for channel in range(channels):
        for row in range(rows):
            for column in range(columns):
                expected[:, before + channel, row, column] = x[:, channel, row * stride, column * stride]
    assert torch.equal(option_a_shortcut(x, out_channels, stride), expected)


def test_blocks_hold_no_shortcut_parameters_and_equal_the_formula():
    torch.manual_seed(0)
    block = BasicBlock(16, 32, stride=2).eval()
    assert sorted(name for name, _ in block.named_parameters()) == [
        "bn1.bias", "bn1.weight", "bn2.bias", "bn2.weight", "conv1.weight", "conv2.weight",
    ]  # fmt: skip
    x = torch.randn(2, 16, 9, 9)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.2)
        residual = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
        residual[:, 8:24] += x[:, :, ::2, ::2]
        torch.testing.assert_close(block(x), residual.clamp(min=0))


def test_convolutions_start_kaiming_normal():
    torch.manual_seed(0)
    for conv in (m for m in CifarResNet(20).modules() if isinstance(m, nn.Conv2d)):
        expected = (2 / (9 * conv.in_channels)) ** 0.5
        n = conv.weight.numel()
        # A standard deviation from n normal draws has a relative error of about 1 / sqrt(2 n).
        assert abs(float(conv.weight.detach().std()) / expected - 1) < 5 / (2 * n) ** 0.5


def test_resolution_falls_to_a_quarter_and_is_averaged():
    torch.manual_seed(0)
    net = CifarResNet(20, in_channels=1).eval()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        maps = net.stages(torch.relu(net.stem_bn(net.stem(x))))
        assert maps.shape == (2, 64, 8, 8)
        torch.testing.assert_close(net(x), maps.flatten(2).sum(2) / 64)


def test_every_parameter_gets_a_finite_gradient():
    torch.manual_seed(0)
    net = CifarResNet(20)
    net(torch.randn(4, 3, 32, 32)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
