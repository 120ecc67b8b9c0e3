"""The queue of all classes against a plain list."""

import doctest

import pytest
import torch

from longtail.errors import UserError
from longtail.memory import KeyQueue, key_queue


def filled_queue(capacity, dim=2):
    queue = KeyQueue(capacity, dim)
    queue.prime(torch.arange(6) % 3, lambda ids, rounds: torch.stack([ids, rounds], 1).float(), seed=0, batch_size=4)
    return queue


@pytest.mark.parametrize("capacity", [1, 3, 5, 8])
def test_the_newest_replaces_the_oldest_as_in_a_list(capacity):
    queue, expected, pointer = KeyQueue(capacity, 2), [None] * capacity, 0
    generator = torch.Generator().manual_seed(0)
    for size in (2, 1, 5, 0, 3, 12, 4):
        features = torch.randn(size, 2, generator=generator)
        labels = torch.randint(0, 9, (size,), generator=generator)
        features[torch.rand(size, generator=generator) < 0.2, 1] = float("nan")
        queue.enqueue(features, labels)
        for feature, label in zip(features.tolist(), labels.tolist(), strict=True):
            if feature[1] == feature[1]:
                expected[pointer] = (feature, label)
                pointer = (pointer + 1) % capacity
        assert queue.filled.tolist() == [slot is not None for slot in expected]
        found = zip(queue.features.tolist(), queue.labels.tolist(), strict=True)
        assert [got for got, slot in zip(found, expected, strict=True) if slot is not None] == [
            slot for slot in expected if slot is not None
        ]
        assert int(queue.pointer) == pointer


@pytest.mark.parametrize("capacity", [4, 6, 20])
def test_it_is_primed_by_real_images_in_a_random_order(capacity):
    queue = filled_queue(capacity)
    ids, rounds = queue.features.long().unbind(1)
    assert queue.filled.all()
    assert torch.equal(queue.labels, ids % 3)
    assert ids[:6].tolist() != sorted(ids[:6].tolist())
    assert sorted(ids[:6].tolist()) == list(range(6))[: min(capacity, 6)] or capacity < 6
    assert rounds.tolist() == [slot // 6 for slot in range(capacity)]  # every image again, in a view of its own
    again = filled_queue(capacity)
    assert torch.equal(again.features, queue.features)


def test_state_holds_everything():
    queue = filled_queue(5)
    queue.enqueue(torch.ones(3, 2), torch.tensor([7, 8, 9]))
    other = KeyQueue(5, 2)
    other.load_state_dict(queue.state_dict())
    for one in (queue, other):
        one.enqueue(torch.zeros(4, 2), torch.tensor([1, 2, 3, 4]))
    for name, value in queue.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_it_reads_nothing_from_its_device():
    queue = KeyQueue(5, 2).to("meta")
    queue.enqueue(torch.zeros(3, 2, device="meta"), torch.zeros(3, dtype=torch.int64, device="meta"))


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="at least 1 slot"):
        KeyQueue(0, 2)
    with pytest.raises(ValueError, match=r"features \[B, 2\]"):
        KeyQueue(3, 2).enqueue(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))


def test_docstring_example():
    outcome = doctest.testmod(key_queue)
    assert (outcome.attempted, outcome.failed) == (4, 0)
