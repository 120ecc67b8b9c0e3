"""Keys kept from step to step against a list that is kept by hand."""

import copy

import pytest
import torch

from longtail.memory import FreshKeys
from longtail.memory.fresh_keys import fresh_slots
from longtail.models import ProjectionHead

SLOTS, DIM, WIDTH = 12, 5, 3


def head(seed=0):
    torch.manual_seed(seed)
    return ProjectionHead(DIM, WIDTH)


def drawn(seed, rows=SLOTS):
    return torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed))


def test_a_share_of_one_is_the_projection_bit_for_bit():
    a, b, fresh, features = head(), head(), FreshKeys(SLOTS, WIDTH, SLOTS), drawn(1)
    fresh.begin_step(torch.tensor([3]))
    ours, theirs = fresh(features, a), b(features)
    assert torch.equal(ours, theirs)
    for keys in (ours, theirs):
        (keys * drawn(2)[:, :WIDTH]).sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q in zip(a.buffers(), b.buffers(), strict=True))


def test_keys_and_turns_against_a_slow_version():
    fresh, features = FreshKeys(SLOTS, WIDTH, fresh=4), drawn(0)
    fresh.start(features, head(99))
    kept, ages = list(head(99)(features).detach()), [1] * SLOTS
    order = torch.randperm(SLOTS, generator=torch.Generator().manual_seed(0)).tolist()
    seen_last = [0] * SLOTS
    for step in range(1, 30):
        written = torch.randint(0, SLOTS, (3,), generator=torch.Generator().manual_seed(step))
        written[1] = written[0]
        features[written] = drawn(step, 3)[[0, 0, 2]]
        fresh.begin_step(written)
        for slot in written.tolist():
            ages[slot] = 10_000
        chosen = sorted(sorted(range(SLOTS), key=lambda k: (-ages[k], order[k]))[:4])
        assert fresh.chosen.tolist() == chosen
        assert set(written.tolist()) <= set(chosen)
        project = head(step)
        with torch.no_grad():
            for slot, key in zip(chosen, head(step)(features[chosen]), strict=True):
                kept[slot] = key
        keys = fresh(features, project)
        torch.testing.assert_close(keys.detach(), torch.stack(kept), rtol=1e-6, atol=1e-6)
        ages = [1 if k in chosen else age + 1 for k, age in enumerate(ages)]
        seen_last = [step if k in chosen else last for k, last in enumerate(seen_last)]
        assert step - min(seen_last) <= 6  # at most 2 of 4 places go to what was written, so a turn comes by 12 / 2
        keys.square().sum(1).mul(torch.arange(12.0)).sum().backward()


def test_only_fresh_keys_carry_gradient():
    fresh, features = FreshKeys(SLOTS, WIDTH, fresh=4), drawn(0)
    fresh.start(features, head(1))
    fresh.begin_step(torch.tensor([5, 7]))
    weights = drawn(8)[:, :WIDTH]
    ours, theirs = head(2), head(2)
    (fresh(features, ours) * weights).sum().backward()
    (theirs(features[fresh.chosen]) * weights[fresh.chosen]).sum().backward()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_a_second_call_and_a_resumed_run_return_the_same():
    fresh, features = FreshKeys(SLOTS, WIDTH, fresh=4), drawn(0)
    fresh.start(features, head(1))
    for step in range(3):
        fresh.begin_step(torch.tensor([step]))
        first = fresh(features, head(step))
        assert torch.equal(first, fresh(features, head(step)))
    again = FreshKeys(SLOTS, WIDTH, fresh=4)
    again.load_state_dict(copy.deepcopy(fresh.state_dict()))
    for step in range(3, 9):
        for keys in (fresh, again):
            keys.begin_step(torch.tensor([step]))
        assert torch.equal(fresh(features, head(step)), again(features, head(step)))


def test_what_is_not_finite_is_not_kept():
    fresh, features = FreshKeys(SLOTS, WIDTH, fresh=4), drawn(0)
    fresh.start(features, head(1))
    before = fresh.keys.clone()
    fresh.begin_step(torch.tensor([2]))

    def broken(x):
        keys = head(3)(x)
        return torch.where((fresh.chosen == 2)[:, None], torch.nan, keys)

    assert fresh(features, broken)[2].isnan().all()  # the step sees it, and its guard
    assert torch.equal(fresh.keys[2], before[2])
    assert torch.isfinite(fresh.keys).all()
    moved = [k for k in range(SLOTS) if not torch.equal(fresh.keys[k], before[k])]
    assert moved == [k for k in fresh.chosen.tolist() if k != 2]


def test_fresh_slots_are_spread_over_the_classes():
    fresh = FreshKeys(1000, 1, fresh=100)
    fresh.begin_step(torch.tensor([], dtype=torch.int64))
    hundreds = torch.bincount(fresh.chosen // 100, minlength=10)
    assert hundreds.min() >= 3  # slots lie class by class: contiguous ones would be one class
    assert fresh.chosen.unique().numel() == 100


@pytest.mark.parametrize(
    ("share", "slots", "batch", "expected"), [(1.0, 24, 8, 24), (0.5, 24, 8, 12), (0.1, 24, 8, 8), (0.01, 24, 64, 24)]
)
def test_how_many(share, slots, batch, expected):
    assert fresh_slots(share, slots, batch) == expected


@pytest.mark.parametrize("fresh", [0, 13])
def test_a_number_out_of_range_is_refused(fresh):
    with pytest.raises(ValueError, match=r"1\.\.12"):
        FreshKeys(SLOTS, WIDTH, fresh)
