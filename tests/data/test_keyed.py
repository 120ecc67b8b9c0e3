"""Keyed random numbers against pure-Python integers, published SplitMix64 output and simple statistics."""

import zlib

import numpy as np
import pytest
import torch

from longtail.data import keyed
from longtail.data.keyed import derive_seed, keyed_bits, keyed_permutation, keyed_uniform

WORD = 1 << 64
GOLDEN = 11400714819323198485  # 2^64 / golden ratio, odd

SEEDS = [0, 1, 20260101, -5, 2**63 - 1]
KEYS = [(), (0,), ("order", 3), ("view", -1, "query"), (2**62,)]
IDS = [0, 1, 7, 50_000, 2**40, 2**63 - 1, -1]


def _mix(state):
    """One output of SplitMix64 at ``state``, written from the published algorithm with unbounded integers."""
    z = (state + GOLDEN) % WORD
    z = (z ^ (z // 2**30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z // 2**27)) * 0x94D049BB133111EB % WORD
    return z ^ (z // 2**31)


def _seed(seed, key):
    state = _mix(_mix(seed % WORD))
    for part in key:
        word = zlib.crc32(part.encode()) if isinstance(part, str) else part
        state = _mix(state ^ _mix(word % WORD))
    return state // 2


def _bits(seed, key, sample, draw):
    return _mix((_mix((sample % WORD) ^ _seed(seed, key)) + draw * GOLDEN) % WORD)


def test_published_output_of_splitmix64():
    """First outputs of the reference generator for seed 1234567; the k-th state is seed + k * golden."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [_mix((1234567 + k * GOLDEN) % WORD) for k in range(4)] == published
    states = torch.tensor([keyed._signed(1234567 + k * GOLDEN) for k in range(4)])
    assert [value % WORD for value in keyed._mix(states).tolist()] == published
    assert [keyed._mix_int((1234567 + k * GOLDEN) % WORD) for k in range(4)] == published


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("key", KEYS)
def test_against_pure_python_integers(seed, key):
    assert derive_seed(seed, *key) == _seed(seed, key)
    ids = torch.tensor(IDS)
    bits = keyed_bits(seed, *key, ids=ids, count=3)
    uniform = keyed_uniform(seed, *key, ids=ids, count=3)
    for row, sample in enumerate(IDS):
        for draw in range(3):
            expected = _bits(seed, key, sample, draw)
            assert int(bits[row, draw]) % WORD == expected
            assert float(uniform[row, draw]) == (expected >> 40) / 2**24


@pytest.mark.parametrize("size", [0, 1, 2, 100])
def test_permutation_against_pure_python_sorting(size):
    def signed(value):
        return value - WORD if value >= WORD // 2 else value

    expected = sorted(range(size), key=lambda i: signed(_bits(4, ("order", 2), i, 0)))
    assert keyed_permutation(4, "order", 2, size=size).tolist() == expected


def test_a_draw_depends_on_its_id_alone():
    ids = torch.arange(1000)
    whole = keyed_uniform(3, "crop", 5, ids=ids, count=4)
    some = torch.tensor([999, 3, 3, 500])
    assert torch.equal(keyed_uniform(3, "crop", 5, ids=some, count=4), whole[some])
    assert torch.equal(keyed_uniform(3, "crop", 5, ids=ids, count=2), whole[:, :2])


def test_parts_are_the_keys_one_by_one():
    ids = torch.tensor([5, 1, 2**40])
    keys = [(3, "view", 1), (3, "other", 1), (-1,)]
    together = keyed.uniform_in_parts([derive_seed(*key) for key in keys], ids.repeat(3), count=4)
    assert torch.equal(together, torch.cat([keyed_uniform(*key, ids=ids, count=4) for key in keys]))


def test_global_generator_is_neither_read_nor_changed():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = keyed_uniform(0, ids=torch.arange(5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(keyed_uniform(0, ids=torch.arange(5)), first)


def test_keys_differ_by_seed_part_order_length_and_type():
    keys = [
        (0, 1, 2),
        (0, 2, 1),
        (0, 1),
        (0,),
        (0, 1, 2, 0),
        (0, "1", 2),
        (0, "a", 2),
        (0, "b", 2),
        (1, 1, 2),
    ]
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    assert all(0 <= derive_seed(*key) < 2**63 for key in keys)


def test_seed_and_first_part_of_the_key_are_not_interchangeable():
    assert derive_seed(0, 1, 2) != derive_seed(1, 0, 2)


def _chi_square(values, bins):
    counts = np.bincount((values * bins).astype(int).ravel(), minlength=bins)
    expected = values.size / bins
    return float(((counts - expected) ** 2 / expected).sum())


# Streams that a run draws side by side: by id, by draw, by epoch, by seed.
STREAMS = {
    "ids": lambda n: keyed_uniform(0, "v", 0, ids=torch.arange(n)).squeeze(1),
    "draws": lambda n: keyed_uniform(0, "v", 0, ids=torch.tensor([7]), count=n).squeeze(0),
    "epochs": lambda n: torch.cat([keyed_uniform(0, "v", e, ids=torch.tensor([7]))[0] for e in range(n)]),
    "seeds": lambda n: torch.cat([keyed_uniform(s, "v", 0, ids=torch.tensor([7]))[0] for s in range(n)]),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_streams_are_uniform_and_uncorrelated(stream):
    n = 4096 if stream in ("ids", "draws") else 1024  # the others are one call a number
    values = STREAMS[stream](n).double().numpy()
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean() - 0.5) < 4 * (1 / 12 / n) ** 0.5
    assert abs(values.var() - 1 / 12) < 4 * (1 / 180 / n) ** 0.5
    assert 25 < _chi_square(values, 64) < 115  # 63 degrees of freedom: mean 63, standard deviation 11.2
    for lag in (1, 2, 64):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 4 / n**0.5


def test_neighbouring_streams_are_uncorrelated():
    ids = torch.arange(4096)
    base = keyed_uniform(0, "v", 0, ids=ids, count=2).numpy()
    others = [
        base[:, 1],
        keyed_uniform(1, "v", 0, ids=ids)[:, 0].numpy(),
        keyed_uniform(0, "v", 1, ids=ids)[:, 0].numpy(),
        keyed_uniform(0, "w", 0, ids=ids)[:, 0].numpy(),
    ]
    for other in others:
        assert abs(np.corrcoef(base[:, 0], other)[0, 1]) < 4 / 4096**0.5


def test_permutations_put_every_element_everywhere_equally_often():
    size, epochs = 8, 2000
    orders = torch.stack([keyed_permutation(0, "order", epoch, size=size) for epoch in range(epochs)])
    assert torch.equal(orders.sort(dim=1).values, torch.arange(size).expand(epochs, size))
    table = torch.nn.functional.one_hot(orders).sum(0).double()  # [place, element]
    expected = epochs / size
    chi_square = float(((table - expected) ** 2 / expected).sum())
    assert 20 < chi_square < 95  # (size - 1)^2 = 49 degrees of freedom: standard deviation 9.9
