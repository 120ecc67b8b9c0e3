"""What memory there is, as the system says it, and pixels that do not fit into it."""

import dataclasses

import torch

from longtail.data import Framing, ImageFiles, ImageSet
from longtail.data.image_set import DataSplits
from longtail.data.memory import available_bytes, too_large
from longtail.data.path_table import PathTable


def write(folder, **files):
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)


def test_available_is_what_the_system_and_the_container_leave(tmp_path):
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    cgroup.mkdir()
    assert available_bytes(meminfo, cgroup) is None
    meminfo.write_text("MemTotal:       32000 kB\nMemFree:         100 kB\nMemAvailable:   20000 kB\n")
    assert available_bytes(meminfo, cgroup) == 20000 * 1024
    write(cgroup, memory_max="max\n", memory_current="5\n", memory_stat="anon 5\ninactive_file 3000\n")
    assert available_bytes(meminfo, cgroup) == 20000 * 1024
    write(cgroup, memory_max="1000000\n", memory_current="400000\n")
    assert available_bytes(meminfo, cgroup) == 603000
    write(cgroup, memory_current="2000000\n")
    assert available_bytes(meminfo, cgroup) == 0
    assert available_bytes(tmp_path / "none", cgroup) == 0


def splits(train=6, test=4, validation=None):
    def files(count):
        zeros = torch.zeros(count, dtype=torch.int64)
        sizes = torch.zeros(count, 2, dtype=torch.int32)
        return ImageFiles("", PathTable(map(str, range(count))), zeros, ("a",), sizes, zeros)

    held = None if validation is None else files(validation)
    return DataSplits("x", files(train), files(test), (), (), "", validation=held)


def test_too_large_counts_every_set_of_files():
    framing = Framing((10, 20), 20)  # 600 bytes an image
    assert too_large(splits(), framing, None) is None
    assert too_large(splits(), framing, 7500) is None  # 6000 is just 80 %
    said = too_large(splits(), framing, 7499)
    assert said.startswith("the 10 images take ")
    assert said.endswith("they are streamed from their files (--loading.resident false).")
    assert said.count(". ") == 0  # one sentence
    assert too_large(splits(validation=1), framing, 7500) is not None
    arrays = ImageSet(torch.zeros(6, 3, 10, 20, dtype=torch.uint8), torch.zeros(6).long(), ("a",))
    assert too_large(dataclasses.replace(splits(), train=arrays), framing, 3000) is None


def test_a_run_that_does_not_fit_streams_says_so_and_goes_on_as_it_began(desk, make_photos, monkeypatch):
    from longtail.training import run_data

    make_photos(desk.folder / "photos", {"ant": 9, "bee": 6})
    words = "--method cross_entropy --epochs 1 --loading.workers 0 --backbone small_net --image_size 16 --batch_size 4"
    words = ["train", "photos", *words.split(), "--device", "cpu", "--loading.resident", "true", "--out", "run"]
    monkeypatch.setattr(run_data, "available_bytes", lambda: 100)
    out, err = desk.run(*words)
    assert "of memory available: they are streamed from their files" in out + err
    assert "resident: false" in (desk.folder / "run" / "config.yaml").read_text()
    monkeypatch.setattr(run_data, "available_bytes", lambda: 10**12)
    desk.run(*words, "--resume")
    desk.run("evaluate", "run", "--device", "cpu")
