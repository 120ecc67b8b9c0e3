"""The class queue against a deque a class, Eq. 6 against fractions and the released code's rounding."""

from collections import deque
from fractions import Fraction
from itertools import pairwise
from math import ceil

import pytest
import torch

from longtail.errors import UserError
from longtail.memory import ClassQueue, queue_lengths


def exponential_profile(classes, largest, imbalance):
    return [int(largest * (1 / imbalance) ** (c / (classes - 1))) for c in range(classes)]


def slow_lengths(counts, capacity, minimum):
    """Eq. 6 in fractions, the spare slots handed out one at a time."""
    total = sum(counts)
    exact = [minimum + (capacity - len(counts) * minimum) * Fraction(n, total) for n in counts]
    lengths = [value.numerator // value.denominator for value in exact]
    while sum(lengths) < capacity:
        lacking = [value - given for value, given in zip(exact, lengths, strict=True)]
        lengths[lacking.index(max(lacking))] += 1
    return lengths


def ceil_lengths(counts, capacity, minimum):
    """The rounding of the paper's released code: differences of the cumulative shares, rounded up."""
    total, ends, share = sum(counts), [0], Fraction(0)
    for n in counts:
        share += minimum + (capacity - len(counts) * minimum) * Fraction(n, total)
        ends.append(ceil(share))
    return [end - start for start, end in pairwise(ends)]


class SlowQueue:
    """What the queue should hold: for each class its newest (feature, id), oldest first."""

    def __init__(self, lengths):
        self.rings = [deque(maxlen=int(length)) for length in lengths]

    def enqueue(self, features, labels, ids):
        for row, label in enumerate(labels.tolist()):
            if all(torch.isfinite(features[row])):
                sample = -1 if ids is None else int(ids[row])
                self.rings[label].append((features[row].tolist(), sample))

    def assert_held_by(self, queue):
        for c, ring in enumerate(self.rings):
            slots = slice(int(queue.offsets[c]), int(queue.offsets[c + 1]))
            held = torch.nonzero(queue.filled[slots]).squeeze(1)
            # The pointer is at the oldest slot once the ring is full; before, slots fill from the first.
            start = int(queue.pointers[c]) if len(held) == ring.maxlen else 0
            turn = [int(queue.offsets[c]) + (start + k) % ring.maxlen for k in range(len(held))]
            found = [(queue.features[s].tolist(), int(queue.ids[s])) for s in turn]
            assert found == list(ring), f"class {c}: expected {list(ring)}, found {found}"
            assert queue.labels[slots].eq(c).all()


@pytest.mark.parametrize(
    ("classes", "largest", "imbalance", "first", "last"),
    # The first row's last class has the exact share 3.796: the release's cumulative ceil makes it 3 slots.
    [(100, 500, 100, 182, 4), (100, 500, 50, 156, 5), (100, 500, 10, 102, 12), (10, 5000, 100, 1645, 18)],
)
def test_lengths_of_the_cifar_queues(classes, largest, imbalance, first, last):
    lengths = queue_lengths(exponential_profile(classes, largest, imbalance), 4096, 2)
    assert (int(lengths[0]), int(lengths[-1]), int(lengths.sum())) == (first, last, 4096)
    released = ceil_lengths(exponential_profile(classes, largest, imbalance), 4096, 2)
    assert (lengths - torch.tensor(released)).abs().max() <= 1


@pytest.mark.parametrize("seed", range(40))
def test_lengths_equal_largest_remainder_in_fractions(seed):
    generator = torch.Generator().manual_seed(seed)
    classes = int(torch.randint(1, 60, (), generator=generator))
    counts = torch.randint(0, 10 ** (1 + seed % 6), (classes,), generator=generator)
    counts[0] += 1
    minimum = 1 + seed % 3
    capacity = classes * minimum + int(torch.randint(0, 500, (), generator=generator))
    assert queue_lengths(counts, capacity, minimum).tolist() == slow_lengths(counts.tolist(), capacity, minimum)


def test_ties_go_to_the_lower_class_index():
    assert queue_lengths([7, 7, 7, 7], 6, 1).tolist() == [2, 2, 1, 1]


def test_lengths_at_8142_classes_sum_exactly():
    counts = exponential_profile(8142, 1000, 500)
    lengths = queue_lengths(counts, 16384, 2)
    assert int(lengths.sum()) == 16384
    assert int(lengths.min()) == 2
    with pytest.raises(UserError, match=r"16384 cannot hold 3 for each of 8142 classes.* at least 24426"):
        queue_lengths(counts, 16384, 3)


@pytest.mark.parametrize(
    ("counts", "minimum", "message"),
    [([3, 1], 0, "min_per_class is 0"), ([0, 0], 1, "class_counts"), ([3, -1], 1, "class_counts")],
)
def test_lengths_refuse_what_makes_no_queue(counts, minimum, message):
    with pytest.raises(UserError, match=message):
        queue_lengths(counts, 8, minimum)


def write_backwards(target, dim, index, source, forwards=torch.Tensor.index_copy_):
    """Write duplicates in the other order, as a parallel device may."""
    return forwards(target, dim, index.flip(0), source.flip(0))


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_enqueue_equals_a_deque_per_class(seed, backwards, monkeypatch):
    if backwards:
        monkeypatch.setattr(torch.Tensor, "index_copy_", write_backwards)
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor([40, 17, 9, 4, 1, 0])
    queue = ClassQueue(counts, capacity=20 + seed, dim=3, min_per_class=1 + seed % 3)
    slow = SlowQueue(queue.lengths)
    for step in range(40):
        size = int(torch.randint(0, 30, (), generator=generator))
        features = torch.randn(size, 3, generator=generator)
        labels = torch.randint(0, 6, (size,), generator=generator)
        ids = None if step % 5 == 4 else torch.randint(0, 99, (size,), generator=generator)
        broken = torch.rand(size, generator=generator) < (1.0 if step % 11 == 10 else 0.2)
        features[broken, step % 3] = (torch.nan, torch.inf, -torch.inf)[seed % 3]
        queue.enqueue(features, labels, ids)
        slow.enqueue(features, labels, ids)
        slow.assert_held_by(queue)
    assert queue.features.isfinite().all()


def test_features_labels_and_ids_never_part_under_shuffled_batches():
    labels = torch.arange(5).repeat_interleave(torch.tensor([50, 20, 10, 5, 2]))
    # Each feature spells its own label and id.
    features = torch.stack([labels, torch.arange(len(labels))], dim=1).float()
    queue = ClassQueue(torch.bincount(labels), capacity=30, dim=2, min_per_class=2)
    generator = torch.Generator().manual_seed(5)
    for _ in range(30):
        batch = torch.randperm(len(labels), generator=generator)[:32]
        queue.enqueue(features[batch], labels[batch], ids=batch)
        held = queue.filled
        assert torch.equal(queue.features[held].long(), torch.stack([queue.labels, queue.ids], 1)[held])
    assert held.all()


def test_a_row_that_overflows_the_buffers_type_is_absent():
    queue = ClassQueue([2, 2], capacity=4, dim=1)
    queue.enqueue(torch.tensor([[1e300], [2.0]], dtype=torch.float64), torch.tensor([0, 0]), torch.tensor([3, 4]))
    assert queue.ids.tolist() == [4, -1, -1, -1]
    assert queue.pointers.tolist() == [1, 0]


def test_enqueue_never_reads_a_value_on_the_host():
    # Tensors without storage: anything that needs a value, or a shape that depends on one, raises.
    queue = ClassQueue([9, 3, 1], capacity=13, dim=2).to("meta")
    batch = torch.zeros(20, 2, device="meta"), torch.zeros(20, dtype=torch.int64, device="meta")
    queue.enqueue(*batch)
    queue.enqueue(*batch, ids=batch[1])
    assert queue.features.shape == (13, 2)
    with pytest.raises((RuntimeError, NotImplementedError)):
        queue.prime_plan(batch[1])


def test_enqueue_takes_no_gradient():
    queue = ClassQueue([2, 2], capacity=4, dim=2)
    features = torch.ones(2, 2, requires_grad=True)
    queue.enqueue(features * 2, torch.tensor([0, 1]))
    assert not queue.features.requires_grad
    assert queue.features.sum() == 8


@pytest.mark.parametrize("labels", [[0, 2], [-1, 0]])
def test_labels_out_of_range_are_refused(labels):
    queue = ClassQueue([2, 2], capacity=4, dim=1)
    with pytest.raises(UserError, match="classes 0 to 1"):
        queue.enqueue(torch.zeros(2, 1), torch.tensor(labels))
    with pytest.raises(UserError, match="classes 0 to 1"):
        queue.prime_plan(torch.tensor(labels))


def test_enqueue_refuses_shapes_that_do_not_fit():
    queue = ClassQueue([2, 2], capacity=4, dim=3)
    with pytest.raises(ValueError, match=r"features \[B, 3\]"):
        queue.enqueue(torch.zeros(2, 4), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="ids"):
        queue.enqueue(torch.zeros(2, 3), torch.tensor([0, 1]), ids=torch.tensor([0]))


def test_enqueue_gives_the_same_bits_twice():
    generator = torch.Generator().manual_seed(3)
    batches = [
        (torch.randn(64, 4, generator=generator), torch.randint(0, 3, (64,), generator=generator)) for _ in range(5)
    ]
    states = []
    for _ in range(2):
        queue = ClassQueue([9, 3, 1], capacity=13, dim=4)
        for features, labels in batches:
            queue.enqueue(features, labels, torch.arange(64))
        states.append(queue.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_state_round_trip_continues_alike():
    generator = torch.Generator().manual_seed(8)
    queue, copy = (ClassQueue([9, 3, 1], capacity=13, dim=2, min_per_class=2) for _ in range(2))
    for step in range(6):
        if step == 3:
            copy.load_state_dict(queue.state_dict())
        batch = torch.randn(7, 2, generator=generator), torch.randint(0, 3, (7,), generator=generator)
        queue.enqueue(*batch, ids=torch.arange(7) + 7 * step)
        if step >= 3:
            copy.enqueue(*batch, ids=torch.arange(7) + 7 * step)
    state = queue.state_dict()
    assert set(state) == {
        "class_counts", "lengths", "offsets", "features", "labels", "ids", "filled", "pointers",
    }  # fmt: skip
    assert all(torch.equal(state[name], value) for name, value in copy.state_dict().items())


def test_loading_another_layout_is_refused():
    queue = ClassQueue([9, 3, 1], capacity=13, dim=2)
    before = {name: value.clone() for name, value in queue.state_dict().items()}
    # Every buffer has the same shape here, only the classes' shares differ.
    with pytest.raises(RuntimeError, match="another layout"):
        queue.load_state_dict(ClassQueue([1, 3, 9], capacity=13, dim=2).state_dict())
    assert all(torch.equal(before[name], value) for name, value in queue.state_dict().items())
    with pytest.raises(RuntimeError, match="size mismatch"):
        queue.load_state_dict(ClassQueue([9, 3, 1], capacity=13, dim=4).state_dict())


def test_prime_plan_takes_each_classs_images_in_turn():
    labels = torch.tensor([1, 0, 0, 2, 0, 1, 0])
    queue = ClassQueue([4, 2, 1, 0], capacity=14, dim=1, min_per_class=3)
    indices, rounds = queue.prime_plan(labels)
    expected = []
    for c, length in enumerate(queue.lengths.tolist()):
        images = [i for i, label in enumerate(labels.tolist()) if label == c]
        expected += [(images[k % len(images)], k // len(images)) if images else (-1, 0) for k in range(length)]
    assert list(zip(indices.tolist(), rounds.tolist(), strict=True)) == expected
    assert (3, 2) in expected  # the class of one image needs a third view
    assert (-1, 0) in expected


@pytest.mark.parametrize("batch_size", [1, 4, 256])
def test_prime_fills_every_slot_of_a_class_that_has_images(batch_size):
    labels = torch.tensor([0, 1, 0, 0, 2, 0, 1])
    queue = ClassQueue([4, 2, 1, 0], capacity=12, dim=3, min_per_class=2)
    queue.enqueue(torch.full((3, 3), 7.0), torch.tensor([3, 3, 0]), torch.tensor([90, 91, 92]))
    sizes = []

    def encode(indices, rounds):
        sizes.append(len(indices))
        return torch.stack([indices, rounds, labels[indices]], dim=1).double()

    queue.prime(labels, encode, batch_size)
    indices, rounds = queue.prime_plan(labels)
    has_image = queue.labels < 3
    assert torch.equal(queue.filled, has_image)
    assert torch.equal(queue.ids, indices)
    expected = torch.stack([indices, rounds, queue.labels], dim=1).float() * has_image[:, None]
    assert torch.equal(queue.features, expected)
    assert max(sizes) <= batch_size
    assert sum(sizes) == int(has_image.sum())
    # The first batch replaces what priming wrote first.
    queue.enqueue(torch.full((1, 3), 5.0), torch.tensor([1]), torch.tensor([6]))
    assert queue.features[queue.offsets[1]].tolist() == [5.0, 5.0, 5.0]


def test_prime_refuses_bad_features_and_changes_nothing():
    labels = torch.tensor([0, 0, 1])
    queue = ClassQueue([2, 1], capacity=4, dim=1)
    queue.enqueue(torch.ones(1, 1), torch.tensor([1]), torch.tensor([2]))
    before = {name: value.clone() for name, value in queue.state_dict().items()}
    with pytest.raises(UserError, match="training image 1 is not finite"):
        queue.prime(labels, lambda indices, _: torch.where(indices == 1, torch.nan, 1.0)[:, None])
    with pytest.raises(ValueError, match="encode returned shape"):
        queue.prime(labels, lambda indices, _: torch.ones(len(indices), 2))
    assert all(torch.equal(before[name], value) for name, value in queue.state_dict().items())


def test_prime_with_no_image_at_all_leaves_the_queue_unfilled():
    queue = ClassQueue([2, 1], capacity=4, dim=1)
    queue.prime(torch.zeros(0, dtype=torch.int64), lambda indices, _: torch.ones(len(indices), 1))
    assert not queue.filled.any()
    assert queue.ids.eq(-1).all()
