"""class_logmeanexp against float64 loops, closed forms and autograd's own check."""

import doctest
import math

import pytest
import torch

from longtail.losses import class_density, class_logmeanexp

TEMPERATURES = [1.0, 0.1, 0.05, 0.02, 0.005]
LAYOUTS = [[1], [3], [1, 1, 1], [4, 2, 1], [0, 3, 0, 0, 2, 0], [300, 1, 129, 128, 5], [0, 0]]


def offsets_of(lengths):
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])


def slow_logmeanexp(logits, lengths, mask=None):
    """Float64 python loops: log of the mean of exp over the keys that count, -inf for none."""
    rows = []
    for b, row in enumerate(logits.double().tolist()):
        start, out = 0, []
        for length in lengths:
            values = [
                row[k] for k in range(start, start + length) if mask is None or bool(mask.expand(logits.shape)[b, k])
            ]
            top = max(values, default=0.0)
            total = math.fsum(math.exp(v - top) for v in values)
            out.append(top + math.log(total / len(values)) if values else -math.inf)
            start += length
        rows.append(out)
    return torch.tensor(rows, dtype=torch.float64)


def similarities(batch, keys, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, keys, generator=generator, dtype=torch.float64) * 2 - 1).to(dtype)


def assert_close(actual, expected, bound):
    """Absolute error below bound * max(1, |expected|); infinities must agree exactly."""
    finite = expected.isfinite()
    assert torch.equal(actual.isfinite(), finite)
    assert torch.equal(actual[~finite].double(), expected[~finite])
    error = (actual.double() - expected)[finite].abs() / expected[finite].abs().clamp(min=1)
    assert error.max().item() <= bound if error.numel() else True


