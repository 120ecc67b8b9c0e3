"""Samplers against counts and walks done by hand; repeats are augmented anew, nothing depends on what ran before."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from longtail.data import Framing, build_view, load_data
from longtail.data.framing import decode_all
from longtail.data.keyed import keyed_permutation
from longtail.data.loading import ResidentLoader
from longtail.data.samplers import SAMPLERS, Sampler, class_shares
from longtail.data.streaming_loader import StreamingLoader
from longtail.errors import UserError

CPU = torch.device("cpu")
REPEATING = [name for name in SAMPLERS if name != "instance"]


def labels_of(counts, seed=0):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def expected_draws(name, counts, progress):
    """N q_c, by the formulas of the paper."""
    size, filled = sum(counts), sum(count > 0 for count in counts)
    if name == "square_root":
        whole = sum(math.sqrt(count) for count in counts)
        return [size * math.sqrt(count) / whole for count in counts]
    balanced = [size / filled if count else 0 for count in counts]
    share = 1.0 if name == "class_balanced" else progress
    return [(1 - share) * count + share * even for count, even in zip(counts, balanced, strict=True)]


@pytest.mark.parametrize("counts", [[60, 25, 9, 1], [7, 0, 40, 2, 0], [5, 5, 5], [13, 1]])
@pytest.mark.parametrize("name", REPEATING)
def test_an_epoch_draws_each_class_as_often_as_its_share_says(name, counts):
    labels, epochs = labels_of(counts), 5
    sampler = Sampler(name, labels, epochs)
    for epoch in range(epochs):
        drawn = sampler.draws(3, epoch)
        assert len(drawn.ids) == len(labels)
        found = torch.bincount(labels[drawn.ids], minlength=len(counts)).tolist()
        for one, exact in zip(found, expected_draws(name, counts, epoch / epochs), strict=True):
            assert abs(one - exact) < 1


def test_rounding_is_right_on_average():
    """10 images in 3 classes: 10/3 draws a class and epoch."""
    labels = labels_of([7, 2, 1])
    sampler = Sampler("class_balanced", labels)
    total = sum(torch.bincount(labels[sampler.draws(0, epoch).ids], minlength=3) for epoch in range(600))
    assert total.sum() == 6000
    # The standard deviation of a class's mean over 600 epochs is below 0.5 / sqrt(600) = 0.02.
    torch.testing.assert_close(total / 600, torch.full((3,), 10 / 3), rtol=0, atol=0.08)


def test_progressive_goes_from_each_image_once_to_nearly_balanced():
    counts, epochs = [60, 25, 9, 2], 100
    sampler = Sampler("progressive", labels_of(counts), epochs)
    assert sorted(sampler.draws(0, 0).ids.tolist()) == list(range(96))
    last = torch.bincount(sampler.labels[sampler.draws(0, epochs - 1).ids])
    assert (last - 24).abs().max() <= 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_image_again_before_every_other_of_its_class(name):
    """Walking along the epoch, the draws of a class's images never differ by more than one; keys count repeats."""
    counts = [40, 11, 3, 1, 0]
    labels = labels_of(counts)
    size = len(labels)
    for epoch in range(4):
        drawn, seen = Sampler(name, labels, 4).draws(9, epoch), Counter()
        for sample, key in zip(drawn.ids.tolist(), drawn.keys.tolist(), strict=True):
            assert key == sample + size * seen[sample]
            own = (labels == labels[sample]).nonzero().flatten().tolist()
            assert seen[sample] == min(seen[other] for other in own)
            seen[sample] += 1
        assert len(set(drawn.keys.tolist())) == size


@pytest.mark.parametrize("name", REPEATING)
def test_order_and_choice_change_with_seed_and_epoch_and_with_nothing_else(name):
    labels = labels_of([40, 11, 3])
    sampler = Sampler(name, labels, 8)
    first = sampler.draws(1, 5)
    sampler.draws(2, 7)
    again = Sampler(name, labels.clone(), 8).draws(1, 5)
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(first.keys, again.keys)
    for other in (sampler.draws(2, 5), sampler.draws(1, 6)):
        assert not torch.equal(first.ids, other.ids)
    if name == "class_balanced":  # 18 of the 40: others in another epoch, and dealt over the whole of it
        large = [set(d.ids[labels[d.ids] == 0].tolist()) for d in (first, sampler.draws(1, 6))]
        assert large[0] != large[1]
        assert torch.bincount(labels[first.ids[:27]], minlength=3).min() >= 3


def test_each_image_once_is_todays_order():
    """Bit for bit, so that runs made before there were samplers come out the same."""
    drawn = Sampler("instance", labels_of([20, 5])).draws(4, 2)
    assert torch.equal(drawn.ids, keyed_permutation(4, "order", 2, size=25))
    assert drawn.ids[:8].tolist() == [15, 14, 17, 18, 1, 21, 5, 23]
    assert torch.equal(drawn.keys, drawn.ids)


