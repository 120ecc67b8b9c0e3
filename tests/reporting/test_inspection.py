"""``longtail inspect``: any data, whatever is wrong with it, told in sentences, as JSON and on a page."""

import csv
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import longtail
from longtail.data.survey import LEFT_OUT, TEST, TRAIN
from longtail.files import save_tensors
from longtail.reporting import inspect_page, inspection
from longtail.reporting.inspect_figures import size_bins, torn_groups
from longtail.reporting.inspect_findings import trust
from longtail.training.evaluation import load_predictions
from longtail.training.time_estimate import OtherPrograms, StageTime

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def no_timing(monkeypatch):
    """Steps are timed by tests of their own."""
    times = [StageTime("teacher", 3, 12, 3, 8, 60.0), StageTime("student", 3, 12, 3, 8, 90.0)]
    monkeypatch.setattr(inspection, "estimate_time", lambda config, data, budget: times)
    monkeypatch.setattr(OtherPrograms, "share", lambda self: None)


def look(desk, *words):
    """Return what --json prints, which must be all that is printed, and must leave every file as it was."""
    before = desk.snapshot()
    out, err = desk.run("inspect", *words, "--json")
    assert err == ""
    assert desk.snapshot() == before
    return json.loads(out)


def split_photos(desk, make_photos, train=None, test=None):
    make_photos(desk.folder / "photos" / "train", train or {"ant": 12, "bee": 5, "cat": 2})
    make_photos(desk.folder / "photos" / "test", test or {"ant": 3, "bee": 3, "cat": 3}, first=50)
    return desk.folder / "photos"


def counts(figures):
    return {row["class"]: (row["train_images"], row["test_images"]) for row in figures["classes"]}


def test_a_clean_folder(desk, make_photos):
    split_photos(desk, make_photos)
    figures = look(desk, "photos", "--group_edges", "[10,4]")
    assert counts(figures) == {"ant": (12, 3), "bee": (5, 3), "cat": (2, 3)}
    assert list(counts(figures)) == ["ant", "bee", "cat"]
    assert figures["imbalance_factor"] == 6.0
    assert figures["groups"]["many"] == {"classes": 1, "train_images": 12, "test_images": 3}
    assert [row["group"] for row in figures["classes"]] == ["many", "medium", "few"]
    assert figures["pixels"]["shorter_side"] == {"min": 20, "median": 20.0, "max": 20}
    assert figures["pixels"]["longer_side"]["max"] == 22
    assert figures["pixels"]["modes"] == {"RGB": 28}
    assert figures["pixels"]["endings"] == {".png": 28}
    assert figures["refusal"] is None
    assert figures["training"]["command"] == "longtail train photos --group_edges '[10, 4]'"
    assert "backbone cifar_resnet32" in figures["training"]["chosen"]
    assert figures["findings"] == ["3 of 3 classes have fewer than 10 test images: accuracy there is a rough guess."]


def test_the_terminal_and_the_page(desk, make_photos):
    split_photos(desk, make_photos)
    out, _ = desk.run("inspect", "photos")
    lines = out.splitlines()
    assert "photos: 19 training images, 3 classes of 12 down to 2 (imbalance 6), 9 test images (given)" in lines
    assert re.search(r"^ant +few +12 +3  █{30}$", out, re.MULTILINE)
    assert re.search(r"^bee +few +5 +3  █{12}▌$", out, re.MULTILINE)
    assert "suggested: longtail train photos" in out
    assert "about 2 min on this machine" in out
    assert lines[-1] == "page: inspect-photos.html"
    page = (desk.folder / "inspect-photos.html").read_text()
    assert page.count("data:image/") >= 3 * 2
    assert desk.run("inspect", "photos", "--quiet") == ("", "")
    assert sorted(p.name for p in desk.folder.iterdir()) == ["inspect-photos.html", "photos"]


