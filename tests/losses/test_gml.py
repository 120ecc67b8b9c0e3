"""GMLLoss against slow float64 loops whose gradients come from plain autograd."""

import copy
import doctest
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from longtail.losses import GMLLoss, gml, label_odds
from longtail.losses.label_odds import LabelClass, label_log_odds

TEMPERATURES = [1.0, 0.1, 0.05, 0.02, 0.005]


class Problem:
    """Unit queries and keys; some queries have several own keys, one has id -1, and key ids hold -1 too."""

    def __init__(self, lengths, counts=None, batch=6, dim=5, seed=0, dtype=torch.float64):
        generator = torch.Generator().manual_seed(seed)
        classes, keys = len(lengths), sum(lengths)
        self.counts = torch.tensor(counts if counts is not None else [max(n, 1) for n in lengths])
        self.offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
        self.key_labels = torch.arange(classes).repeat_interleave(torch.tensor(lengths))
        self.labels = torch.randint(0, classes, (batch,), generator=generator)
        draw = torch.randn(batch + keys, dim, generator=generator, dtype=torch.float64)
        self.queries, self.keys = (
            F.normalize(part, dim=1).to(dtype).requires_grad_() for part in (draw[:batch], draw[batch:])
        )
        # Ids 10 c + (0, 1, 2, -1 in turn): every class has some repeated ids and some keys without an image.
        turn = torch.arange(keys) % 4
        self.key_ids = torch.where(turn == 3, -1, 10 * self.key_labels + turn)
        self.query_ids = 10 * self.labels + torch.arange(batch) % 3
        self.query_ids[-1] = -1

    def call(self, loss, **changes):
        arguments = {name: getattr(self, name) for name in ("queries", "labels", "keys", "offsets")}
        return loss(**(arguments | changes))

    @property
    def ids(self):
        return {"query_ids": self.query_ids, "key_ids": self.key_ids}


def slow_gml(problem, temperature, strength=1.0, without_own=False, key_mask=None, pooling="mean"):
    """Return (mean loss or 0, samples that count): one product, class and sample at a time, in float64."""
    queries, keys = problem.queries.double(), problem.keys.double()
    total, counted = torch.zeros((), dtype=torch.float64), 0
    for b, label in enumerate(problem.labels.tolist()):
        terms = {}
        for c, count in enumerate(problem.counts.tolist()):
            columns = [k for k in range(len(keys)) if problem.key_labels[k] == c]
            if key_mask is not None:
                columns = [k for k in columns if key_mask.expand(len(queries), -1)[b, k]]
            if without_own:
                own = problem.query_ids[b].item()
                columns = [k for k in columns if own < 0 or problem.key_ids[k] != own]
            if not columns or (count == 0 and strength != 0):
                continue
            exponents = torch.stack([queries[b] @ keys[k] / temperature for k in columns])
            prior = strength * math.log(count / sum(problem.counts.tolist())) if strength else 0.0
            terms[c] = torch.logsumexp(exponents, 0) + prior - (math.log(len(columns)) if pooling == "mean" else 0.0)
        if label in terms:
            total = total - (terms[label] - torch.logsumexp(torch.stack(list(terms.values())), 0))
            counted += 1
    return total / max(counted, 1), counted


def gradients(loss, *inputs):
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


def check_against_loops(problem, loss, strength, without_own, tolerance, **given):
    temperature = torch.tensor(math.exp(loss.log_temperature.item()), dtype=torch.float64)
    key_mask = given.get("key_mask")
    expected, counted = slow_gml(problem, temperature, strength, without_own, key_mask, loss.class_pooling)
    actual = problem.call(loss, **given)
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)
    assert loss.counted.item() == counted
    if counted:
        wanted = gradients(expected, problem.queries, problem.keys)
        found = gradients(actual, problem.queries, problem.keys)
        for f, w in zip(found, wanted, strict=True):
            scale = w.abs().max().item()
            torch.testing.assert_close(f.double(), w.double(), rtol=tolerance, atol=tolerance * max(1.0, scale))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("lengths", [[4], [5, 3, 1], [8, 0, 4, 1, 2], [40, 9, 6]])
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_value_and_gradients_agree_with_loops(temperature, lengths, strength):
    problem = Problem(lengths)
    loss = GMLLoss(problem.counts, temperature, prior_strength=strength).double()
    check_against_loops(problem, loss, strength, False, 1e-6)
    problem = Problem(lengths, dtype=torch.float32)
    check_against_loops(problem, loss.float(), strength, False, 1e-4)


