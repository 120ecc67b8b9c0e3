"""Bursts guessed from names: neighbours that look alike say so, mere numbering does not."""

import numpy as np

from longtail.data.name_counters import numbered_neighbours


def thumbs(count, alike, seed=0):
    """Noise; with ``alike`` each differs only a little from the one before, in runs of ten."""
    generator = np.random.default_rng(seed)
    pictures = generator.integers(0, 256, (count, 16, 16)).astype(np.float64)
    for index in range(count):
        if alike and index % 10:
            pictures[index] = pictures[index - 1] + generator.normal(0, 20, (16, 16))
    return pictures.clip(0, 255).astype(np.uint8)


def names(count):
    """Runs of ten frames, a gap between them, dealt to two folders in turn."""
    return [f"{('train', 'test')[k % 2]}/cat/IMG_{k + 5 * (k // 10):04d}.jpg" for k in range(count)]


def test_frames_of_a_burst_are_found():
    found = numbered_neighbours(names(60), np.zeros(60, np.int64), thumbs(60, alike=True))
    assert found.pairs.tolist() == [[k, k + 1] for k in range(60) if k % 10 != 9]
    assert found.bursts
    assert found.likeness > 0.9 > 0.5 > abs(found.usual)


def test_numbers_without_likeness_are_no_bursts():
    found = numbered_neighbours(names(60), np.zeros(60, np.int64), thumbs(60, alike=False))
    assert len(found.pairs) == 54
    assert not found.bursts


def test_neighbours_have_one_class_and_one_kind_of_name():
    paths = ["a/x_1.jpg", "a/x_2.jpg", "a/y_3.jpg", "b/x_3.jpg", "a/x_4b.jpg", "a/x_5.png", "b/plain.jpg", "a/x_6.jpg"]
    labels = np.array([0, 0, 0, 1, 0, 0, 1, 0])
    found = numbered_neighbours(paths, labels, thumbs(8, alike=False))
    assert found.pairs.tolist() == [[0, 1], [5, 7]]
    assert found.likeness is None
    assert not found.bursts


def test_no_file_has_a_number():
    assert numbered_neighbours(["a.jpg", "b.jpg"], np.zeros(2, np.int64), thumbs(2, alike=False)).pairs.shape == (0, 2)