def test_everything_that_can_be_wrong_is_told_at_once(desk, make_photos, paint):
    photos = split_photos(desk, make_photos)
    train, test = photos / "train", photos / "test"
    (train / "ant" / "00.png").write_bytes(b"rubbish")
    (train / "ant" / "01.png").write_bytes((train / "ant" / "02.png").read_bytes()[:100])
    shutil.copy(train / "ant" / "03.png", test / "ant" / "copy.png")
    shutil.copy(train / "bee" / "00.png", train / "ant" / "bee.png")
    large = paint(train / "cat" / "large.png", 7, 7, side=64)
    with Image.open(large) as image:
        image.resize((50, 51)).save(test / "bee" / "smaller.jpg", quality=80)
    figures = look(desk, "photos")
    assert figures["broken"]["count"] == 2
    assert {row["file"]: row["reason"] for row in figures["broken"]["files"]} == {
        "train/ant/00.png": "not an image",
        "train/ant/01.png": "cut off",
    }
    assert counts(figures)["ant"] == (11, 4)
    assert figures["exact_duplicates"]["across"] == {"groups": 1, "test_images": 1}
    assert figures["exact_duplicates"]["conflicting"] == {"groups": 1}
    assert {i["file"] for i in figures["exact_duplicates"]["listed"][0]} == {"train/ant/03.png", "test/ant/copy.png"}
    near = figures["near_duplicates"]
    assert near["across"] == {"pairs": 1, "test_images": 1}
    assert near["conflicting"] == {"pairs": 1}
    assert {i["file"] for i in near["listed"][0]["images"]} == {"train/cat/large.png", "test/bee/smaller.jpg"}
    assert figures["training"]["command"] == "longtail train photos --on_bad_image skip"
    assert near["not_compared"]["too_small"] == 0  # broken files are counted as such
    assert not any("cannot be read" in note for note in figures["notes"])  # told by the findings already
    said = figures["findings"]
    assert said[0].startswith("Leak: 1 test image is also in the training set, pixel by pixel")
    assert said[1].startswith("Leak: 1 test image is nearly the same as a training image")
    assert any("1 image (equal pixels) lie under more than one class" in text for text in said)
    assert any("2 files cannot be read (not an image 1, cut off 1" in text for text in said)


REFUSED = {
    "one class": ({"ant": 4}, None, "only one class folder"),
    "only single images": ({"ant": 1, "bee": 1}, None, "nothing can be held out"),
    "a class that only the test set has": ({"ant": 4, "bee": 3}, {"ant": 2, "cow": 2}, "no training image"),
    "a class without a test image": ({"ant": 4, "bee": 3}, {"ant": 2}, None),
}


@pytest.mark.parametrize(("train", "test", "why"), REFUSED.values(), ids=REFUSED)
def test_what_training_refuses_is_looked_at(desk, make_photos, train, test, why):
    folder = make_photos(desk.folder / "photos" / ("train" if test else "."), train)
    if test:
        make_photos(desk.folder / "photos" / "test", test, first=50)
    assert folder.exists()
    figures = look(desk, "photos")
    seen = counts(figures)
    for name in {*train, *(test or {})}:
        assert sum(seen[name]) == train.get(name, 0) + (test or {}).get(name, 0)
    if why is None:
        assert figures["refusal"] is None
        assert "1 of 2 classes has no test image" in " ".join(figures["findings"])
    else:
        assert why in figures["refusal"]
        assert figures["findings"][0] == f"Training would refuse this data: {figures['refusal']}"
        assert figures["training"] is None


def test_a_class_whose_files_are_all_broken(desk, make_photos):
    photos = split_photos(desk, make_photos)
    for file in (photos / "train" / "cat").iterdir():
        file.write_bytes(b"")
    figures = look(desk, "photos")
    assert counts(figures)["cat"] == (0, 3)
    assert figures["imbalance_factor"] is None
    assert "none of the 2 training images of class 'cat' can be read" in figures["refusal"]
    assert desk.run("inspect", "photos")[0].count("cat") >= 2  # the terminal and the page stand it too