@pytest.mark.parametrize("lengths", LAYOUTS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("batch", [1, 5, 33])
def test_agrees_with_loops(lengths, temperature, batch):
    logits = similarities(batch, sum(lengths), seed=batch) / temperature
    expected = slow_logmeanexp(logits, lengths)
    assert_close(class_logmeanexp(logits, offsets_of(lengths)), expected, 1e-5)
    wide = class_logmeanexp(logits.double(), offsets_of(lengths))
    assert wide.dtype == torch.float64
    assert_close(wide, expected, 1e-13)


@pytest.mark.parametrize("mask_shape", ["key", "query and key"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_masked_keys_are_as_if_absent(mask_shape, temperature):
    lengths = [5, 1, 7, 0, 3]
    logits = similarities(9, 16) / temperature
    generator = torch.Generator().manual_seed(3)
    shape = (16,) if mask_shape == "key" else (9, 16)
    mask = torch.rand(shape, generator=generator) < 0.5
    mask[..., 13:] = False  # the last class is masked whole
    expected = slow_logmeanexp(logits, lengths, mask)
    assert expected[:, 4].isneginf().all()
    assert expected[:, 0].isfinite().any()
    assert_close(class_logmeanexp(logits, offsets_of(lengths), mask), expected, 1e-5)


def test_long_class_keeps_its_digits():
    # One running float32 sum over this many keys is off by about 5e-6; the blocks keep it under the bound.
    logits = similarities(8, 32768)
    expected = torch.logsumexp(logits.double(), 1) - math.log(32768)
    assert (class_logmeanexp(logits, offsets_of([32768]))[:, 0].double() - expected).abs().max() < 1e-6


def test_far_class_keeps_its_density():
    # One maximum a row would underflow the second class to log 0.
    logits = torch.tensor([[200.0, 199.0, -200.0, -200.0]], requires_grad=True)
    density = class_logmeanexp(logits, torch.tensor([0, 2, 4]))
    assert density[0, 1].item() == -200.0
    density[0, 1].backward()
    assert logits.grad.tolist() == [[0.0, 0.0, 0.5, 0.5]]


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("mask_shape", [None, (11,), (4, 11)])
def test_gradcheck(layout, mask_shape):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 11, generator=generator, dtype=torch.float64) * 3
    logits = logits if layout == "rows" else logits.t().contiguous().t()
    mask = None if mask_shape is None else torch.rand(mask_shape, generator=generator) < 0.7
    if mask is not None:
        mask[..., 8:] = False
    offsets = torch.tensor([0, 3, 3, 4, 8, 11])

    def present(values):
        densities = class_logmeanexp(values, offsets, mask)
        return densities[:, densities.detach().isfinite().all(0)]

    assert present(logits).shape[1] >= 2
    assert torch.autograd.gradcheck(present, (logits.requires_grad_(),))


@pytest.mark.parametrize("arriving", [0.0, 1.0, math.inf, math.nan])
def test_empty_classes_have_zero_gradient(arriving):
    logits = similarities(2, 5).requires_grad_()
    mask = torch.tensor([True, True, True, False, False])
    densities = class_logmeanexp(logits, torch.tensor([0, 0, 3, 5]), mask)
    assert densities[:, [0, 2]].isneginf().all()
    gradient = torch.full((2, 3), arriving)
    gradient[:, 1] = 1.0
    densities.backward(gradient)
    torch.testing.assert_close(logits.grad[:, :3], logits.detach()[:, :3].softmax(1))
    assert not logits.grad[:, 3:].any()


def test_a_key_of_logit_minus_infinity_weighs_nothing():
    logits = torch.tensor([[0.0, -math.inf, -math.inf]], requires_grad=True)
    densities = class_logmeanexp(logits, torch.tensor([0, 2, 3]))
    assert densities.tolist() == [[pytest.approx(-math.log(2)), -math.inf]]
    densities.backward(torch.ones(1, 2))
    assert logits.grad.tolist() == [[1.0, 0.0, 0.0]]


def test_one_key_and_equal_keys_in_closed_form():
    logits = torch.tensor([[3.0, -7.0, -7.0, -7.0]])
    assert class_logmeanexp(logits, torch.tensor([0, 1, 4])).tolist() == [[3.0, -7.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_float32(dtype):
    lengths = [3000, 40, 1]
    logits = (similarities(3, 3041) / 0.05).to(dtype).requires_grad_()
    densities = class_logmeanexp(logits, offsets_of(lengths))
    assert densities.dtype == torch.float32
    assert_close(densities, slow_logmeanexp(logits.detach(), lengths), 1e-5)
    densities.sum().backward()
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize("how", ["sum", "amax"])
def test_the_way_of_other_devices_gives_the_same_groups(how):
    rows = similarities(7, 40, dtype=torch.float64).t()
    group = torch.tensor([1] * 5 + [2] + [6] * 34)
    expected = class_density._reduced(rows, group, 9, how)
    assert torch.equal(expected[[0, 3, 8]], torch.full((3, 7), 0.0 if how == "sum" else -math.inf).double())
    torch.testing.assert_close(class_density.in_order(rows, group, 9, how), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("lengths", LAYOUTS)
def test_densities_by_the_way_of_other_devices(lengths, monkeypatch):
    logits = similarities(5, sum(lengths)) / 0.02
    monkeypatch.setattr(class_density, "_reduced", class_density.in_order)
    assert_close(class_logmeanexp(logits, offsets_of(lengths)), slow_logmeanexp(logits, lengths), 1e-5)


def test_same_input_gives_same_bits():
    logits = (similarities(20, 5000) / 0.01).requires_grad_()
    outcomes = []
    for _ in range(3):
        densities = class_logmeanexp(logits, offsets_of([4000, 0, 999, 1]))
        (gradient,) = torch.autograd.grad(densities[:, [0, 2, 3]].sum(), logits)
        outcomes.append((densities.detach(), gradient))
    assert all(torch.equal(a, b) for outcome in outcomes for a, b in zip(outcome, outcomes[0], strict=True))


def test_many_classes_need_no_matrix_of_keys_by_classes():
    keys = 200_000  # such a float32 matrix would take 160 GB
    logits = similarities(2, keys).requires_grad_()
    densities = class_logmeanexp(logits, torch.arange(keys + 1))
    assert torch.equal(densities, logits)
    densities.sum().backward()
    assert torch.equal(logits.grad, torch.ones(2, keys))


def test_no_keys_and_no_queries():
    assert class_logmeanexp(torch.zeros(2, 0), torch.tensor([0, 0])).isneginf().all()
    assert class_logmeanexp(torch.zeros(0, 3), torch.tensor([0, 3])).shape == (0, 1)


@pytest.mark.parametrize(
    ("logits", "offsets", "mask", "message"),
    [
        (torch.zeros(3), torch.tensor([0, 3]), None, r"logits must be floating point \[B, K\]"),
        (torch.zeros(1, 3).long(), torch.tensor([0, 3]), None, "logits must be floating point"),
        (torch.zeros(1, 3), torch.tensor([0.0, 3.0]), None, r"offsets must be int64 \[C \+ 1\]"),
        (torch.zeros(1, 3), torch.tensor([[0, 3]]), None, "offsets must be int64"),
        (torch.zeros(1, 3), torch.tensor([0, 2]), None, "run from 0 to the 3 keys, got 0 to 2"),
        (torch.zeros(1, 3), torch.tensor([0, 2, 1, 3]), None, "never fall"),
        (torch.zeros(1, 3), torch.tensor([0, 3]), torch.ones(3), "mask must be bool"),
        (torch.zeros(1, 3), torch.tensor([0, 3]), torch.ones(2).bool(), r"mask must be \[K\] or \[B, K\]"),
    ],
)
def test_what_does_not_fit_is_refused(logits, offsets, mask, message):
    with pytest.raises(ValueError, match=message):
        class_logmeanexp(logits, offsets, mask)


def test_docstring_example():
    outcome = doctest.testmod(class_density)
    assert outcome.attempted >= 2
    assert outcome.failed == 0
