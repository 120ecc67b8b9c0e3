"""Streaming image files: what a batch holds follows from seed, epoch and step, never from workers or prefetch."""

import dataclasses
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from longtail.data import Framing, ImageFiles, build_view
from longtail.data.decode import fit
from longtail.data.framing import decode_all, frame_splits
from longtail.data.image_set import DataSplits
from longtail.data.loading import ResidentLoader
from longtail.data.path_table import PathTable
from longtail.data.streaming import frame_files, needed_side, plain_frames
from longtail.data.streaming_loader import StreamingLoader
from longtail.errors import UserError

CPU = torch.device("cpu")
VIEWS = ("classifier", "imagenet"), ("query", "imagenet_contrast"), ("key", "none")


def make_files(folder, count=13, framing=None):
    random = np.random.RandomState(0)
    names = []
    for index in range(count):
        height, width = random.randint(30, 60, 2)
        small = random.randint(0, 256, (6, 6, 3), dtype=np.uint8)
        name = f"{index:02d}.{'jpg' if index % 2 else 'png'}"
        Image.fromarray(small).resize((int(width), int(height)), Image.Resampling.BICUBIC).save(folder / name)
        names.append(name)
    labels = torch.arange(count) % 3
    zeros = torch.zeros(count, 2, dtype=torch.int32)
    return ImageFiles(
        folder,
        PathTable(names),
        labels,
        ("a", "b", "c"),
        zeros,
        zeros[:, 0].long(),
        framing or Framing((24, 24), 28, "bilinear"),
    )


def make_views(recipes=VIEWS):
    return {name: build_view(recipe, (0.4, 0.5, 0.6), (0.2, 0.2, 0.2)) for name, recipe in recipes}


def make_loader(files, workers=0, epochs=3, batch_size=4, **options):
    return StreamingLoader(files, make_views(), batch_size, 7, CPU, epochs, workers, **options)


def same(one, other):
    assert one.views.keys() == other.views.keys()
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.labels, other.labels)
    for name in one.views:
        assert torch.equal(one.views[name], other.views[name]), name


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("images"))


def test_paths_in_a_table_come_back():
    paths = ["a/b.jpg", "", "ü/ß.png", "\udcff.jpg", "last"]
    table = PathTable(paths)
    assert [table[index] for index in range(len(table))] == paths
    assert [table.select([4, 0])[index] for index in (0, 1)] == ["last", "a/b.jpg"]
    assert table.digest() != PathTable([*paths[:-1], "lest"]).digest()
    assert PathTable(["ab", "c"]).digest() != PathTable(["a", "bc"]).digest()


@pytest.mark.parametrize("workers", [1, 3])
def test_worker_count_changes_nothing(files, workers):
    alone, together = make_loader(files), make_loader(files, workers, prefetch=2)
    assert alone.steps_per_epoch == together.steps_per_epoch == 3
    for epoch in range(2):
        for step in range(3):
            same(alone.load(epoch, step), together.load(epoch, step))
    together.close()


def test_starting_in_the_middle_gives_the_same_batch(files):
    walked, jumped = make_loader(files, epochs=2), make_loader(files, 1, epochs=2)
    batches = [walked.load(epoch, step) for epoch in range(2) for step in range(3)]
    same(jumped.load(1, 1), batches[4])
    same(jumped.load(1, 2), batches[5])
    same(jumped.load(0, 0), batches[0])  # and back
    jumped.close()


def test_every_image_once_an_epoch_and_another_order_in_the_next(files):
    loader = make_loader(files, batch_size=1)
    ids = [[int(loader.load(epoch, step).ids) for step in range(13)] for epoch in range(2)]
    assert sorted(ids[0]) == sorted(ids[1]) == list(range(13))
    assert ids[0] != ids[1]


def test_order_is_that_of_the_resident_loader(files):
    resident = ResidentLoader(decode_all(files, 0), make_views([("key", "none")]), 4, 7, CPU)
    streaming = StreamingLoader(files, make_views([("key", "none")]), 4, 7, CPU, 1)
    for step in range(3):
        same(resident.load(0, step), streaming.load(0, step))


def test_a_view_made_alone_of_files_read_for_all_is_the_same(files):
    three = make_loader(files).load(0, 0)
    side = needed_side(files.framing, make_views())
    view = make_views()["query"]
    frames = frame_files(files, three.ids, {"query": view}, side, 7, 0)["query"]
    alone = view.normalise(view.augment(frames, three.ids, 7, 0, "query"))
    assert torch.equal(alone, three.views["query"])


def test_each_file_is_read_once_for_all_views(files, monkeypatch):
    from longtail.data import streaming

    read, paths = streaming.read_image, []
    monkeypatch.setattr(streaming, "read_image", lambda path, side: paths.append(path) or read(path, side))
    make_loader(files).load(0, 0)
    assert len(paths) == len(set(paths)) == 4


