"""Class counts against published figures, and the long-tailed draw against a slow version of the protocol."""

import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from longtail.data import exponential_profile, long_tailed_indices, step_profile
from longtail.data.counts import class_profile, imbalance_factor
from longtail.errors import UserError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "check_cifar_protocol.py"


@pytest.mark.parametrize(
    ("n_max", "num_classes", "imbalance", "total"),
    [
        (500, 100, 100, 10_847),
        (500, 100, 50, 12_608),
        (500, 100, 10, 19_573),
        (5000, 10, 100, 12_406),
        (5000, 10, 50, 13_996),
        (5000, 10, 10, 20_431),
    ],
)
def test_published_sizes(n_max, num_classes, imbalance, total):
    counts = exponential_profile(n_max, num_classes, imbalance)
    assert sum(counts) == total
    assert (counts[0], counts[-1]) == (n_max, n_max // imbalance)
    assert counts == sorted(counts, reverse=True)


def test_published_counts_of_cifar10_at_imbalance_100():
    assert exponential_profile(5000, 10, 100) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


def test_step_profile_by_hand():
    assert step_profile(500, 4, 10) == [500, 500, 50, 50]
    assert step_profile(500, 5, 100) == [500, 500, 5, 5, 5]


@pytest.mark.parametrize("profile", [exponential_profile, step_profile])
def test_balanced_at_imbalance_one_and_never_empty(profile):
    assert profile(7, 3, 1) == [7, 7, 7]
    assert min(profile(3, 6, 1000)) == 1


@pytest.mark.parametrize("profile", [exponential_profile, step_profile])
def test_no_class_keeps_more_than_it_has(profile):
    have = [30, 4, 100, 1]
    assert profile(have, 4, 10) == [min(a, b) for a, b in zip(have, profile(100, 4, 10), strict=True)]


@pytest.mark.parametrize("profile", [exponential_profile, step_profile])
@pytest.mark.parametrize("imbalance", [0.99, 0, -3, math.nan, math.inf])
def test_bad_imbalance(profile, imbalance):
    with pytest.raises(UserError, match="imbalance"):
        profile(500, 10, imbalance)


@pytest.mark.parametrize("profile", [exponential_profile, step_profile])
def test_bad_sizes(profile):
    with pytest.raises(UserError, match="at least 2 classes"):
        profile(500, 1, 10)
    with pytest.raises(ValueError, match="n_max"):
        profile([5, 5], 3, 10)
    with pytest.raises(ValueError, match="n_max"):
        profile(0, 3, 10)


def test_profiles_by_name():
    assert class_profile("step", 500, 4, 10) == step_profile(500, 4, 10)
    assert class_profile("exponential", 500, 4, 10) == exponential_profile(500, 4, 10)
    with pytest.raises(UserError, match=r"unknown profile 'exponental'.*'exponential'"):
        class_profile("exponental", 500, 4, 10)


def test_imbalance_factor():
    assert imbalance_factor([500, 20, 5]) == 100
    assert imbalance_factor(torch.tensor([3, 6])) == 2
    assert imbalance_factor([3, 0]) == math.inf
    for empty in ([], [0, 0]):
        with pytest.raises(ValueError, match="at least one class"):
            imbalance_factor(empty)


def _slow_shuffle(values, generator):
    """Fisher-Yates as numpy's legacy generator does it, from its 32-bit words alone (masked rejection)."""
    values = list(values)
    for last in range(len(values) - 1, 0, -1):
        mask = (1 << last.bit_length()) - 1
        while (pick := int(generator.randint(0, 2**32, dtype=np.uint32)) & mask) > last:
            pass
        values[last], values[pick] = values[pick], values[last]
    return values


@pytest.mark.parametrize("seed", [0, 5])
def test_draw_against_slow_protocol(seed):
    labels = np.random.RandomState(11).permutation(np.repeat(np.arange(7), 60))
    counts = exponential_profile(60, 7, 20)
    generator = np.random.RandomState(seed)
    expected = []
    for label, count in enumerate(counts):
        expected += _slow_shuffle([i for i, other in enumerate(labels) if other == label], generator)[:count]
    assert long_tailed_indices(torch.from_numpy(labels), counts, seed).tolist() == expected


def test_draw_as_published_with_the_global_generator_which_is_left_alone():
    labels = np.random.RandomState(3).permutation(np.repeat(np.arange(10), 50))
    counts = exponential_profile(50, 10, 10)
    np.random.seed(0)  # noqa: NPY002 - the published protocol seeds the global generator
    expected = []
    for label, count in enumerate(counts):
        positions = np.where(labels == label)[0]
        np.random.shuffle(positions)  # noqa: NPY002
        expected.extend(positions[:count].tolist())
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    ours = long_tailed_indices(torch.from_numpy(labels), counts)
    assert ours.dtype == torch.int64
    assert ours.tolist() == expected
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_smaller_profiles_keep_prefixes():
    labels = torch.arange(400) % 4
    by_imbalance = {}
    for imbalance in (1, 10, 100):
        counts = exponential_profile(100, 4, imbalance)
        by_imbalance[imbalance] = long_tailed_indices(labels, counts).split(counts)
    for large, small in itertools.pairwise([1, 10, 100]):
        for whole, prefix in zip(by_imbalance[large], by_imbalance[small], strict=True):
            assert torch.equal(whole[: len(prefix)], prefix)


def test_too_few_images():
    with pytest.raises(UserError, match="class 1 has 2 images, fewer than the 3"):
        long_tailed_indices(torch.tensor([0, 0, 0, 1, 1]), [3, 3])


@pytest.fixture(scope="module")
def protocol():
    spec = importlib.util.spec_from_file_location("check_cifar_protocol", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _drawn(seed=0, num_classes=5, class_size=40):
    labels = np.random.RandomState(8).permutation(np.repeat(np.arange(num_classes), class_size))
    counts = exponential_profile(class_size, num_classes, 4)
    kept = long_tailed_indices(torch.from_numpy(labels), counts, seed)
    return [part.numpy() for part in kept.split(counts)], counts


def test_protocol_check_accepts_a_true_draw_and_completes_its_labels(protocol):
    drawn, counts = _drawn()
    permutations = protocol.rank_permutations(5, 40, seed=0)
    assert protocol.classes_out_of_order(drawn, permutations) == []
    labels = protocol.complete_labels(drawn, permutations, 200)
    assert np.bincount(labels).tolist() == [40] * 5
    again = long_tailed_indices(torch.from_numpy(labels), counts)
    assert again.tolist() == np.concatenate(drawn).tolist()


def test_protocol_check_refuses_another_seed_a_swap_and_a_shift(protocol):
    drawn, _ = _drawn()
    assert protocol.classes_out_of_order(drawn, protocol.rank_permutations(5, 40, seed=1)) == list(range(5))
    permutations = protocol.rank_permutations(5, 40, seed=0)
    swapped = [part.copy() for part in drawn]
    swapped[2][[0, 1]] = swapped[2][[1, 0]]
    assert protocol.classes_out_of_order(swapped, permutations) == [2]
    # Order kept, but all of a class's images at the start: nothing can lie between them.
    squeezed = [np.argsort(np.argsort(part)) + 40 * c for c, part in enumerate(drawn)]
    assert protocol.classes_out_of_order(squeezed, permutations) == []
    assert protocol.complete_labels(squeezed, permutations, 200) is None


@pytest.mark.parametrize("spoil", [False, True])
def test_protocol_check_of_a_packed_file(protocol, tmp_path, capsys, spoil):
    """A made-up official file at full size, packed like the real ones."""
    labels = np.random.RandomState(4).permutation(np.repeat(np.arange(10), 5000))
    counts = {imbalance: exponential_profile(5000, 10, imbalance) for imbalance in (10, 50, 100)}
    index = long_tailed_indices(torch.from_numpy(labels), counts[10]).numpy()
    if spoil:
        index[[0, 1]] = index[[1, 0]]
    path = tmp_path / "packed.npz"
    arrays = {f"counts_{imbalance}": np.array(count) for imbalance, count in counts.items()}
    np.savez(path, train_index=index, label=labels[index], n_train=len(index), **arrays)
    protocol.NOTED_SHA256 = dict.fromkeys(protocol.NOTED_SHA256, "of the real files")
    assert not protocol.check(path, seed=0)
    printed = capsys.readouterr().out
    assert printed.count("ok   counts") == 3
    assert ("FAIL order" in printed) == spoil
    # The digests noted are those of the real files, so the made-up draw differs there and only there.
    assert printed.count("FAIL draw") == (0 if spoil else 3)
    assert printed.count("FAIL") == (2 if spoil else 3)
