"""Torch's generators: seeded as torch does, for the device that trains alone, and put back."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from longtail import LogitAdjustedClassifier
from longtail.training.random_numbers import own_random_numbers, seed_torch

CPU = torch.device("cpu")


def test_a_seed_is_torchs_own():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        expected = torch.rand(4)
        seed_torch(11, CPU)
        assert torch.equal(torch.rand(4), expected)


def test_training_on_the_cpu_touches_no_accelerator(monkeypatch):
    def touched(seed):
        raise AssertionError("every device is seeded")

    monkeypatch.setattr(torch, "manual_seed", touched)
    with own_random_numbers(CPU):
        seed_torch(1, CPU)


def test_generators_are_put_back_also_after_an_error():
    before = torch.get_rng_state()

    @own_random_numbers(CPU)
    def failing():
        seed_torch(1, CPU)
        raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_train_what_one_after_the_other_does():
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(60, 4)), np.arange(60) % 3

    def trained(seed):
        return LogitAdjustedClassifier(epochs=2, random_state=seed).fit(X, y).predict_proba(X)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(trained, range(6)))
    for seed, probabilities in enumerate(together):
        np.testing.assert_array_equal(probabilities, trained(seed))
