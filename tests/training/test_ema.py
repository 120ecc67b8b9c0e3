"""The moving average against a slow loop."""

import torch
from torch import nn

from longtail.training.ema import MovingAverage


def small_network():
    return nn.ModuleList([nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)), nn.Linear(3, 2)])


def run_steps(modules, average, steps):
    """Random training-like changes; returns the slow average of every float tensor, by position."""
    generator = torch.Generator().manual_seed(0)
    live = [*modules.parameters(), *modules.buffers()]
    slow = [value.detach().clone().double() for value in live]
    for n in range(steps):
        with torch.no_grad():
            for value in live:
                if value.is_floating_point():
                    value.add_(torch.randn(value.shape, generator=generator))
                else:
                    value.add_(1)
        average.update(torch.tensor(False))
        decay = min(average.decay, (1 + n) / (10 + n))
        slow = [
            decay * old + (1 - decay) * new.detach().double() if new.is_floating_point() else new.double()
            for old, new in zip(slow, live, strict=True)
        ]
    return live, slow


def test_average_of_parameters_and_norm_statistics():
    modules = small_network()
    average = MovingAverage(modules, 0.9)
    live, slow = run_steps(modules, average, 30)
    trained = [value.detach().clone() for value in live]
    with average.applied():
        for value, expected in zip(live, slow, strict=True):
            torch.testing.assert_close(value.detach().double(), expected, rtol=1e-5, atol=1e-5)
    for value, expected in zip(live, trained, strict=True):
        assert torch.equal(value, expected)


def test_state_round_trip_continues_bit_for_bit():
    torch.manual_seed(0)
    one, other = small_network(), small_network()
    other.load_state_dict(one.state_dict())
    first, second = MovingAverage(one, 0.99), MovingAverage(other, 0.99)
    run_steps(one, first, 5)
    other.load_state_dict(one.state_dict())
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    run_steps(one, first, 3)
    run_steps(other, second, 3)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_a_refused_step_moves_nothing():
    modules = small_network()
    average = MovingAverage(modules, 0.9)
    run_steps(modules, average, 2)
    before = {name: value.clone() for name, value in average.state_dict().items()}
    with torch.no_grad():
        modules[1].weight.add_(1)
    average.update(torch.tensor(True))
    for name, value in average.state_dict().items():
        assert torch.equal(value, before[name]), name
