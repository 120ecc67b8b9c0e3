"""Splits: sizes and choices against slow loops, groups against exhaustive search, and what must hold for any data."""

import hashlib
import itertools
import os
from collections import Counter, defaultdict

import pytest
import torch

from longtail.data.keyed import keyed_bits
from longtail.data.splits import fold_of, group_names, hold_out, path_keys, straddling
from longtail.errors import UserError


def make_data(counts, seed=0):
    """Return shuffled labels with these class counts, and a key for each image."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    return labels, path_keys([f"class {label}/{place}.jpg" for place, label in enumerate(labels.tolist())])


def random_data(seed, max_classes=8, max_images=14, max_groups=9):
    """Return labels, keys and groups of a random shape: mixed groups, groups of one class, or nearly one a class."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high, size=1):
        return torch.randint(low, high + 1, (size,), generator=generator)

    counts = draw(1, max_images, int(draw(1, max_classes)))
    labels, keys = make_data(counts.tolist(), seed)
    groups = draw(0, int(draw(1, max_groups)), len(labels)) * 7 - 3
    return labels, keys, groups * 100 + labels if seed % 2 else groups


def by_class(labels, chosen):
    size = int(labels.max()) + 1
    return torch.bincount(labels[chosen], minlength=size).tolist(), torch.bincount(labels).tolist()


# --- hold-out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
def test_hold_out_takes_the_first_of_each_class_in_keyed_order(share):
    counts = [200, 57, 23, 10, 5, 4, 3, 2, 1]
    labels, keys = make_data(counts)
    bits = keyed_bits(11, "hold-out", ids=keys).squeeze(1).tolist()
    expected = set()
    for label, count in enumerate(counts):
        size = min(count - 1, max(1, round(share * count)))
        members = [i for i, other in enumerate(labels.tolist()) if other == label]
        expected |= set(sorted(members, key=bits.__getitem__)[:size])
    is_test = hold_out(labels, keys, share, seed=11)
    assert is_test.dtype == torch.bool
    assert set(is_test.nonzero().squeeze(1).tolist()) == expected


def test_hold_out_does_not_depend_on_the_order_of_the_list():
    labels, keys, groups = random_data(3, max_images=60)
    shuffle = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    renumbered = -5 * groups + 1
    for first, second in ((None, None), (groups, renumbered)):
        there = hold_out(labels, keys, 0.3, 5, first)
        here = hold_out(labels[shuffle], keys[shuffle], 0.3, 5, None if second is None else second[shuffle])
        assert torch.equal(there[shuffle], here)


def test_new_images_leave_other_classes_alone_and_move_few_of_their_own():
    labels, keys = make_data([400, 50, 6])
    before = hold_out(labels, keys, 0.25, seed=2)
    for added in (1, 4, 30):
        more = path_keys([f"new/{place}.jpg" for place in range(added)])
        after = hold_out(torch.cat([labels, torch.full((added,), 1)]), torch.cat([keys, more]), 0.25, seed=2)
        changed = (after[: len(labels)] != before).nonzero().squeeze(1)
        assert set(labels[changed].tolist()) <= {1}
        assert len(changed) <= added


def test_seeds_give_unrelated_hold_outs():
    labels, keys = make_data([4000])
    first, second = (hold_out(labels, keys, 0.25, seed) for seed in (0, 1))
    # Of 1000, a second independent draw hits 250 on average, with a standard deviation of 11.9.
    assert 200 < int((first & second).sum()) < 300


def test_groups_of_one_image_change_nothing():
    # One pair of images tied together must not deal all the others anew.
    labels, keys = make_data([80, 31, 12, 7, 7, 3, 3, 2, 1, 1])
    alone = torch.arange(len(labels))
    for seed in range(5):
        assert torch.equal(hold_out(labels, keys, 0.2, seed, alone), hold_out(labels, keys, 0.2, seed))
        for folds in (2, 5, 9):
            assert torch.equal(fold_of(labels, keys, folds, seed, alone), fold_of(labels, keys, folds, seed))