def test_float64_keeps_its_digits_although_the_temperature_is_stored_in_float32():
    problem = Problem([5, 3, 1])
    expected, _ = slow_gml(problem, 0.005)
    loss = GMLLoss(problem.counts, 0.005)
    assert loss.log_temperature.dtype == torch.float32
    torch.testing.assert_close(problem.call(loss), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.05, 0.005])
@pytest.mark.parametrize("masked", [None, "key", "query and key"])
@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_own_keys_against_loops(exclude, temperature, masked, pooling):
    problem = Problem([12, 5, 1, 0, 3], batch=10)
    given = dict(problem.ids)
    if masked:
        shape = (21,) if masked == "key" else (10, 21)
        given["key_mask"] = torch.rand(shape, generator=torch.Generator().manual_seed(5)) < 0.6
    loss = GMLLoss(problem.counts, temperature, exclude_own_key=exclude, class_pooling=pooling)
    check_against_loops(problem, loss, 1.0, exclude, 1e-6, **given)
    prior = (problem.counts / problem.counts.sum()).double()
    mask = given.get("key_mask")
    excluded, counted = slow_gml(problem, temperature, without_own=True, key_mask=mask, pooling=pooling)
    assert 0 < counted < 10
    bits = (-(prior * prior.log()).sum() - excluded) / math.log(2)
    assert not loss.information.requires_grad
    torch.testing.assert_close(loss.information, bits.detach(), rtol=1e-6, atol=1e-6)