def test_fetch_gives_fresh_views_that_the_epochs_do_not_hold(files):
    loader = make_loader(files, 2)
    ids, rounds = torch.tensor([5, 2, 5, 9]), torch.tensor([0, 0, 1, 0])
    fetched = loader.fetch("classifier", ids, rounds)
    assert fetched.shape == (4, 3, 24, 24)
    assert not torch.equal(fetched[0], fetched[2])
    again = make_loader(files).fetch("classifier", ids.flip(0), rounds.flip(0)).flip(0)
    assert torch.equal(fetched, again)
    batches = [loader.load(0, step) for step in range(3)]
    seen = {int(b.ids[k]): b.views["classifier"][k] for b in batches for k in range(4)}
    assert not any(torch.equal(fetched[k], seen[int(i)]) for k, i in enumerate(ids) if int(i) in seen)
    loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_plain_frames_come_in_order_and_cover_all(files, workers):
    frames = list(plain_frames(files, 5, workers))
    assert [len(part) for part in frames] == [5, 5, 3]
    whole = torch.cat(frames)
    expected = decode_all(files, 0).images
    assert whole.dtype == torch.uint8
    assert torch.equal(whole, expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_vanished_is_named(tmp_path, workers):
    files = make_files(tmp_path, 4)
    (tmp_path / "02.png").write_bytes(b"gone")
    with pytest.raises(UserError, match=r"02\.png cannot be read any more .* --resume"):
        make_loader(files, workers, batch_size=4).load(0, 0)
    with pytest.raises(UserError, match=r"02\.png"):
        list(plain_frames(files, 4, workers))


def test_workers_leave_signals_of_the_training_alone(files):
    # A worker that inherited the training's handlers would keep on running when it is told to end.
    before = signal.getsignal(signal.SIGINT)
    loader = make_loader(files, 1)
    loader.load(0, 0)
    loader.close()
    assert signal.getsignal(signal.SIGINT) is before


def test_batch_that_does_not_fit(files):
    with pytest.raises(ValueError, match="batch_size 14 does not fit"):
        make_loader(files, batch_size=14)


def test_statistics_of_resident_and_streamed_files(files):
    splits = DataSplits("x", dataclasses.replace(files, framed=None), files.subset(torch.arange(3)), (), (), "")
    resident = frame_splits(splits, files.framing, resident=True, workers=0)
    streamed = frame_splits(splits, files.framing, resident=False, workers=0)
    pixels = resident.train.images.double() / 255
    assert resident.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert resident.std == pytest.approx(pixels.permute(1, 0, 2, 3).flatten(1).std(1, correction=0).tolist())
    assert streamed.mean == pytest.approx(resident.mean)  # 13 files: the sample is all of them
    assert isinstance(streamed.train, ImageFiles)
    given = frame_splits(splits, files.framing, resident=False, workers=0, mean=(0.1,) * 3, std=(0.3,) * 3)
    assert (given.mean, given.std) == ((0.1,) * 3, (0.3,) * 3)


def test_fingerprints_tell_content_labels_and_framing(files):
    known = dataclasses.replace(files, digests=torch.arange(1, 14))
    prints = {
        known.fingerprint(),
        dataclasses.replace(known, digests=torch.arange(2, 15)).fingerprint(),
        dataclasses.replace(known, labels=known.labels.flip(0)).fingerprint(),
        dataclasses.replace(known, framed=Framing((24, 24), 30)).fingerprint(),
        files.fingerprint(),
        dataclasses.replace(files, paths=PathTable([f"x{index}" for index in range(13)])).fingerprint(),
    }
    assert len(prints) == 6
    assert known.fingerprint() == dataclasses.replace(known, root="elsewhere").fingerprint()


def test_frames_are_those_of_pillow_image_by_image(files):
    # By hand, one image at a time: decode, cut the box out, resize; a centre crop where the recipe draws none.
    views, ids = make_views(), torch.tensor([11, 3, 8, 0, 5])
    side = needed_side(files.framing, views)
    frames = frame_files(files, ids, views, side, 7, 2)
    for position, index in enumerate(ids.tolist()):
        image = Image.open(files.path(index)).convert("RGB")
        for name, view in views.items():
            if view.crop is None:
                expected = fit(image, files.framing)
            else:
                size = (torch.tensor([length]) for length in (image.height, image.width))
                left, top, width, height = view.boxes(*size, ids[position : position + 1], 7, 2, name)[0].tolist()
                box = (left, top, left + width, top + height)
                expected = np.asarray(image.resize((24, 24), Image.Resampling.BILINEAR, box=box))
            np.testing.assert_array_equal(frames[name][position].permute(1, 2, 0), expected)
    plain = frame_files(files, ids, {}, None)[""]
    assert plain.is_contiguous(memory_format=torch.channels_last)  # as networks want them
    assert torch.equal(plain, frames["key"])
    assert all(made.is_contiguous() for made in frames.values())  # planes, as augmentation wants them
