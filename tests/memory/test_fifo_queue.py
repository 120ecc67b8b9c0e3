"""FifoQueue against a list that grows at one end and is cut at the other."""

import doctest
from collections import deque

import pytest
import torch

from longtail.errors import UserError
from longtail.losses import GMLLoss
from longtail.memory import FifoQueue, fifo_queue


def held(queue):
    """Return what counts in the queue, class by class: (label, id, first feature)."""
    content = queue.content()
    found = []
    for c in range(queue.num_classes):
        slots = range(content.offsets[c], content.offsets[c + 1])
        found += [(c, int(content.ids[k]), float(content.features[k, 0])) for k in slots if content.filled[k]]
    return sorted(found)


@pytest.mark.parametrize("batch", [1, 3, 7, 16, 40])
def test_it_keeps_the_newest_of_all(batch):
    generator = torch.Generator().manual_seed(batch)
    queue, slow, number = FifoQueue([5, 3, 1], capacity=16, dim=2), deque(maxlen=16), 0
    for _ in range(9):
        labels = torch.randint(0, 3, (batch,), generator=generator)
        ids = torch.arange(number, number + batch)
        features = torch.stack([ids * 10.0, labels * 1.0], 1)
        if batch > 3:
            features[2] = torch.nan  # an absent row writes nothing and moves nothing
        queue.enqueue(features, labels, ids)
        slow.extend(
            (int(c), int(i), float(i) * 10)
            for c, i, f in zip(labels, ids, features, strict=True)
            if not f.isnan().any()
        )
        number += batch
        assert held(queue) == sorted(slow)
        assert queue.content().offsets[-1] == 16
        assert torch.equal(queue.features[queue.filled, 1], queue.labels[queue.filled].float())


def test_a_batch_of_absent_rows_changes_nothing():
    queue = FifoQueue([1, 1], capacity=3, dim=1)
    queue.enqueue(torch.ones(2, 1), torch.tensor([0, 1]), torch.tensor([5, 6]))
    before = {name: value.clone() for name, value in queue.state_dict().items()}
    queue.enqueue(torch.full((4, 1), torch.inf), torch.zeros(4, dtype=torch.int64))
    queue.enqueue(torch.ones(0, 1), torch.zeros(0, dtype=torch.int64))
    assert all(torch.equal(before[name], value) for name, value in queue.state_dict().items())


def test_primed_it_holds_images_as_often_as_the_data_does():
    labels = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)
    queue = FifoQueue([600, 300, 100], capacity=500, dim=3)
    queue.prime(labels, lambda indices, rounds: torch.stack([indices, rounds, rounds], 1).float())
    assert queue.filled.all()
    assert torch.equal(queue.features[:, 0].long(), queue.ids)
    assert torch.equal(labels[queue.ids], queue.labels)
    assert len(set(queue.ids.tolist())) == 500
    shares = torch.bincount(queue.labels) / 500
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.3, 0.1]), atol=0.06, rtol=0)
    # In mixed order, so that no class is replaced as a block.
    assert (queue.labels[:250] == 0).float().mean() == pytest.approx(0.6, abs=0.1)


def test_fewer_images_than_slots_come_again_in_fresh_views():
    queue = FifoQueue([3], capacity=8, dim=2)
    queue.prime(torch.zeros(3, dtype=torch.int64), lambda i, r: torch.stack([i, r], 1).float(), batch_size=3)
    assert len({tuple(row) for row in queue.features.tolist()}) == 8
    assert sorted(queue.features[:, 1].tolist()) == [0, 0, 0, 1, 1, 1, 2, 2]


def test_a_class_that_is_not_there_drops_out_of_the_loss():
    queue = FifoQueue([5, 3, 1], capacity=4, dim=2)
    queue.enqueue(torch.eye(2).repeat(2, 1), torch.tensor([0, 1, 0, 1]), torch.arange(4))
    content, loss = queue.content(), GMLLoss([5, 3, 1], 0.5)
    given = (content.features, content.offsets)
    value = loss(torch.eye(2), torch.tensor([0, 2]), *given, key_mask=content.filled, longest_class=content.longest)
    assert loss.counted == 1
    wanted = torch.log1p(torch.tensor(3 / 5) * torch.exp(torch.tensor(-2.0)))
    torch.testing.assert_close(value, wanted)


def test_state_goes_on():
    first, second = (FifoQueue([2, 2], capacity=5, dim=1) for _ in range(2))
    batches = [(torch.randn(3, 1), torch.tensor([0, 1, 1]), torch.arange(3) + 3 * n) for n in range(4)]
    for batch in batches[:2]:
        first.enqueue(*batch)
    second.load_state_dict(first.state_dict())
    for batch in batches[2:]:
        first.enqueue(*batch)
        second.enqueue(*batch)
    assert held(first) == held(second)


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(UserError, match="capacity of 0"):
        FifoQueue([1], 0, 2)
    queue = FifoQueue([1, 1], 3, 2)
    with pytest.raises(UserError, match="labels run from 0 to 2"):
        queue.enqueue(torch.ones(2, 2), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="expected features"):
        queue.enqueue(torch.ones(2, 3), torch.tensor([0, 1]))
    with pytest.raises(UserError, match="training image 0 is not finite"):
        queue.prime(torch.zeros(1, dtype=torch.int64), lambda i, r: torch.full((len(i), 2), torch.nan))
    with pytest.raises(UserError, match="no training image"):
        queue.prime(torch.zeros(0, dtype=torch.int64), lambda i, r: torch.ones(len(i), 2))


def test_docstring_example():
    assert doctest.testmod(fifo_queue, extraglobs={"torch": torch}).failed == 0