def test_several_own_keys_all_go_and_id_minus_one_matches_nothing():
    problem = Problem([2])
    problem.queries, problem.labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    problem.keys = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [-1, 0]])
    problem.offsets, problem.counts = torch.tensor([0, 4, 5]), torch.tensor([1, 1])
    loss = GMLLoss([1, 1], temperature=1.0, exclude_own_key=True)

    def value(query_id, key_ids):
        return problem.call(loss, query_ids=torch.tensor([query_id]), key_ids=torch.tensor(key_ids)).item()

    all_keys = math.log1p(math.exp(-1) / ((3 * math.e + 1) / 4))
    assert value(7, [7, 7, 7, 8, 9]) == pytest.approx(math.log1p(math.exp(-1) / 1.0), rel=1e-6)
    assert value(7, [7, -1, 7, 8, 9]) == pytest.approx(math.log1p(math.exp(-1) / ((math.e + 1) / 2)), rel=1e-6)
    assert value(-1, [-1, -1, -1, -1, -1]) == pytest.approx(all_keys, rel=1e-6)
    assert value(3, [7, 7, 7, 8, 9]) == pytest.approx(all_keys, rel=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("exclude", [False, True])
def test_temperature_gradient_comes_from_the_copy_without_own_keys(temperature, with_ids, exclude):
    if exclude and not with_ids:
        return
    problem = Problem([12, 5, 1, 0, 3], batch=10)
    loss = GMLLoss(problem.counts, temperature, learn_temperature=True, exclude_own_key=exclude).double()
    given = problem.ids if with_ids else {}
    check_against_loops(problem, loss, 1.0, exclude, 1e-6, **given)  # features see the main copy alone
    log_temperature = loss.log_temperature.detach().clone().requires_grad_()
    slow, _ = slow_gml(problem, log_temperature.exp(), without_own=with_ids)
    problem.call(loss, **given).backward()
    wanted = gradients(slow, log_temperature)[0]
    torch.testing.assert_close(loss.log_temperature.grad, wanted, rtol=1e-6, atol=1e-9)
    fixed = GMLLoss(problem.counts, temperature, exclude_own_key=exclude).double()
    assert torch.equal(problem.call(fixed, **given), problem.call(loss, **given))
    torch.testing.assert_close(fixed.information, loss.information, equal_nan=True)
    assert loss.information.isnan().item() is not with_ids


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("exclude", [False, True])
def test_gradcheck(learn, exclude):
    problem = Problem([4, 2, 1], batch=4, dim=3)
    loss = GMLLoss(problem.counts, 0.3, learn, exclude_own_key=exclude).double()

    def of_features(queries, keys):
        return problem.call(loss, queries=queries, keys=keys, **problem.ids)

    assert torch.autograd.gradcheck(of_features, (problem.queries, problem.keys))


def test_without_prior_it_is_class_averaged_supcon_with_the_log_outside_the_mean():
    problem, temperature = Problem([7, 3, 2]), 0.1
    expected = 0.0
    for query, label in zip(problem.queries.tolist(), problem.labels.tolist(), strict=True):
        means = []
        for c in range(3):
            members = problem.keys[problem.key_labels == c].tolist()
            kernels = [math.exp(sum(a * b for a, b in zip(query, key, strict=True)) / temperature) for key in members]
            means.append(sum(kernels) / len(kernels))
        expected -= math.log(means[label] / sum(means)) / len(problem.labels)
    actual = problem.call(GMLLoss(problem.counts, temperature, prior_strength=0.0))
    assert actual.item() == pytest.approx(expected, rel=1e-6)


def test_one_key_a_class_is_the_logit_adjusted_cosine_classifier():
    problem = Problem([1, 1, 1, 1], counts=[60, 25, 10, 5])
    scale = 30.0
    actual = problem.call(GMLLoss(problem.counts, 1 / scale))
    logits = scale * F.linear(problem.queries, problem.keys) + (problem.counts / 100).double().log()
    expected = F.cross_entropy(logits, problem.labels)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    for found, wanted in zip(
        gradients(actual, problem.queries, problem.keys),
        gradients(expected, problem.queries, problem.keys),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)


def test_mean_with_prior_and_sum_without_prior_have_equal_gradients_at_proportional_lengths():
    problem = Problem([12, 6, 2], counts=[120, 60, 20])
    mean_loss = problem.call(GMLLoss(problem.counts, 0.1))
    sum_loss = problem.call(GMLLoss(problem.counts, 0.1, prior_strength=0.0, class_pooling="sum"))
    found, wanted = (gradients(x, problem.queries, problem.keys) for x in (mean_loss, sum_loss))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)
    uneven = problem.call(GMLLoss([120, 60, 90], 0.1))
    assert not torch.allclose(gradients(uneven, problem.queries)[0], wanted[0], rtol=1e-2)


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("cause", ["masked", "own keys", "count zero", "no keys"])
def test_if_no_sample_counts_the_loss_and_its_gradients_are_zero(cause, learn):
    problem = Problem([2, 0, 3], batch=4)
    problem.labels = torch.full((4,), 1 if cause == "no keys" else 0)
    counts, given = [5, 4, 3], {}
    if cause == "masked":
        given["key_mask"] = torch.zeros(5, dtype=torch.bool)
    elif cause == "own keys":
        given = {"query_ids": torch.full((4,), 1), "key_ids": torch.tensor([1, 1, 2, 3, 4])}
    elif cause == "count zero":
        counts = [0, 4, 3]
    loss = GMLLoss(counts, 0.1, learn, exclude_own_key=cause == "own keys")
    value = problem.call(loss, **given)
    assert value.item() == 0.0
    assert loss.counted.item() == 0
    assert loss.information.isnan()
    value.backward()
    learned = [loss.log_temperature] if learn else []
    for leaf in (problem.queries, problem.keys, *learned):
        assert leaf.grad is not None
        assert not leaf.grad.any()