def test_shares_of_the_four():
    counts = [9, 4, 0, 1]
    for name, shares in (
        ("instance", [9 / 14, 4 / 14, 0, 1 / 14]),
        ("square_root", [3 / 6, 2 / 6, 0, 1 / 6]),
        ("class_balanced", [1 / 3, 1 / 3, 0, 1 / 3]),
        ("progressive", [2 / 3 * 9 / 14 + 1 / 9, 2 / 3 * 4 / 14 + 1 / 9, 0, 2 / 3 * 1 / 14 + 1 / 9]),
    ):
        assert class_shares(name, counts, 1 / 3) == pytest.approx(shares)


def test_one_image_class_beside_a_large_one_is_drawn_at_once():
    """100,000 rounds of a class of one image."""
    labels = torch.zeros(200_000, dtype=torch.int64)
    labels[77] = 1
    drawn = Sampler("class_balanced", labels).draws(0, 0)
    assert int((drawn.ids == 77).sum()) in (100_000, 100_000 + 1)
    assert len(set(drawn.keys.tolist())) == 200_000


def test_unknown_name():
    with pytest.raises(UserError, match="did you mean 'class_balanced'"):
        Sampler("class_balance", torch.zeros(3, dtype=torch.int64))


def resident(splits, recipe="tiny", **options):
    views = {name: build_view(recipe, splits.mean, splits.std) for name in ("classifier", "key")}
    sampler = Sampler("class_balanced", splits.train.labels, 3)
    return ResidentLoader(splits.train, views, 8, 0, CPU, sampler=sampler, **options)


def test_an_image_drawn_twice_is_augmented_anew(tiny_splits):
    """Of the class of two images each comes 5 or 6 times in 35 draws; its first view is that of plain sampling."""
    loader = resident(tiny_splits)
    batches = [loader.load(1, step) for step in range(4)]
    ids = torch.cat([batch.ids for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    assert torch.equal(labels, tiny_splits.train.labels[ids])
    assert torch.bincount(labels).min() >= 8
    view = build_view("tiny", tiny_splits.mean, tiny_splits.std)
    for name in ("classifier", "key"):
        images = torch.cat([batch.views[name] for batch in batches])
        for sample in (33, 34):
            own = images[ids == sample]
            assert len(own) >= 4
            for one in range(len(own)):
                assert not any(torch.equal(own[one], own[other]) for other in range(one))
            pixels, at = tiny_splits.train.images[[sample]], torch.tensor([sample])
            assert torch.equal(own[0], view(pixels, at, 0, 1, name)[0])
            assert torch.equal(own[2], view(pixels, at + 2 * 35, 0, 1, name)[0])


@pytest.mark.parametrize("options", [{}, {"steps_at_once": 1}, {"steps_at_once": 3, "home": torch.device("cpu", 0)}])
def test_resident_batches_do_not_depend_on_what_was_made_before(tiny_splits, options):
    made = resident(tiny_splits, **options)
    for place in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 2), (2, 3), (1, 1)]:
        one, other = made.load(*place), resident(tiny_splits).load(*place)
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.views["key"], other.views["key"])


@pytest.fixture(scope="module")
def files(make_photos, tmp_path_factory):
    folder = make_photos(tmp_path_factory.mktemp("photos"), {"ant": 14, "bee": 5, "cat": 2})
    train = load_data(str(folder)).train
    return replace(train, framed=Framing((16, 16), 16))


def streamed(files, recipe, workers, name="class_balanced", epochs=3):
    views = {"classifier": build_view(recipe, (0.4,) * 3, (0.2,) * 3)}
    sampler = Sampler(name, files.labels, epochs)
    return StreamingLoader(files, views, 4, 7, CPU, epochs, workers, sampler=sampler)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches_are_the_resident_ones(files, name, workers):
    views = {"classifier": build_view("light", (0.4,) * 3, (0.2,) * 3)}
    sampler = Sampler(name, files.labels, 3)
    held = ResidentLoader(decode_all(files, 0), views, 4, 7, CPU, sampler=sampler)
    loader = streamed(files, "light", workers, name)
    for epoch, step in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 1)]:  # on, into the next, and from the middle
        one, other = held.load(epoch, step), loader.load(epoch, step)
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.views["classifier"], other.views["classifier"])
    loader.close()


def test_a_file_drawn_twice_is_cropped_anew(files):
    """The random crop of a photograph is drawn where it is decoded."""
    loader = streamed(files, "photo", 0)
    batches = [loader.load(0, step) for step in range(len(files) // 4)]
    ids, images = torch.cat([b.ids for b in batches]), torch.cat([b.views["classifier"] for b in batches])
    ((often, times),) = Counter(ids.tolist()).most_common(1)
    assert times >= 3
    own = images[ids == often]
    for one in range(len(own)):
        assert not any(torch.equal(own[one], own[other]) for other in range(one))