def check_grouped_hold_out(labels, groups, is_test):
    assert straddling(groups, is_test) == []
    tested, counts = by_class(labels, is_test)
    groups_of = defaultdict(set)
    for label, group in zip(labels.tolist(), groups.tolist(), strict=True):
        groups_of[label].add(group)
    for label, count in enumerate(counts):
        assert count == 0 or tested[label] < count, f"class {label} has no training image"
        assert len(groups_of[label]) != 1 or tested[label] == 0


def test_grouped_hold_out_keeps_groups_whole_and_classes_trained():
    tried = 0
    for seed in range(300):
        labels, keys, groups = random_data(seed)
        try:
            is_test = hold_out(labels, keys, (seed % 9 + 1) / 10, seed, groups)
        except UserError:
            # Right only if every group holds all of some class.
            counts = torch.bincount(labels).tolist()
            for group in set(groups.tolist()):
                assert any(counts[label] == n for label, n in Counter(labels[groups == group].tolist()).items())
            continue
        tried += 1
        check_grouped_hold_out(labels, groups, is_test)
    assert tried > 200


def distance(labels, is_test, share):
    """What the choice of groups descends on, from its definition."""
    total = 0.0
    for tested, count in zip(*by_class(labels, is_test), strict=True):
        if count == 0:
            continue
        if tested == count:
            return float("inf")
        aim = min(max(round(share * count), 1), count - 1)
        total += abs(tested - aim) / count + (tested == 0)
    return total


def test_grouped_shares_come_close_to_the_best_of_all_choices():
    worse, best_of_all = [], []
    for seed in range(60):
        labels, keys, groups = random_data(seed, max_classes=4, max_images=30, max_groups=7)
        names = groups.unique()
        if len(names) > 9:
            continue
        choices = [
            distance(labels, torch.isin(groups, names[torch.tensor(bits)]), 0.3)
            for bits in itertools.product([False, True], repeat=len(names))
        ]
        try:
            found = distance(labels, hold_out(labels, keys, 0.3, seed, groups), 0.3)
        except UserError:
            continue
        worse.append(found - min(choices))
        best_of_all.append(min(choices))
    assert len(worse) > 30
    assert min(worse) > -1e-9
    assert sum(worse) / len(worse) < 0.1, (sum(worse) / len(worse), sum(best_of_all) / len(best_of_all))


def test_a_share_misses_by_at_most_half_a_group_where_groups_hold_one_class():
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        sizes = torch.randint(1, 30, (40,), generator=generator)
        group_class = torch.arange(40) % 4
        groups = torch.arange(40).repeat_interleave(sizes)
        labels = group_class[groups]
        keys = path_keys([str(place) for place in range(len(labels))])
        tested, counts = by_class(labels, hold_out(labels, keys, 0.2, seed, groups))
        for label in range(4):
            largest = int(sizes[group_class == label].max())
            assert abs(tested[label] - round(0.2 * counts[label])) <= largest / 2


def test_a_class_of_two_groups_is_tested_on_the_smaller():
    for seed in range(8):
        groups = torch.tensor([0] * 90 + [1] * 80)
        keys = path_keys([f"{seed} {place}" for place in range(170)])
        is_test = hold_out(torch.zeros(170, dtype=torch.int64), keys, 0.2, seed, groups)
        assert is_test.tolist() == [False] * 90 + [True] * 80


# --- folds ----------------------------------------------------------------------------------------------------------


def check_folds(labels, fold, folds):
    """Every class trains in every fold, and every fold tests something."""
    assert set(fold.tolist()) - {-1} == set(range(folds))
    for k in range(folds):
        tested, counts = by_class(labels, fold == k)
        assert all(t < n for t, n in zip(tested, counts, strict=True) if n)