def test_a_manifest_with_missing_files_and_groups(desk, make_photos):
    make_photos(desk.folder / "photos", {"ant": 9, "bee": 6})
    rows = [
        (p.relative_to(desk.folder).as_posix(), p.parent.name, "test" if k % 3 == 0 else "train", f"site{k // 2}")
        for k, p in enumerate(sorted((desk.folder / "photos").rglob("*.png")))
    ]
    with open("all.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "group"), *rows, ("gone.png", "ant", "train", "site0")])
    figures = look(desk, "all.csv")
    assert figures["broken"]["files"] == [{"file": "gone.png", "class": "ant", "reason": "no such file"}]
    assert "1 of 16 images that it names is missing" in figures["refusal"]
    sides = {}
    for _, _, split, group in rows:
        sides.setdefault(group, set()).add(split)
    torn = [group for group, found in sides.items() if len(found) == 2]
    assert figures["groups_torn"]["torn"] == len(torn) > 2
    assert figures["groups_torn"]["groups"] == 8
    assert any(text.startswith(f"Leak: {len(torn)} of 8 groups lie in both") for text in figures["findings"])


def test_one_set_of_files_looks_the_same_from_every_source(desk, make_photos):
    split_photos(desk, make_photos)
    files = sorted((desk.folder / "photos").rglob("*.png"))
    rows = [(p.relative_to(desk.folder / "photos").as_posix(), p.parent.name, p.parent.parent.name) for p in files]
    with open("photos/all.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    for split in ("train", "test"):
        lines = [f"{path} {['ant', 'bee', 'cat'].index(label)}\n" for path, label, part in rows if part == split]
        (desk.folder / "photos" / f"list_{split}.txt").write_text("".join(lines))
    seen = [look(desk, *words) for words in (["photos"], ["photos/all.csv"], ["photos/list_train.txt"])]
    seen += [look(desk, "photos/train", "--source.test", "photos/test")]
    for figures in seen[1:]:
        for key in ("classes", "groups", "pixels", "near_duplicates", "imbalance_factor", "test_split"):
            if figures is not seen[-1] or key != "near_duplicates":  # its paths start elsewhere
                assert figures[key] == seen[0][key], key


def test_a_group_pattern_goes_through_and_one_that_fails_is_told(desk, make_photos):
    split_photos(desk, make_photos)
    figures = look(desk, "photos", "--source.group_pattern", r"(\d)\.png")
    assert figures["groups_torn"]["groups"] == 10
    assert figures["numbered_neighbours"] is None
    figures = look(desk, "photos", "--source.group_pattern", "(site)")
    assert "finds no group in 28 of 28 paths" in figures["refusal"]


def test_arrays_and_named_sets(desk):
    generator = np.random.default_rng(0)
    arrays = {
        "train_images": generator.integers(0, 256, (12, 24, 24, 3), dtype=np.uint8),
        "train_labels": np.array([0] * 9 + [1] * 3),
        "test_images": generator.integers(0, 256, (4, 24, 24, 3), dtype=np.uint8),
        "test_labels": np.array([0, 0, 1, 1]),
        "class_names": np.array(["ant", "bee"]),
    }
    arrays["test_images"][1] = arrays["train_images"][5]
    arrays["test_images"][3] = (arrays["train_images"][7] * 0.9).astype(np.uint8)
    np.savez("images.npz", **arrays)
    figures = look(desk, "images.npz")
    assert counts(figures) == {"ant": (9, 2), "bee": (3, 2)}
    pair = figures["exact_duplicates"]["listed"][0]
    assert [image["file"] for image in pair] == ["training image 5", "test image 1"]
    near = figures["near_duplicates"]["listed"][0]["images"]
    assert [image["file"] for image in near] == [
        "training image 7",
        "test image 3",
    ]
    assert figures["pixels"]["modes"] == {"RGB": 16}
    digits = look(desk, "digits-lt", "--imbalance", "20")
    assert digits["training"]["command"] == "longtail train digits-lt --imbalance 20.0"
    assert digits["near_duplicates"]["not_compared"]["too_small"] == digits["images"]  # 8 x 8 pixels


@pytest.mark.parametrize(("share", "said"), [(0.0, False), (0.05, False), (0.4, True)])
def test_other_programs_are_told_of(desk, make_photos, monkeypatch, share, said):
    make_photos(desk.folder / "photos", {"ant": 6, "bee": 3})
    monkeypatch.setattr(OtherPrograms, "share", lambda self: share)
    out, _ = desk.run("inspect", "photos")
    assert ("Other programs took 40 % of the processors" in out) == said


def test_the_cut_of_an_option_is_seen(desk, make_photos):
    make_photos(desk.folder / "photos", {"ant": 20, "bee": 20, "cat": 20})
    figures = look(desk, "photos", "--imbalance", "4", "--source.test_share", "0.25")
    assert [row["train_images"] for row in figures["classes"]] == [15, 7, 3]
    assert figures["left_out_images"] == 20
    assert figures["test_images"] == 15


def test_names_are_escaped_and_nothing_is_fetched(desk, make_photos):
    make_photos(desk.folder / "photos", {"<script>alert(1)</script>": 3, "a&b": 2, "x\x1b[31m": 2})
    desk.call("inspect", "photos")
    make_photos(desk.folder / "more", {"<script>alert(1)<": 3, "a&b": 2})
    shutil.copy(desk.folder / "more" / "a&b" / "00.png", desk.folder / "more" / "a&b" / "<img src=x>.png")
    out, _ = desk.run("inspect", "more", "--out", "looks")
    page = (desk.folder / "looks" / "inspect-more.html").read_text()
    assert "\x1b" not in out
    assert "<script" not in page
    assert "&lt;img src=x&gt;.png" in page
    assert "&lt;script&gt;alert(1)&lt;" in page
    assert not re.search(r"https?://", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)
    assert policy.startswith("default-src 'none'")
    assert "script-src" not in policy
    assert not re.search(r'\ssrc="(?!data:)', page)


def test_another_file_is_not_replaced_and_an_old_page_is(desk, make_photos):
    make_photos(desk.folder / "photos", {"ant": 4, "bee": 3})
    (desk.folder / "mine.html").write_text("<html>mine</html>")
    desk.refuse("inspect", "photos", "--out", "mine.html", naming=["mine.html", "--out"])
    desk.run("inspect", "photos", "--out", "page.html", "--quiet")
    first = (desk.folder / "page.html").read_bytes()
    desk.run("inspect", "photos", "--out", "page.html", "--quiet")
    assert (desk.folder / "page.html").read_bytes() == first  # the same data, the same bytes


MISTAKES = {
    "nothing there": (["nowhere"], ["nowhere"]),
    "no data": ([], ["DATA"]),
    "an unknown option": (["photos", "--source.grup_pattern", "x"], ["group_pattern"]),
    "no run": (["photos", "--run", "photos"], ["photos", "config.yaml"]),
    "a page below a file": (["photos", "--out", "photos/ant/00.png/x.html"], ["x.html"]),
}


@pytest.mark.parametrize(("words", "naming"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_in_a_sentence(desk, make_photos, words, naming):
    make_photos(desk.folder / "photos", {"ant": 4, "bee": 3})
    desk.refuse("inspect", *words, "--json", naming=naming)


def test_a_page_that_may_not_be_written_is_refused_before_the_images_are_looked_at(desk, make_photos, monkeypatch):
    make_photos(desk.folder / "photos", {"ant": 4, "bee": 3})
    monkeypatch.setattr("longtail.files.os.access", lambda path, mode: False)
    monkeypatch.setattr(inspection, "survey", None)
    desk.refuse("inspect", "photos", "--out", "x.html", naming=["--out x.html", "Permission denied"])


def test_labels_that_a_run_doubts(desk, make_photos):
    make_photos(desk.folder / "photos", {"ant": 8, "bee": 6, "cat": 4})
    words = "--method cross_entropy --epochs 1 --backbone small_net --image_size 16 --batch_size 4 --device cpu --quiet"
    desk.run("train", "photos", "--folds", "2", *words.split(), "--loading.workers", "0", "--out", "run")
    # Whatever these two models think: the predictions that they left are replaced by ones with a known doubt.
    for fold in ("fold-0", "fold-1"):
        folder = desk.folder / "run" / fold
        labels = load_predictions(folder)[1]
        logits = torch.nn.functional.one_hot(labels, 3) * 4.0
        if fold == "fold-0":
            doubted = int((labels == 1).nonzero()[0])
            logits[doubted] = torch.tensor([6.0, 0.0, 0.0])
        save_tensors(folder, "predictions", {"logits": logits, "labels": labels}, {})
    figures = look(desk, "photos", "--run", "run")["label_suspects"]
    assert (figures["folds"], figures["images"], figures["suspects"], figures["look_first"]) == (2, 18, 1, 1)
    (row,) = figures["classes"]
    assert (row["class"], row["images"], row["suspects"]) == ("bee", 6, 1)
    assert row["listed"][0]["likelier"] == "ant"
    assert row["listed"][0]["file"].startswith("bee/")
    out, _ = desk.run("inspect", "photos", "--run", "run", "--out", "page.html")
    assert "bee: look at 1 of 1 suspect among 6 images" in out
    assert "Labels that may be wrong" in (desk.folder / "page.html").read_text()
    make_photos(desk.folder / "other", {"ant": 8, "bee": 6, "cat": 4}, first=60)
    assert "was tested on none of these images" in desk.call("inspect", "other", "--run", "run")[2]


def test_a_weak_run_is_not_believed():
    assert trust({"accuracy": 0.8}) == ""
    assert "right on 36 % of these images only" in trust({"accuracy": 0.36})


def test_long_tables_are_cut_in_the_middle(desk, make_photos):
    make_photos(desk.folder / "photos", {f"kind {k:02d}": 2 + k % 7 for k in range(40)})
    out, _ = desk.run("inspect", "photos")
    left_out = r"^\.\.\. left out here: 10 classes of \d+ down to \d+; the page has them all, and so has --json \.\.\.$"
    assert re.search(left_out, out, re.MULTILINE)
    assert len(re.findall(r"^kind \d\d ", out, re.MULTILINE)) == 30
    assert "cut at" not in out
    assert "training images: number of classes" in out
    assert len(look(desk, "photos")["classes"]) == 40


def test_long_names_are_cut_and_it_is_said(desk, make_photos):
    make_photos(desk.folder / "photos", {"k" * 33: 4, "l" * 32: 3, "short": 2})
    out, _ = desk.run("inspect", "photos")
    assert "k" * 31 + "…" in out
    assert "l" * 32 in out
    assert "1 name cut at 32 characters" in out
    page = (desk.folder / "inspect-photos.html").read_text()
    assert "k" * 33 in page
    assert "3 classes, largest first; a long table scrolls inside its box" in page


def test_bins_of_class_sizes_hold_every_class():
    assert size_bins([1, 1, 3, 19, 20, 500]) == [
        ("1", 2), ("2-4", 1), ("5-9", 0), ("10-19", 1), ("20-49", 1), ("50-99", 0), ("100-199", 0), ("200-499", 0),
        ("500-999", 1),
    ]  # fmt: skip
    assert size_bins([0, 4]) == [("0", 1), ("1", 0), ("2-4", 1)]


def test_many_classes_are_cut_into_closed_tables(desk, make_photos, monkeypatch):
    monkeypatch.setattr(inspect_page, "ROWS_A_TABLE", 3)
    make_photos(desk.folder / "photos", {f"kind {k}": 9 - k for k in range(7)}, side=16)
    desk.run("inspect", "photos", "--quiet")
    page = (desk.folder / "inspect-photos.html").read_text()
    assert page.count('<table class="classes">') == 3
    assert page.count("<details open>") == 1
    assert "3 classes of 7 down to 6 training images" in page
    assert [page.count(f'<th scope="row"><bdi>kind {k}</bdi>') for k in range(7)] == [1] * 7


def test_pictures_have_a_budget(desk, make_photos, monkeypatch):
    """The largest and the smallest classes have pictures first."""
    monkeypatch.setattr(inspect_page, "MOST_PICTURES", 3)
    make_photos(desk.folder / "photos", {f"kind {k}": 9 - k for k in range(7)})
    desk.run("inspect", "photos", "--quiet")
    rows = (desk.folder / "inspect-photos.html").read_text().split('<tr><th scope="row"><bdi>')[1:]
    assert [row.split("</bdi>")[0] for row in rows if "data:image" in row] == ["kind 0", "kind 1", "kind 6"]


def test_the_page_says_what_was_not_looked_at(desk, make_photos):
    split_photos(desk, make_photos, {"ant": 12, "bee": 10}, {"ant": 10, "bee": 10})
    page = desk.folder / "inspect-photos.html"
    desk.run("inspect", "photos", "--quiet")
    assert "every file can be read, and no test image was found in the training set" in page.read_text()
    assert "42 images were compared for near duplicates; none were found, near or equal." in page.read_text()
    shutil.copy(desk.folder / "photos/train/ant/00.png", desk.folder / "photos/test/ant/60.png")
    desk.run("inspect", "photos", "--source.check", "sample", "--quiet")
    assert "Nothing stands out, but files were only sampled" in page.read_text()
    assert "no test image was found" not in page.read_text()
    assert "They were not looked for" in page.read_text()
    desk.run("inspect", "digits-lt", "--quiet")
    text = (desk.folder / "inspect-digits-lt.html").read_text()
    assert re.search(r"<p>0 images were compared for near duplicates \(not compared: \d+ too small\)", text)


def test_groups_on_both_sides_are_found_in_one_pass():
    class Site(str):
        looked_up = 0

        def __hash__(self):
            Site.looked_up += 1
            return super().__hash__()

        __eq__ = str.__eq__

    groups = [Site(f"site{k % 500}") for k in range(2000)]
    sides = np.repeat(np.array([TRAIN, TEST, LEFT_OUT], np.int8), [900, 900, 200])
    found = torn_groups(SimpleNamespace(groups=groups, sides=sides))
    assert (found["groups"], found["torn"], found["test_images"]) == (500, 500, 900)
    assert Site.looked_up < 4 * len(groups)


def test_from_python(desk, make_photos):
    make_photos(desk.folder / "photos", {"ant": 4, "bee": 3})
    figures = longtail.inspect("photos", source={"test_share": 0.4}, quiet=True)
    assert figures["test_images"] == 3
    assert (desk.folder / "inspect-photos.html").exists()