def test_a_class_whose_only_keys_are_own_counts_in_the_main_copy_only():
    problem = Problem([1, 1], batch=2)
    problem.labels = torch.tensor([0, 1])
    loss = GMLLoss([1, 1], 0.1, learn_temperature=True).double()
    value = problem.call(loss, query_ids=torch.tensor([4, -1]), key_ids=torch.tensor([4, 5]))
    assert loss.counted.item() == 2
    value.backward()
    alone, _ = slow_gml(problem, 0.1)
    torch.testing.assert_close(value.detach(), alone.detach(), rtol=1e-6, atol=0)
    # The second query alone makes up the temperature copy and the information.
    own = Problem([1, 1], batch=2)
    own.queries, own.labels = problem.queries[1:], problem.labels[1:]
    log_temperature = torch.tensor(math.log(0.1), dtype=torch.float64, requires_grad=True)
    second, _ = slow_gml(own, log_temperature.exp())
    torch.testing.assert_close(loss.log_temperature.grad, gradients(second, log_temperature)[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.information, (1 - second / math.log(2)).detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_overflows_at_the_lowest_temperature(dtype):
    # Duplicates, antipodes, one-key and empty classes, and a query equal to its key, in one batch.
    unit = torch.eye(4)
    keys = torch.cat([unit[:1].repeat(5, 1), -unit[:1], unit[1:3], -unit[1:2]]).to(dtype).requires_grad_()
    queries = torch.stack([unit[0], -unit[0], unit[1], unit[3]]).to(dtype).requires_grad_()
    loss = GMLLoss([50, 9, 0, 7, 1], 0.005, learn_temperature=True)
    value = loss(
        queries,
        torch.tensor([0, 0, 4, 1]),
        keys,
        torch.tensor([0, 6, 6, 7, 8, 9]),
        query_ids=torch.tensor([0, 1, 8, -1]),
        key_ids=torch.tensor([0, 0, 0, 0, 0, 1, 6, 7, 8]),
    )
    value.backward()
    assert value.isfinite()
    assert value.dtype == torch.float32
    assert loss.counted.item() == 3  # class 1 has no key
    for leaf in (queries, keys, loss.log_temperature):
        assert leaf.grad.isfinite().all()
        assert leaf.grad.dtype == leaf.dtype
    assert keys.grad[6].abs().max() == 0  # class 2 has a key but no count


def test_half_precision_and_autocast_compute_in_float32():
    problem = Problem([9, 4, 2], dtype=torch.bfloat16)
    loss = GMLLoss(problem.counts, 0.005)
    expected, _ = slow_gml(problem, 0.005)
    plain = problem.call(loss)
    torch.testing.assert_close(plain.double(), expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(problem.call(loss), plain)
        wide = {"queries": problem.queries.float(), "keys": problem.keys.float()}
        assert torch.equal(problem.call(loss, **wide), plain)


def test_without_prior_a_class_of_count_zero_takes_part():
    problem = Problem([2, 3], counts=[4, 0])
    problem.labels = torch.ones_like(problem.labels)
    loss = GMLLoss(problem.counts, 0.1, prior_strength=0.0).double()
    check_against_loops(problem, loss, 0.0, False, 1e-6)
    assert loss.counted.item() == 6


def test_state_holds_counts_and_temperature():
    learned = GMLLoss([3, 1], 0.07, learn_temperature=True)
    assert [name for name, _ in learned.named_parameters()] == ["log_temperature"]
    assert not list(GMLLoss([3, 1]).parameters())
    with torch.no_grad():
        learned.log_temperature.fill_(math.log(0.05))
    for other in (GMLLoss([1, 1]), GMLLoss([1, 1], learn_temperature=True)):
        other.load_state_dict(copy.deepcopy(learned.state_dict()))
        assert other.class_counts.tolist() == [3, 1]
        assert other.temperature.item() == pytest.approx(0.05, rel=1e-6)
        assert other.temperature.ndim == 0


def test_same_input_gives_same_bits():
    problem = Problem([400, 0, 99, 1], batch=20, dtype=torch.float32)
    loss = GMLLoss(problem.counts, 0.05, learn_temperature=True)
    inputs = (problem.queries, problem.keys, loss.log_temperature)
    first, second = (gradients(problem.call(loss, **problem.ids), *inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_one_step_on_the_temperature_lowers_the_copy_without_own_keys():
    problem = Problem([12, 5, 4], batch=10)
    loss = GMLLoss(problem.counts, 0.1, learn_temperature=True).double()
    before, _ = slow_gml(problem, loss.temperature.item(), without_own=True)
    problem.call(loss, **problem.ids).backward()
    with torch.no_grad():
        loss.log_temperature -= 1e-3 * loss.log_temperature.grad
    after, _ = slow_gml(problem, loss.temperature.item(), without_own=True)
    assert after < before


@pytest.mark.parametrize("rows", [1, 4, 9])
@pytest.mark.parametrize("masked", [None, "key", "query and key"])
@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("temperature", [0.1, 0.005])
def test_in_parts_it_is_the_same_loss(rows, masked, exclude, temperature):
    problem = Problem([12, 5, 1, 0, 3], batch=10)
    given = dict(problem.ids)
    if masked:
        shape = (21,) if masked == "key" else (10, 21)
        given["key_mask"] = torch.rand(shape, generator=torch.Generator().manual_seed(5)) < 0.6
    outcomes = []
    for most in (None, rows * 21):
        loss = GMLLoss(problem.counts, temperature, True, exclude_own_key=exclude, max_similarities=most).double()
        value = problem.call(loss, **given)
        inputs = (problem.queries, problem.keys, loss.log_temperature)
        # Times 3: what arrives at the sums need not be one.
        outcomes.append([value.detach(), loss.counted, loss.information, *gradients(3 * value, *inputs)])
    assert outcomes[0][1] > 0
    for whole, parts in zip(*outcomes, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("needed", ["queries", "keys", "temperature", "nothing"])
def test_in_parts_only_what_is_asked_for_has_a_gradient(needed):
    problem = Problem([5, 3, 1], batch=7)
    given = {name: getattr(problem, name).detach().requires_grad_(name == needed) for name in ("queries", "keys")}
    found = []
    for most in (None, 2 * 9):
        loss = GMLLoss(problem.counts, 0.1, needed == "temperature", max_similarities=most).double()
        value = problem.call(loss, **given, **problem.ids)
        leaf = loss.log_temperature if needed == "temperature" else given.get(needed)
        assert value.requires_grad is (needed != "nothing")
        found.append([value.detach(), *(gradients(value, leaf) if leaf is not None else [])])
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


class Largest(TorchDispatchMode):
    """Notes the most elements any tensor had that an operation made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(tensor, torch.Tensor) and "expand" not in str(operation):
                self.elements = max(self.elements, tensor.numel())
        return found


def test_in_parts_no_tensor_is_larger_than_was_allowed():
    problem = Problem([30, 20, 14], batch=100, dim=2, dtype=torch.float32)
    for most, largest in ((None, 6400), (640, 640)):
        loss = GMLLoss(problem.counts, 0.1, learn_temperature=True, max_similarities=most)
        with Largest() as seen:
            problem.call(loss, **problem.ids).backward()
        assert seen.elements == largest


@pytest.mark.parametrize("mask_shape", [None, (9,), (6, 9)])
@pytest.mark.parametrize("most", [None, 18])
def test_nothing_is_read_back_from_a_device(mask_shape, most):
    # A fake tensor has a device and no values: whatever needs one raises. Without gradients, for which autograd
    # would look for the GPU.
    loss = GMLLoss([3, 2, 4], max_similarities=most)
    with FakeTensorMode():
        loss.class_counts = torch.empty(3, dtype=torch.int64, device="cuda")
        loss.log_temperature = torch.empty((), device="cuda")
        queries, keys = (torch.empty(n, 4, device="cuda") for n in (6, 9))
        labels, query_ids, key_ids = (torch.empty(n, dtype=torch.int64, device="cuda") for n in (6, 6, 9))
        offsets = torch.empty(4, dtype=torch.int64, device="cuda")
        mask = None if mask_shape is None else torch.empty(mask_shape, dtype=torch.bool, device="cuda")
        with pytest.raises(DataDependentOutputException):
            loss(queries, labels, keys, offsets, query_ids, key_ids, mask)
        value = loss(queries, labels, keys, offsets, query_ids, key_ids, mask, longest_class=4)
        assert value.device.type == "cuda"
        assert value.shape == loss.information.shape == loss.counted.shape == ()


def test_nothing_is_read_back_on_the_way_back():
    # Tensors of the meta device have no values either, and autograd needs no GPU for them.
    make = partial(torch.empty, device="meta")
    queries, keys, log_temperature = (make(n).requires_grad_() for n in ((6, 4), (9, 4), ()))
    place = LabelClass(*(make(6, dtype=torch.int64) for _ in range(2)), 4)
    place = place._replace(query_ids=make(6, dtype=torch.int64), key_ids=make(9, dtype=torch.int64))
    odds, others = label_log_odds(queries, keys, log_temperature, make(9), place)
    (gml._summed(odds)[0] + gml._summed(others)[0]).backward()
    assert queries.grad.shape == (6, 4)
    assert keys.grad.shape == (9, 4)
    assert log_temperature.grad.shape == ()


def test_a_longest_class_that_is_too_long_changes_nothing():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(10, 21, generator=generator, dtype=torch.float64)
    problem = Problem([12, 5, 1, 0, 3], batch=10)
    found = []
    for longest in (12, 21, 40):  # the loss itself corrects it on a CPU
        place = LabelClass.find(problem.labels, problem.offsets)._replace(longest=longest, **problem.ids)
        weights = logits.clone()
        odds, others, shift, scale = label_odds._odds(weights, place)
        found.append([odds, others, shift, weights * scale[:, None]])
    for longer in found[1:]:
        torch.testing.assert_close(longer, found[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_counts": [[1, 2]]}, r"class_counts must be \[C\]"),
        ({"class_counts": [3, -1]}, "not negative"),
        ({"class_counts": [0, 0]}, "all zero"),
        ({"class_counts": [1], "temperature": 0.0}, "temperature must be above 0"),
        ({"class_counts": [1], "temperature": -0.1}, "temperature must be above 0"),
        ({"class_counts": [1], "temperature": math.nan}, "temperature must be above 0"),
        ({"class_counts": [1], "kernel": "fast"}, "kernel must be"),
        ({"class_counts": [1], "class_pooling": "max"}, "class_pooling must be"),
        ({"class_counts": [1], "max_similarities": 0}, "max_similarities must be at least 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GMLLoss(**options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": torch.zeros(6, 4)}, r"\[B, D\] and \[K, D\]"),
        ({"keys": torch.zeros(5)}, r"\[B, D\] and \[K, D\]"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, r"labels must be int64 \[6\]"),
        ({"labels": torch.full((6,), 2)}, r"labels must lie in 0\.\.1"),
        ({"offsets": torch.tensor([0, 5])}, r"offsets must be \[3\] for 2 classes"),
        ({"offsets": torch.tensor([0, 2, 4])}, "run from 0 to the 5 keys"),
        ({"query_ids": torch.zeros(6, dtype=torch.int64)}, "given together"),
        (
            {"query_ids": torch.zeros(6, dtype=torch.int64), "key_ids": torch.zeros(4, dtype=torch.int64)},
            r"key_ids must be integers \[5\]",
        ),
        ({"key_mask": torch.ones(4, dtype=torch.bool)}, "mask must be"),
        ({"longest_class": 1}, "longest_class is 1, but a label's class has"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Problem([3, 2]).call(GMLLoss([3, 2]), **changes)


def test_excluding_own_keys_needs_ids():
    with pytest.raises(ValueError, match="exclude_own_key needs query_ids"):
        Problem([3, 2]).call(GMLLoss([3, 2], exclude_own_key=True))


def test_docstring_example():
    outcome = doctest.testmod(gml)
    assert outcome.attempted >= 5
    assert outcome.failed == 0