def test_folds_are_level_in_each_class_overall_and_among_small_classes():
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        counts = torch.randint(1, 12, (30,), generator=generator).tolist()
        labels, keys = make_data(counts, seed)
        for folds in (2, 3, 5, max(counts)):
            fold = fold_of(labels, keys, folds, seed)
            check_folds(labels, fold, folds)
            small = torch.tensor(counts)[labels] <= 3
            for part in (*(labels == label for label in range(30)), small, labels >= 0):
                sizes = torch.bincount(fold[part & (fold >= 0)], minlength=folds)
                assert int(sizes.max() - sizes.min()) <= 1
            single = torch.tensor(counts)[labels] == 1
            assert torch.equal(fold == -1, single)


def test_folds_follow_the_paths_and_the_seed():
    labels, keys = make_data([900, 40, 3])
    fold = fold_of(labels, keys, 4, seed=1)
    shuffle = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    assert torch.equal(fold[shuffle], fold_of(labels[shuffle], keys[shuffle], 4, seed=1))
    same = float((fold == fold_of(labels, keys, 4, seed=2)).double().mean())
    assert 0.18 < same < 0.32  # by chance a quarter, with a standard deviation of 0.014


def test_grouped_folds_keep_groups_whole_and_classes_trained():
    tried = 0
    for seed in range(300):
        labels, keys, groups = random_data(seed, max_classes=6, max_images=20)
        folds = 2 + seed % 3
        if folds > int(torch.bincount(labels).max()):
            continue
        counts = torch.bincount(labels).tolist()
        whole = {
            group
            for group in set(groups.tolist())
            if any(counts[label] == n for label, n in Counter(labels[groups == group].tolist()).items())
        }
        free = len(set(groups.tolist()) - whole)
        if free < folds:
            with pytest.raises(UserError, match=rf"--folds {folds} needs .* there are {free};"):
                fold_of(labels, keys, folds, seed, groups)
            continue
        tried += 1
        fold = fold_of(labels, keys, folds, seed, groups)
        check_folds(labels, fold, folds)
        for group in set(groups.tolist()):
            (place,) = set(fold[groups == group].tolist())
            assert place == -1 or group not in whole
        assert torch.equal(fold, fold_of(labels, keys, folds, seed, 3 - 2 * groups))
    assert tried > 100


def test_a_group_that_would_empty_a_class_in_every_fold_stays_in_training():
    # Groups 0 and 1 (of the rarest class) go to two folds, group 2 to the smaller of them. Group 3 holds the rest of
    # classes 0 and 1: with it, class 1 would lie in the fold of group 0, or class 0 in that of group 2.
    labels = torch.tensor([1, 2, 2, 0, 0, 0, 1, 1])
    groups = torch.tensor([0, 0, 1, 2, 3, 3, 3, 3])
    kept = 0
    for seed in range(20):
        fold = fold_of(labels, path_keys([f"{seed}/{place}" for place in range(8)]), 2, seed, groups)
        check_folds(labels, fold, 2)
        kept += int(fold[4]) == -1
    assert 0 < kept < 20  # where group 3 comes before group 2, there is a fold for it


def test_grouped_folds_are_level_within_a_group_or_two():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 12, (300,), generator=generator)
    groups = torch.arange(300).repeat_interleave(sizes)
    labels = (torch.arange(300) % 20)[groups]
    fold = fold_of(labels, path_keys([str(place) for place in range(len(labels))]), 5, 0, groups)
    for label in range(20):
        filled = torch.bincount(fold[labels == label], minlength=5)
        assert int(filled.max() - filled.min()) <= 12
    filled = torch.bincount(fold, minlength=5).double()
    assert float(filled.max() / filled.min()) < 1.15


# --- bad input, size ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2, 20.0, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share):
    labels, keys = make_data([5, 5])
    with pytest.raises(UserError, match=r"--source\.test_share .* between 0 and 1"):
        hold_out(labels, keys, share, 0)


