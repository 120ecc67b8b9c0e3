"""Teachers: the frozen one must not move, the momentum one must move by its formula."""

import copy

import pytest
import torch
from torch import nn

from longtail.errors import UserError
from longtail.memory import FrozenTeacher, MomentumTeacher


def student(seed=0):
    torch.manual_seed(seed)
    encoder = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return encoder, nn.Linear(4, 3)


def train_step(encoder, head, optimiser, seed):
    images = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    optimiser.zero_grad()
    head(encoder(images)).square().mean().backward()
    optimiser.step()


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("kind", [FrozenTeacher, MomentumTeacher])
def test_nothing_in_a_teacher_moves_with_the_student(kind):
    encoder, head = student()
    teacher = kind(encoder, head)
    before = snapshot(teacher)
    parent = nn.ModuleDict({"encoder": encoder, "head": head, "teacher": teacher})
    parent.train()
    # Weight decay and a loss that runs through the teacher would both move a parameter that is not frozen.
    optimiser = torch.optim.SGD(parent.parameters(), lr=0.5, weight_decay=0.1)
    for seed in range(3):
        images = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
        features, logits = teacher.features_and_logits(images)
        optimiser.zero_grad()
        (head(encoder(images)) - logits + features.sum()).square().mean().backward()
        optimiser.step()
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not any(module.training for module in teacher.modules())
    assert not torch.equal(head.weight, teacher.head.weight)


@pytest.mark.parametrize("kind", [FrozenTeacher, MomentumTeacher])
def test_outputs_are_those_of_the_student_in_eval_mode(kind):
    encoder, head = student()
    train_step(encoder, head, torch.optim.SGD([*encoder.parameters(), *head.parameters()], 0.1), 1)
    teacher = kind(encoder, head).train()
    assert encoder.training
    images = torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    encoder.eval()
    expected = encoder(images)
    assert torch.equal(teacher.features(images), expected)
    assert torch.equal(teacher.logits(images), head(expected))
    features, logits = teacher.features_and_logits(images)
    assert torch.equal(features, expected)
    assert torch.equal(logits, head(expected))


def test_teacher_features_serve_in_another_modules_graph():
    teacher = FrozenTeacher(*student())
    projection = nn.Linear(4, 2)
    features = teacher.features(torch.ones(3, 1, 6, 6))
    projection(features).sum().backward()
    assert torch.allclose(projection.weight.grad, features.sum(0).expand(2, 4))
    assert not features.requires_grad
    assert not features.is_inference()


@pytest.mark.parametrize("momentum", [0.999, 0.3, 0.0])
def test_momentum_update_equals_the_slow_formula(momentum):
    encoder, head = student()
    teacher = MomentumTeacher(encoder, head, momentum)
    optimiser = torch.optim.SGD([*encoder.parameters(), *head.parameters()], lr=0.3)
    average = {
        name: value.double() for name, value in {**encoder.state_dict(prefix="encoder."),
                                                 **head.state_dict(prefix="head.")}.items()
    }  # fmt: skip
    for n in range(12):
        train_step(encoder, head, optimiser, n)
        teacher.update(encoder, head)
        keep = min(momentum, (1 + n) / (10 + n))
        new = {**encoder.state_dict(prefix="encoder."), **head.state_dict(prefix="head.")}
        for name, value in new.items():
            average[name] = keep * average[name] + (1 - keep) * value.double() if value.is_floating_point() else value
    state = teacher.state_dict()
    assert int(state.pop("updates")) == 12
    assert state.keys() == average.keys()
    for name, value in state.items():
        torch.testing.assert_close(value.double(), average[name].double(), rtol=1e-5, atol=1e-6)
    assert int(state["encoder.1.num_batches_tracked"]) == 12


def test_warm_up_reaches_the_momentum_given():
    encoder, head = student()
    teacher = MomentumTeacher(encoder, head, momentum=0.5)
    with torch.no_grad():
        teacher.head.bias.fill_(1.0)
        head.bias.zero_()
    gaps = []
    for _ in range(12):
        teacher.update(encoder, head)
        gaps.append(float(teacher.head.bias[0]))
    ratios = torch.tensor(gaps[1:]) / torch.tensor(gaps[:-1])
    expected = [min(0.5, (1 + n) / (10 + n)) for n in range(1, 12)]
    assert gaps[0] == pytest.approx(0.1, rel=1e-5)
    assert ratios.tolist() == pytest.approx(expected, rel=1e-5)


def test_values_that_are_not_finite_are_left_out():
    encoder, head = student()
    teacher = MomentumTeacher(encoder, head)
    before = teacher.head.bias.clone()
    with torch.no_grad():
        head.bias.copy_(torch.tensor([torch.nan, torch.inf, 2.0]))
    teacher.update(encoder, head)
    assert torch.equal(teacher.head.bias[:2], before[:2])
    assert float(teacher.head.bias[2]) == pytest.approx(0.1 * float(before[2]) + 0.9 * 2.0)


@pytest.mark.parametrize("kind", [FrozenTeacher, MomentumTeacher])
def test_state_round_trip(kind):
    encoder, head = student()
    teacher, other = kind(encoder, head), kind(*student(seed=1))
    optimiser = torch.optim.SGD([*encoder.parameters(), *head.parameters()], lr=0.3)
    teachers = [teacher]
    for n in range(6):
        train_step(encoder, head, optimiser, n)
        if n == 3:
            other.load_state_dict(copy.deepcopy(teacher.state_dict()))
            teachers.append(other)
        if kind is MomentumTeacher:
            for each in teachers:
                each.update(encoder, head)
    saved, loaded = teacher.state_dict(), other.state_dict()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    images = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(9))
    assert torch.equal(teacher.logits(images), other.logits(images))


def test_update_refuses_another_network():
    encoder, head = student()
    teacher = MomentumTeacher(encoder, head)
    with pytest.raises(ValueError, match=r"differ from the teacher's.*bias"):
        teacher.update(encoder, nn.Linear(4, 3, bias=False))


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(UserError, match="momentum is"):
        MomentumTeacher(*student(), momentum=momentum)
