"""The loader of masks: what a batch holds follows from seed, epoch and step, never from workers or memory."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from longtail.data import memory
from longtail.data.path_table import PathTable
from longtail.data.samplers import epoch_order
from longtail.data.streaming import stream
from longtail.errors import UserError
from longtail.segmentation.data import loading
from longtail.segmentation.data import resident as resident_module
from longtail.segmentation.data.geometry import Geometry
from longtail.segmentation.data.loading import MaskLoader
from longtail.segmentation.data.mask_set import IGNORE, MaskFiles
from longtail.segmentation.data.resident import ResidentPairs, fits_in_memory, resident_bytes
from longtail.segmentation.data.whole import whole_pairs

CPU = torch.device("cpu")
VIEWS = {"classifier": "colour", "query": "colour", "plain": "none"}
GEOMETRY = Geometry((16, 24), (0.5, 2.0), True, 0.5)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def read_labels(path):
    values = torch.from_numpy(np.array(Image.open(path)).astype(np.int16))
    return values.where(values != 255, IGNORE)


def make_files(folder, count=7, size=None):
    """Images of several sizes, smaller and larger than the crop; red is 30 * label, green tells the image."""
    random = np.random.RandomState(0)
    pixels, sizes = [], []
    for index in range(count):
        height, width = (int(side) for side in random.randint(12, 48, 2))
        labels = np.zeros((height, width), np.uint8)
        labels[height // 3 :, : width // 2] = 1
        labels[:3, :4] = 2
        labels[-2:] = 255
        image = np.stack([30 * (labels % 255), np.full_like(labels, 20 * index), np.full_like(labels, 90)], axis=-1)
        Image.fromarray(image).save(folder / f"{index}.png")
        Image.fromarray(labels).save(folder / f"{index}_mask.png")
        pixels.append(torch.from_numpy(labels.astype(np.int64)).flatten().bincount(minlength=256)[:3])
        sizes.append((height, width))
    return MaskFiles(
        folder,
        PathTable(f"{index}.png" for index in range(count)),
        PathTable(f"{index}_mask.png" for index in range(count)),
        read_labels,
        ("ground", "tree", "bird"),
        torch.zeros(3, 3, dtype=torch.uint8),
        torch.stack(pixels),
        torch.tensor(sizes),
        size,
    )


def make_loader(files, workers=0, batch_size=3, epochs=2, views=VIEWS, geometry=GEOMETRY, **options):
    return MaskLoader(
        files, views, batch_size, 7, CPU, epochs, geometry=geometry, mean=MEAN, std=STD, workers=workers, **options
    )


def same(one, other):
    assert one.views.keys() == other.views.keys()
    for name in one.views:
        assert torch.equal(one.views[name], other.views[name]), name
    for field in ("labels", "ids", "keys"):
        assert torch.equal(getattr(one, field), getattr(other, field)), field


def test_batches_have_the_promised_form(tmp_path):
    files = make_files(tmp_path)
    loader = make_loader(files)
    assert loader.steps_per_epoch == 2  # of seven images, the last one is dropped
    assert torch.equal(loader.labels, files.pixels)
    batches = [loader.load(epoch, step) for epoch in range(2) for step in range(2)]
    for batch in batches:
        assert {view.shape for view in batch.views.values()} == {(3, 3, 16, 24)}
        assert all(view.dtype == torch.float32 for view in batch.views.values())
        assert batch.labels.shape == (3, 16, 24)
        assert (batch.labels.dtype, batch.ids.dtype, batch.keys.dtype) == (torch.int64,) * 3
        assert batch.labels.min() >= IGNORE
        assert batch.labels.max() < 3
    order = torch.cat([batch.ids for batch in batches[:2]])
    assert torch.equal(order, epoch_order(7, 7, 0)[:6])
    keys = torch.cat([batch.keys for batch in batches])
    assert len(keys.unique()) == 12


def test_the_mask_belongs_to_every_view_and_colour_leaves_it_alone(tmp_path):
    loader = make_loader(make_files(tmp_path))
    plain = make_loader(make_files(tmp_path), views={"classifier": "none"})
    for step in range(2):
        batch = loader.load(0, step)
        assert torch.equal(batch.labels, plain.load(0, step).labels)
        assert not torch.equal(batch.views["classifier"], batch.views["query"])
        levels = batch.views["plain"] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
        red, green, blue = (255 * levels).round().unbind(1)
        inside = (blue == 90) & (batch.labels != IGNORE)
        assert inside.any()
        # Resampling mixes what lies on an edge; everywhere else the colour is the label's and the image's own.
        assert ((red - 30 * batch.labels).abs()[inside] < 1).double().mean() > 0.8
        assert torch.equal(green[inside], (20 * batch.ids)[:, None, None].expand_as(green)[inside].float())
        outside = blue != 90
        assert (batch.labels[outside] == IGNORE).all()
        for view in batch.views.values():
            edge = (view[:, :, :, 1:] != view[:, :, :, :-1]).any(dim=1)
            flat = (batch.views["plain"][:, :, :, 1:] == batch.views["plain"][:, :, :, :-1]).all(dim=1)
            assert not edge[flat].any()


def test_padding_has_the_mean_colour(tmp_path):
    loader = make_loader(make_files(tmp_path), views={"plain": "none"}, geometry=Geometry((60, 60)))
    batch = loader.load(0, 0)
    padded = batch.views["plain"].abs().amax(dim=1) < 0.02  # the mean, to the nearest level
    sizes = loader.files.sizes[batch.ids]
    assert torch.equal(padded.flatten(1).sum(1), 3600 - sizes.prod(1))
    assert (batch.labels[padded] == IGNORE).all()


@pytest.mark.parametrize("options", [{"workers": 2}, {"resident": True}, {"resident": True, "workers": 2}])
def test_neither_workers_nor_memory_change_a_batch(tmp_path, options):
    files = make_files(tmp_path, size=(20, 30) if "workers" in options else None)
    plain, other = make_loader(files), make_loader(files, **options)
    for epoch in range(2):
        for step in range(2):
            same(other.load(epoch, step), plain.load(epoch, step))
    other.close()


def test_colouring_a_few_at_a_time_changes_nothing(tmp_path, monkeypatch):
    files = make_files(tmp_path)
    whole = make_loader(files).load(1, 1)
    monkeypatch.setattr(loading, "images_at_a_time", lambda shape, device: 2)
    same(make_loader(files).load(1, 1), whole)


def test_beside_an_accelerator_views_are_made_there_and_are_the_same(tmp_path, monkeypatch):
    files = make_files(tmp_path)
    sent = []

    def keep(items, places, workers, prefetch, pin):
        for item in stream(items, places, workers, prefetch):
            sent.append((pin, list(item[2])))
            yield item

    monkeypatch.setattr(loading, "stream", keep)
    other = make_loader(files)
    other._on_device = True  # what an accelerator as device would make it
    same(other.load(1, 0), make_loader(files).load(1, 0))
    assert sent == [(True, [""]), (False, list(VIEWS))]


def test_workers_are_started_once_for_what_is_loaded_in_order(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(loading, "stream", lambda *given: started.append(given[1][0]) or stream(*given))
    loader = make_loader(make_files(tmp_path))
    for epoch, step in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 1), (1, 0)):
        loader.load(epoch, step)
    assert started == [(0, 0), (0, 1)]


def test_a_run_goes_on_anywhere(tmp_path):
    files = make_files(tmp_path)
    whole = make_loader(files)
    batches = {(epoch, step): whole.load(epoch, step) for epoch in range(2) for step in range(2)}
    later = make_loader(files, workers=1)
    same(later.load(0, 1), batches[0, 1])
    same(later.load(1, 0), batches[1, 0])
    same(later.load(0, 0), batches[0, 0])
    later.close()
    same(later.load(1, 1), batches[1, 1])
    later.close()


def test_fetch_shows_one_crop_in_all_views_and_a_fresh_one_each_round(tmp_path):
    files = make_files(tmp_path)
    loader = make_loader(files, fetched={"key": "none"})
    ids, rounds = torch.tensor([4, 1, 4, 6, 0]), torch.tensor([0, 0, 1, 1, 0])
    fetched = loader.fetch("key", ids, rounds)
    assert list(fetched.views) == ["key"]
    assert torch.equal(fetched.ids, ids)
    coloured = loader.fetch("classifier", ids, rounds)
    assert torch.equal(coloured.labels, fetched.labels)
    assert torch.equal(coloured.keys, fetched.keys)
    assert not torch.equal(fetched.views["key"][0], fetched.views["key"][2])
    alone = make_loader(files, workers=2, resident=True, fetched={"key": "none"}).fetch("key", ids[2:3], rounds[2:3])
    assert torch.equal(alone.views["key"], fetched.views["key"][2:3])
    assert torch.equal(alone.labels, fetched.labels[2:3])
    keys = torch.cat([fetched.keys, *(loader.load(epoch, step).keys for epoch in range(2) for step in range(2))])
    assert len(keys.unique()) == 5 + 12
    with pytest.raises(ValueError):
        loader.fetch("key", ids[:0], rounds[:0])


def test_a_crop_may_be_all_ignored(tmp_path):
    files = make_files(tmp_path)
    for index in range(7):
        mask = np.full_like(np.array(Image.open(tmp_path / f"{index}_mask.png")), 255)
        Image.fromarray(mask).save(tmp_path / f"{index}_mask.png")
    for pixels in (files.pixels, torch.zeros_like(files.pixels)):
        batch = make_loader(dataclasses.replace(files, pixels=pixels)).load(0, 0)
        assert (batch.labels == IGNORE).all()
        assert batch.views["query"].isfinite().all()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_gone_is_named_with_how_to_go_on(tmp_path, workers):
    loader = make_loader(make_files(tmp_path), workers)
    loader.load(0, 0)
    for path in tmp_path.glob("?.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"[0-6]\.png.*empty.*--resume\.$"):
        make_loader(loader.files, workers).load(0, 1)
    with pytest.raises(UserError, match=r"3\.png.*--resume\.$"):
        loader.fetch("query", torch.tensor([3]), torch.tensor([0]))
    with pytest.raises(UserError, match=r"0\.png"):
        list(whole_pairs(loader.files, workers))
    loader.close()


def test_wrong_arguments_are_refused(tmp_path):
    files = make_files(tmp_path)
    with pytest.raises(ValueError, match="batch_size 8"):
        make_loader(files, batch_size=8)
    with pytest.raises(UserError, match="unknown query view recipe for segmentation 'colours'; did you mean 'colour'"):
        make_loader(files, views={"query": "colours"})


@pytest.mark.parametrize("workers", [0, 2])
def test_whole_pairs_come_in_order_at_their_own_size(tmp_path, workers):
    files = make_files(tmp_path)
    pairs = list(whole_pairs(files, workers))
    assert [index for index, _, _ in pairs] == list(range(7))
    for index, image, labels in pairs:
        assert np.array_equal(image.permute(1, 2, 0), np.array(Image.open(tmp_path / f"{index}.png")))
        assert torch.equal(labels, read_labels(tmp_path / f"{index}_mask.png"))


def test_what_is_kept_in_memory_is_what_was_read(tmp_path, monkeypatch):
    files = make_files(tmp_path)
    kept = ResidentPairs(files, 2)
    for index, image, labels in whole_pairs(files):
        assert torch.equal(kept[index][0], image)
        assert torch.equal(kept[index][1], labels)
    assert resident_bytes(files) == sum(image.nbytes + labels.nbytes for _, image, labels in whole_pairs(files))
    assert resident_bytes(dataclasses.replace(files, size=(10, 20))) == 7 * 10 * 20 * 5
    needed = resident_bytes(files) / memory.SHARE
    for available, fits in ((None, True), (needed + 1, True), (needed - 1, False)):
        monkeypatch.setattr(resident_module, "available_bytes", lambda found=available: found)
        assert fits_in_memory(files) == fits
    Image.new("RGB", (5, 5)).save(tmp_path / "2.png")
    Image.new("L", (5, 5)).save(tmp_path / "2_mask.png")
    with pytest.raises(UserError, match=r"2\.png is 5 x 5 and was"):
        ResidentPairs(files)