def test_nothing_to_test_on_is_refused():
    labels, keys = make_data([1, 1, 1])
    for groups in (None, torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(
            UserError, match=r"every group holds all images of some class|no class has more than one image"
        ):
            hold_out(labels, keys, 0.2, 0, groups)
    empty = torch.empty(0, dtype=torch.int64)
    for groups in (None, empty):
        with pytest.raises(UserError, match="nothing can be held out"):
            hold_out(empty, empty, 0.2, 0, groups)


def test_folds_out_of_range_are_refused():
    labels, keys = make_data([4, 7])
    for folds in (1, 0, -3):
        with pytest.raises(UserError, match=f"--folds {folds} must be 2 or more"):
            fold_of(labels, keys, folds, 0)
    with pytest.raises(UserError, match="--folds 8 is more than the 7 images of the largest class"):
        fold_of(labels, keys, 8, 0)
    with pytest.raises(UserError, match=r"needs 2 groups .* there are 0; give more groups, or none"):
        fold_of(labels, keys, 2, 0, torch.zeros(11, dtype=torch.int64))


def test_mismatched_tensors_are_a_programming_error():
    labels, keys = make_data([4, 7])
    with pytest.raises(ValueError, match=r"int64 \[11\]"):
        hold_out(labels, keys[:-1], 0.2, 0)
    with pytest.raises(ValueError, match="negative"):
        fold_of(labels - 1, keys, 2, 0)


def test_many_groups_and_classes():
    generator = torch.Generator().manual_seed(0)
    tail = torch.arange(8142).repeat(8)
    labels = torch.cat([tail, torch.multinomial(1 / torch.arange(1.0, 8143.0), 84_864, True, generator=generator)])
    keys = torch.randint(-(2**62), 2**62, (150_000,), generator=generator)
    for groups in (
        torch.arange(150_000) // 2,
        torch.randperm(150_000, generator=generator) % 50,
    ):  # many small, and few that hold all classes
        is_test = hold_out(labels, keys, 0.2, 0, groups)
        assert (torch.bincount(labels[~is_test], minlength=8142) > 0).all()
        assert 0.15 < float(is_test.double().mean()) < 0.3
        assert straddling(groups, is_test) == []
        fold_of(labels, keys, 5, 0, groups)


# --- keys and groups ------------------------------------------------------------------------------------------------


def test_path_keys_are_blake2b_words():
    paths = ["cat/1.jpg", "cat/10.jpg", "Cat/1.jpg", "caf\u00e9/1.jpg", os.fsdecode(b"caf\xe9/1.jpg")]
    keys = path_keys(paths)
    expected = hashlib.blake2b(b"cat/1.jpg", digest_size=8).digest()
    assert keys[0].item() == int.from_bytes(expected, "little", signed=True)
    assert len(set(keys.tolist())) == 5
    assert torch.equal(path_keys(["cafe\u0301/1.jpg"]), keys[3:4])
    assert path_keys([]).dtype == torch.int64


def test_straddling_names_the_groups_on_both_sides():
    groups = torch.tensor([5, 5, 2, 2, 9, -1, -1])
    assert straddling(groups, torch.tensor([1, 0, 1, 1, 0, 0, 1]).bool()) == [-1, 5]
    assert straddling(groups, torch.zeros(7).bool()) == []


def test_group_names_are_the_first_capture_or_the_match():
    paths = ["a/P01_cat_3.jpg", "b/P12_dog_1.jpg"]
    assert group_names(paths, r"P(\d+)_([a-z]+)") == ["01", "12"]
    assert group_names(paths, r"P\d+") == ["P01", "P12"]
    assert group_names(paths, r"(?:P)(?P<patient>\d)") == ["0", "1"]
    assert group_names([], "x") == []


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("P(", "not a regular expression"),
        ("P[0-5]1", r"'P\[0-5\]1' finds no group in 2 of 3 paths, first in 'b/P12\.jpg'"),
        ("P(9)?", r"finds no group in 3 of 3 paths, first in 'a/P01\.jpg'"),
        ("", "finds no group in 3 of 3"),
    ],
)
def test_group_patterns_that_name_nothing_are_refused(pattern, message):
    with pytest.raises(UserError, match=message):
        group_names(["a/P01.jpg", "b/P12.jpg", "c/Q.jpg"], pattern)
