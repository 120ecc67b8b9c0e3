"""Near duplicates: the search against comparing every pair, and what counts as the same image."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from longtail.data import near_duplicates
from longtail.data.near_duplicates import (
    HASH_DISTANCE,
    Signatures,
    close_pairs,
    find_near_duplicates,
    likeness_of,
    signature,
)


def every_pair(hashes, distance):
    """All pairs by comparing all with all, as Python integers."""
    values = [int(value) for value in hashes]
    return [
        [i, j]
        for i in range(len(values))
        for j in range(i + 1, len(values))
        if (values[i] ^ values[j]).bit_count() <= distance
    ]


def crowd(seed, count, centres, most):
    """Hashes around a few centres, each with up to ``most`` bits turned, so that there are pairs at every distance."""
    generator = np.random.default_rng(seed)
    middle = generator.integers(0, 2**64, centres, dtype=np.uint64)[generator.integers(0, centres, count)]
    for _ in range(most):
        turned = generator.integers(0, 64, count, dtype=np.uint64)
        middle ^= np.uint64(1) << turned
    return middle


@pytest.mark.parametrize("distance", [0, 1, 3, 4, 7, 9])
def test_the_search_finds_what_comparing_every_pair_finds(distance, monkeypatch):
    monkeypatch.setattr(near_duplicates, "_PAIRS_AT_A_TIME", 100)  # many parts
    hashes = np.concatenate([crowd(1, 300, 20, 5), crowd(2, 200, 200, 0), np.zeros(5, np.uint64)])
    found = close_pairs(hashes, distance).tolist()
    assert found == every_pair(hashes, distance)
    assert len(found) >= 10


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_search_takes_few(count):
    pairs = close_pairs(np.zeros(count, np.uint64), HASH_DISTANCE)
    assert pairs.tolist() == ([[0, 1]] if count == 2 else [])


def photograph(seed, side=96):
    """Smooth random blobs of colour with some texture: like a photograph in that neighbours are alike."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side + 16, side), Image.Resampling.BICUBIC), np.int16)
    texture = generator.integers(-12, 13, smooth.shape)
    return Image.fromarray((smooth + texture).clip(0, 255).astype(np.uint8))


def encoded(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=quality)
    return Image.open(buffer).convert("RGB")


CHANGES = {
    "re-encoded": lambda image: encoded(image, 60),
    "half size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "larger": lambda image: image.resize((image.width * 3 // 2, image.height * 3 // 2), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.85),
    "all of them": lambda image: encoded(ImageEnhance.Brightness(image.resize((80, 70))).enhance(0.92), 75),
}


def found_in(images):
    signatures = Signatures(len(images))
    for index, image in enumerate(images):
        signatures.add(index, image)
    return find_near_duplicates(signatures, np.zeros(len(images), np.int64))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_copy_is_found_and_other_images_are_not(change):
    images = [photograph(seed) for seed in range(40)]
    found = found_in([*images, *map(change, images[:20])])
    assert sorted(map(tuple, found.pairs.tolist())) == [(k, 40 + k) for k in range(20)]
    assert found.compared == 60


def test_plain_backgrounds_are_no_copies_of_each_other():
    """One small thing on white: the hashes of most agree in most bits, the things are different."""
    images = []
    for seed in range(60):
        pixels = np.full((64, 64, 3), 255, np.uint8)
        generator = np.random.default_rng(seed)
        top, left = generator.integers(4, 40, 2)
        coarse = generator.integers(0, 200, (5, 5, 3)).repeat(4, 0).repeat(4, 1)
        pixels[top : top + 20, left : left + 20] = coarse
        images.append(Image.fromarray(pixels))
    assert len(found_in(images).pairs) == 0
    assert len(found_in([*images, encoded(images[7], 80)]).pairs) == 1


def test_what_is_not_compared_is_counted():
    plain = [Image.new("RGB", (40, 40), (level, 90, 20)) for level in range(0, 100, 10)]
    small = [photograph(k).resize((15, 30)) for k in range(3)]
    found = found_in([*plain, *small, photograph(9)])
    assert (found.plain, found.too_small, found.compared, len(found.pairs)) == (10, 3, 1, 0)


def test_equal_images_stand_for_each_other():
    """Of five with equal pixels and one near them, the pair is told once: equal ones are found by their digests."""
    images = [photograph(1)] * 5 + [encoded(photograph(1), 60)]
    signatures = Signatures(6)
    for index, image in enumerate(images):
        signatures.add(index, image)
    found = find_near_duplicates(signatures, np.array([7, 7, 7, 7, 7, 8]))
    assert found.pairs.tolist() == [[0, 5]]


def test_a_crowd_of_one_hash_is_cut(monkeypatch):
    monkeypatch.setattr(near_duplicates, "MOST_OF_A_HASH", 4)
    image = photograph(1)
    found = found_in([image] * 10)  # digests say that they differ
    assert found.crowded == 6
    assert len(found.pairs) == 6


def test_likeness_is_the_mean_correlation_of_blocks():
    """Against numpy's corrcoef, block by block; blocks in which neither shows anything do not count."""
    generator = np.random.default_rng(0)
    thumbs = generator.integers(0, 256, (3, 16, 16), dtype=np.uint8)
    thumbs[1, :6] = thumbs[0, :6]
    thumbs[:2, 10:] = 77
    thumbs[2] = thumbs[1] // 2 + 30  # darker and flatter
    pairs = np.array([[0, 1], [1, 2]])
    expected = []
    for i, j in pairs:
        found = []
        for top in range(0, 16, 2):
            for left in range(0, 16, 2):
                one, other = (thumbs[k, top : top + 2, left : left + 2].astype(float).ravel() for k in (i, j))
                if max(one.std(), other.std()) >= 4:
                    found.append(np.corrcoef(one, other)[0, 1])
        expected.append(np.mean(found))
    np.testing.assert_allclose(likeness_of(thumbs, pairs), expected, atol=1e-5)
    assert 0.5 < expected[0] < 0.75
    assert expected[1] > 0.99


def test_hash_and_thumbnail_are_means_of_brightness():
    """Against the same means in float64: of 144 rows three by three, weighted by a triangle, and of blocks of those."""
    image = photograph(3, side=144).crop((0, 0, 144, 144))
    gray = (np.asarray(image, np.float64) @ [0.299, 0.587, 0.114]).reshape(48, 3, 144).mean(1)
    distance = np.abs(np.arange(48) + 0.5 - 3 * (np.arange(16)[:, None] + 0.5))
    weights = np.maximum(0, 1 - distance / 3)
    rows = (weights / weights.sum(1, keepdims=True)) @ gray
    value, thumb = signature(image)
    np.testing.assert_allclose(thumb, rows.reshape(16, 16, 9).mean(2), atol=1.5)  # Pillow rounds in between
    blocks = rows.reshape(8, 2, 9, 16).mean((1, 3))
    step = blocks[:, 1:] - blocks[:, :-1]
    clear = np.abs(step) > 1.5
    own = np.unpackbits(np.frombuffer(value.to_bytes(8, "little"), np.uint8)).reshape(8, 8)
    assert clear.mean() > 0.8
    assert (own == (step > 0))[clear].all()
