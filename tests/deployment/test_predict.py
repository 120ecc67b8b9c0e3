"""``longtail predict``: rows against the classifier asked by hand, priors, shortlists, and what users get wrong."""

import csv
import errno
import io
import json
import os
import shutil
import sys

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

import longtail
from longtail.data.image_set import Framing
from longtail.deployment import predict as predict_module
from longtail.deployment import result_table
from longtail.deployment.predict_notes import estimate_notes
from longtail.files import save_tensors, write_json
from longtail.models import build_classifier

NAMES = ("ant", "bee, wild", "cat")
COUNTS = (60, 30, 10)


def make_run(folder, channels=3, prior=(0.6, 0.3, 0.1), names=NAMES, side=16):
    """A run folder as it is deployed: a classifier with weights drawn at random."""
    torch.manual_seed(0)
    spec = {"encoder": "small_net", "in_channels": channels, "head": "cosine", "scale": 8.0}
    counts = torch.tensor([*COUNTS, *[5] * (len(names) - 3)])
    framing = Framing((side, side), side + 2)
    mean, std = [0.4] * channels, [0.2] * channels
    classifier = build_classifier(spec, names, counts, torch.tensor(prior), mean, std, framing)
    classifier.save(folder)
    return folder


def validate(folder, logits, labels, temperature=None):
    save_tensors(folder, "validation", {"logits": logits.float(), "labels": labels}, {})
    if temperature is not None:
        write_json(folder / "calibration.json", {"temperature": temperature, "images": len(labels)})


def array_file(path):
    np.save(path, np.zeros((2, 16, 16, 3), np.uint8))
    return path


@pytest.fixture
def run(desk):
    return make_run(desk.folder / "run")


@pytest.fixture
def photos(desk, make_photos):
    make_photos(desk.folder / "photos", {"ant": 3, "bee": 2, "below/cat": 2}, side=24)
    (desk.folder / "photos" / "notes.txt").write_text("no image")
    return desk.folder / "photos"


def by_hand(run, files, prior=None, temperature=1.0):
    """Probabilities the plain way: Pillow, the classifier, Bayes' rule."""
    classifier = longtail.load(run)
    frames = []
    for file in files:
        image = Image.open(file).convert("RGB")
        scale = classifier.framing.resize / min(image.size)
        wide = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = (round((full - 16) / 2) for full in wide.size)
        frames.append(np.asarray(wide.crop((left, top, left + 16, top + 16))))
    logits = classifier.logits(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)) / temperature
    if prior is not None:
        logits = logits + torch.tensor(prior).log() - classifier.logit_prior.log()
    return logits.softmax(1)


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_a_row_an_image_in_the_order_given(desk, run, photos):
    out, err = desk.run("predict", "run", "photos/bee/01.png", "photos", "--top_k", "3")
    rows = rows_of(out)
    inside = ["ant/00.png", "ant/01.png", "ant/02.png", "bee/00.png", "bee/01.png", "below/cat/00.png"]
    names = ["photos/bee/01.png", *(f"photos/{name}" for name in inside), "photos/below/cat/01.png"]
    assert [row["file"] for row in rows] == names
    pairs = "label,probability,label_2,probability_2,label_3,probability_3"
    assert out.splitlines()[0] == f"file,{pairs},error"
    expected = by_hand(run, names)
    for row, probabilities in zip(rows, expected, strict=True):
        found = {row[f"label{k}"]: float(row[f"probability{k}"]) for k in ("", "_2", "_3")}
        assert [found[name] for name in NAMES] == pytest.approx(probabilities.tolist(), abs=2e-2)
        assert sum(found.values()) == pytest.approx(1, abs=1e-5)
        assert list(found.values()) == sorted(found.values(), reverse=True)
    assert "not calibrated (no calibration.json in run)" in err
    assert "as frequent as in the training data" in err
    assert "8 images predicted" in err


def test_the_numbers_are_the_classifiers_own(desk, run, photos):
    """Files that already have the model's size are not resized: the same tensors, to the last digit written."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (70, 18, 18, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(desk.folder / f"{index:02d}.png")
    framed = pixels[:, 1:17, 1:17]
    np.savez(desk.folder / "all.npz", images=framed.transpose(0, 3, 1, 2))
    np.savez(desk.folder / "last.npz", images=framed)
    expected = longtail.load(run).predict(torch.from_numpy(framed.copy()).permute(0, 3, 1, 2))
    best, label = expected.max(1)
    for words in (["??.png"], ["all.npz"], ["last.npz"], ["[0-6]?.png", "--workers", "2", "--batch_size", "7"]):
        rows = rows_of(desk.run("predict", "run", *words)[0])
        assert [row["label"] for row in rows] == [NAMES[k] for k in label.tolist()]
        assert [float(row["probability"]) for row in rows] == pytest.approx(best.tolist(), abs=1e-5)
    assert rows_of(desk.run("predict", "run", "all.npz")[0])[69]["file"] == "all.npz[69]"
    gray = framed[..., :1]
    np.savez(desk.folder / "gray.npz", images=gray)
    np.savez(desk.folder / "flat.npz", images=gray[..., 0])
    expected = longtail.load(run).predict(torch.from_numpy(gray.repeat(3, 3)).permute(0, 3, 1, 2)).max(1).values
    for name in ("gray.npz", "flat.npz"):
        found = [float(row["probability"]) for row in rows_of(desk.run("predict", "run", name)[0])]
        assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_gray_models_take_colour_files(desk):
    make_run(desk.folder / "gray", channels=1)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 18, 18, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(desk.folder / f"{index}.png")
        Image.fromarray(image).convert("L").save(desk.folder / f"{index}.gray.png")
    colour, gray = (rows_of(desk.run("predict", "gray", pattern)[0]) for pattern in ("?.png", "*.gray.png"))
    assert [row["probability"] for row in colour] == [row["probability"] for row in gray]
    luma = np.stack([np.asarray(Image.open(desk.folder / f"{k}.gray.png"))[1:17, 1:17] for k in range(5)])
    expected = longtail.load(desk.folder / "gray").predict(torch.from_numpy(luma)[:, None]).max(1).values
    assert [float(row["probability"]) for row in gray] == pytest.approx(expected.tolist(), abs=1e-5)
    np.savez(desk.folder / "flat.npz", test_images=luma, test_labels=np.zeros(5))
    assert [row["probability"] for row in rows_of(desk.run("predict", "gray", "flat.npz")[0])] == [
        row["probability"] for row in gray
    ]


def test_temperature_and_prior(desk, run, photos):
    write_json(run / "calibration.json", {"temperature": 2.5, "images": 30})
    files = sorted(photos.rglob("*.png"))
    (desk.folder / "prior.csv").write_text('class,prior\ncat,5\n"bee, wild",0\nant,5\n')
    cases = {"none": None, "uniform": [1 / 3] * 3, "train": [0.6, 0.3, 0.1], "prior.csv": [0.5, 0, 0.5]}
    exact = longtail.load(run)
    frames = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    np.savez(desk.folder / "x.npz", images=frames.numpy())
    for prior, values in cases.items():
        rows = rows_of(desk.run("predict", "run", "x.npz", "--prior", prior, "--top_k", "3")[0])
        logits = exact.logits(frames) / 2.5
        if values is not None:
            logits = logits + torch.tensor(values).log() - torch.tensor([0.6, 0.3, 0.1]).log()
        for row, expected in zip(rows, logits.softmax(1).tolist(), strict=True):
            found = {row[f"label{k}"]: float(row[f"probability{k}"]) for k in ("", "_2", "_3")}
            assert [found[name] for name in NAMES] == pytest.approx(expected, abs=1e-5)
    _, err = desk.run("predict", "run", *files, "--prior", "prior.csv")
    assert "temperature 2.5" in err
    assert "prior.csv" in err


def test_an_estimate_from_few_images_is_said_to_be_unreliable(desk, run):
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (300, 3, 16, 16), dtype=torch.uint8, generator=generator).numpy()
    for number, warned in ((6, True), (300, False)):
        np.savez(desk.folder / "x.npz", images=images[:number])
        out, err = desk.run("predict", "run", "x.npz", "--prior", "estimate", "--out", "few.csv", "--overwrite")
        assert ("this estimate is unreliable: with 6 images of 3 classes" in out + err) == warned
        assert ("unreliable" in out + err) == warned
    (note,) = estimate_notes(torch.full((10,), 0.1), 20)
    # 0.5 sqrt(2 / pi) sqrt(9 / 20) = 27 %; a tenth of it takes 7.2 times as many images.
    assert "some 27 % of it lie on the wrong classes by chance alone" in note
    assert "about 150 bring that to 10 %" in note
    assert estimate_notes(torch.full((10,), 0.1), 150) == []


@pytest.mark.parametrize(("sharpness", "warned"), [(12.0, False), (0.3, True)])
def test_an_estimate_is_tried_on_validation_images(desk, run, sharpness, warned):
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (300, 3, 16, 16), dtype=torch.uint8, generator=generator).numpy()
    np.savez(desk.folder / "x.npz", images=images)
    words = ["predict", "run", "x.npz", "--prior", "estimate", "--out", "few.csv", "--overwrite"]
    assert "no validation images tell how good such an estimate is" in desk.run(*words)[0]
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    logits = torch.randn(100, 3, generator=generator) + sharpness * torch.eye(3)[labels]
    validate(run, logits, labels, temperature=1.0)
    out, _ = desk.run(*words)
    assert "tried on 100 validation images, whose classes are known, such an estimate puts " in out
    assert ("this estimate is unreliable: tried" in out) == warned
    assert "no validation images" not in out


def test_a_list_of_paths_is_no_image(desk, run, photos):
    (desk.folder / "list.txt").write_text("photos/ant/00.png\n")
    desk.refuse("predict", "run", "list.txt", naming=["list.txt is no image", "- < list.txt"])
    out, _ = desk.run("predict", "run", "photos/ant/00.png", "list.txt")  # as a pattern may give it
    assert [bool(row["error"]) for row in rows_of(out)] == [False, True]


def test_an_estimated_prior_is_told_saved_and_read_again(desk, run):
    frames = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    np.savez(desk.folder / "x.npz", images=frames.numpy())
    words = ["predict", "run", "x.npz", "--prior", "estimate", "--prior_out", "prior.csv", "--out", "a.csv"]
    out, err = desk.run(*words)
    assert "prior estimated from 40 images: " in out
    assert err == ""
    rows = rows_of((desk.folder / "prior.csv").read_text())
    assert [row["class"] for row in rows] == list(NAMES)
    prior = torch.tensor([float(row["prior"]) for row in rows], dtype=torch.float64)
    assert float(prior.sum()) == pytest.approx(1)
    # At the maximum, the mean posterior of the images is the prior itself (or the class has none).
    classifier = longtail.load(run)
    mean = classifier.predict(frames, prior=prior).double().mean(0)
    assert mean.tolist() == pytest.approx(prior.tolist(), abs=2e-3)
    desk.run("predict", "run", "x.npz", "--prior", "prior.csv", "--out", "b.csv")
    assert (desk.folder / "a.csv").read_text() == (desk.folder / "b.csv").read_text()
    desk.refuse(*words, "--overwrite", "--prior", "uniform", naming=["--prior_out", "--prior estimate"])
    desk.refuse(*words, naming=["--out a.csv exists", "--overwrite"])
    desk.run(*words, "--overwrite")


def test_not_sure(desk, run, photos):
    out, err = desk.run("predict", "run", "photos", "--reject_below", "0.5")
    rows = rows_of(out)
    unsure = [row for row in rows if float(row["probability"]) < 0.5]
    assert [row["decision"] for row in rows] == [
        "not sure" if float(row["probability"]) < 0.5 else row["label"] for row in rows
    ]
    assert f"{len(unsure)} of them not sure" in err
    every = rows_of(desk.run("predict", "run", "photos", "--reject-below", "1")[0])
    assert {row["decision"] for row in every} == {"not sure"}


def test_broken_images_are_rows(desk, run, photos):
    whole = (photos / "ant" / "01.png").read_bytes()
    (photos / "ant" / "01.png").write_bytes(whole[: len(whole) // 2])
    (photos / "bee" / "00.png").write_bytes(b"")
    (photos / "bee" / "page.jpg").write_text("<html>")
    words = ["photos", "gone.jpg", "photos/notes.txt", "--reject_below", "0.1"]
    for more in ([], ["--workers", "2", "--batch_size", "2"]):
        out, err = desk.run("predict", "run", *words, *more)
        rows = {row["file"]: row for row in rows_of(out)}
        bad = {name: row["error"] for name, row in rows.items() if row["error"]}
        assert list(bad) == [
            "photos/ant/01.png",
            "photos/bee/00.png",
            "photos/bee/page.jpg",
            "gone.jpg",
            "photos/notes.txt",
        ]
        assert bad["gone.jpg"] == "no such file"
        assert bad["photos/bee/00.png"] == "empty, 0 bytes"
        assert all(rows[name]["label"] == rows[name]["probability"] == rows[name]["decision"] == "" for name in bad)
        assert "5 images predicted" in err
        assert "5 cannot be read, first photos/ant/01.png (" in err
    good = [name for name in rows if name not in bad]
    alone = {row["file"]: row for row in rows_of(desk.run("predict", "run", *good, "--reject_below", "0.1")[0])}
    for name, row in alone.items():  # another batch size: the last digit may differ
        assert float(row.pop("probability")) == pytest.approx(float(rows[name].pop("probability")), abs=1e-5)
    assert alone == {name: rows[name] for name in good}
    for file in photos.rglob("*.png"):
        file.write_bytes(b"")
    desk.refuse("predict", "run", "photos/ant", "--out", "t.csv", naming=["none of 3 images", "ant/00.png (empty"])


def test_a_list_on_standard_input(desk, run, photos, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("photos/bee/01.png\r\n\nphotos/ant/00.png\nphotos/none.png\n"))
    rows = rows_of(desk.run("predict", "run", "-")[0])
    assert [row["file"] for row in rows] == ["photos/bee/01.png", "photos/ant/00.png", "photos/none.png"]
    assert [row["error"] for row in rows] == ["", "", "no such file"]


def test_a_list_of_any_bytes(desk, run, photos, monkeypatch):
    lines = b"\xef\xbb\xbfphotos/bee/01.png\r\nphotos/caf\xe9.png\nphotos/ant/00.png"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    desk.run("predict", "run", "-", "--out", "t.csv")
    rows = (desk.folder / "t.csv").read_bytes().splitlines()[1:]
    assert [row.split(b",")[0] for row in rows] == [
        b"photos/bee/01.png",
        b"photos/caf\xe9.png",
        b"photos/ant/00.png",
    ]
    assert [row.endswith(b",no such file") for row in rows] == [False, True, False]


@pytest.mark.parametrize("option", ["--out", "--prior_out"])
def test_what_cannot_be_written_is_noticed_before_the_work(desk, run, photos, monkeypatch, option):
    def work(*_):
        raise AssertionError("images were read")

    words = ["predict", "run", "photos", "--prior", "estimate"]
    monkeypatch.setattr(predict_module, "score_images", work)
    desk.refuse(*words, option, "photos/notes.txt/t.csv", naming=[f"{option} photos/notes.txt/t.csv", "not a folder"])
    desk.refuse(*words, "--out", "t.csv", "--prior_out", "photos/../t.csv", naming=["--out and --prior_out", "t.csv"])
    monkeypatch.undo()
    monkeypatch.chdir(desk.folder)
    opened = []

    def full(path, mode):
        opened.append(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(result_table, "open", full, raising=False)
    monkeypatch.setattr(predict_module, "estimate_prior", work)
    desk.refuse(*words, "--out", "new/t.csv", naming=["--out new/t.csv", "No space left"])
    assert opened


def test_folders_above_the_table_are_made(desk, run, photos):
    desk.run("predict", "run", "photos", "--out", "a/b/t.csv")
    assert os.listdir(desk.folder / "a" / "b") == ["t.csv"]


def test_formats_say_the_same(desk, run, photos):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(60, 3, generator=generator), torch.arange(60) % 3
    validate(run, logits + 2 * torch.eye(3)[labels], labels)
    (photos / "bee" / "00.png").write_bytes(b"")
    words = ["predict", "run", "photos", "--coverage", "0.9", "--top_k", "2", "--reject_below", "0.4"]
    for name in ("t.csv", "t.jsonl", "t.parquet", "t.out"):
        desk.run(*words, "--out", name, *(["--format", "jsonl"] if name == "t.out" else []))
    table = pyarrow.parquet.read_table(desk.folder / "t.parquet").to_pylist()
    lines = [json.loads(line) for line in (desk.folder / "t.jsonl").read_text().splitlines()]
    assert table == lines
    assert (desk.folder / "t.out").read_bytes() == (desk.folder / "t.jsonl").read_bytes()
    cells = rows_of((desk.folder / "t.csv").read_text())
    assert cells == [
        {key: "|".join(v) if isinstance(v, list) else "" if v is None else str(v) for key, v in line.items()}
        for line in lines
    ]
    columns = "file label probability label_2 probability_2 set decision error".split()
    assert list(lines[0]) == columns
    assert {line["label"] for line in lines if line["label"]} <= set(NAMES)
    assert all(line["label"] == line["set"][0] for line in lines if line["set"])
    stdout, err = desk.run(*words, "--format", "jsonl")
    assert [json.loads(line) for line in stdout.splitlines()] == lines
    assert "classes a shortlist" in err
    assert desk.run(*words, "--quiet") == ((desk.folder / "t.csv").read_text(), "")


def slow_sets(held_out, labels, logits, coverage, prior=None, groups=None, prevalence=None):
    """Shortlists by the definition, one class and image at a time."""
    shift = np.zeros(3) if prior is None else np.log(prior) - np.log([0.6, 0.3, 0.1])

    def scores(rows):
        p = np.exp(rows + (0 if prevalence is not None else shift))
        p /= p.sum(1, keepdims=True)
        return -p / prevalence if prevalence is not None else 1 - p

    own = [scores(held_out[[i]])[0, label] for i, label in enumerate(labels)]
    sets = []
    for row, shifted in zip(scores(logits), logits + shift, strict=True):
        chosen = {int(shifted.argmax())}
        for c in range(3):
            members = [i for i in range(len(labels)) if groups is None or groups[labels[i]] == groups[c]]
            weight = [1.0 if prior is None else prior[k] / np.mean(np.array(labels) == k) for k in range(3)]
            total = sum(weight[labels[i]] for i in members) + weight[c]
            below = sum(weight[labels[i]] for i in members if own[i] < row[c] - 1e-12)
            if below < coverage * total - 1e-9:
                chosen.add(c)
        sets.append(chosen)
    return sets


@pytest.mark.parametrize("prior", [None, "prior.csv"])
@pytest.mark.parametrize("kind", ["marginal", "class", "prevalence"])
def test_shortlists_against_the_definition(desk, run, kind, prior):
    generator = torch.Generator().manual_seed(3)
    frames = torch.randint(0, 256, (200, 3, 1, 1), generator=generator).expand(-1, -1, 16, 16)
    frames = (frames + torch.randint(-20, 20, (200, 3, 16, 16), generator=generator)).clamp(0, 255).byte()
    every = longtail.load(run).logits(frames) / 2
    labels = torch.multinomial(every.softmax(1), 1, generator=generator).squeeze(1)[:150]
    validate(run, 2 * every[:150], labels, temperature=2.0)
    (desk.folder / "prior.csv").write_text('class,prior\ncat,50\n"bee, wild",30\nant,20\n')
    np.savez(desk.folder / "x.npz", images=frames[150:].numpy())
    words = ["predict", "run", "x.npz", "--coverage", "0.8", "--conformal", kind, "--format", "jsonl"]
    out, err = desk.run(*words, *(["--prior", prior] if prior else []))
    found = [{NAMES.index(name) for name in json.loads(line)["set"]} for line in out.splitlines()]
    assert labels.bincount().min() >= 4  # so that 4 of 4 are 5 x 0.8, and no class needs company
    # Without a prior it is the training data's; "class" promises to each class and needs none.
    own = None if kind == "class" else np.array([0.6, 0.3, 0.1])
    weights = own if prior is None else np.array([0.2, 0.3, 0.5])
    groups = [0, 1, 2] if kind == "class" else None
    prevalence = np.array([0.6, 0.3, 0.1]) if kind == "prevalence" else None
    asked = (0.8, weights, groups, prevalence)
    expected = slow_sets(every[:150].double().numpy(), labels.tolist(), every[150:].double().numpy(), *asked)
    assert found == expected
    assert 1 < np.mean([len(one) for one in found]) < 3
    assert f"80 % of {'the images of each class' if kind == 'class' else 'all images'}" in err


def test_shortlists_that_cannot_be_had(desk, run, photos):
    words = ["predict", "run", "photos", "--coverage", "0.9"]
    desk.refuse(*words, naming=["--coverage", "no validation.safetensors in run", "--val_fraction", "run itself"])
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    validate(run, torch.eye(3)[labels], labels)
    desk.refuse(*words, naming=["--coverage 0.9", "9 validation images", "has 6", "at most 0.85"])
    desk.run("predict", "run", "photos", "--coverage", "0.85")
    labels = torch.tensor([0] * 20 + [1])
    validate(run, torch.randn(21, 3), labels)
    _, err = desk.run(*words, "--conformal", "class")
    assert "2 classes of 3 with too few validation images (fewer than 9) share one threshold" not in err
    assert "3 classes of 3 with too few" in err
    assert "1 class of 3 without a validation image" in err
    desk.refuse(*words, "--prior", "estimate", naming=["--coverage", "--prior_out"])
    desk.refuse(*words, "--conformal", "clas", naming=["'clas'", "'class'"])
    desk.refuse("predict", "run", "photos", "--conformal", "class", naming=["--conformal", "--coverage"])
    (run / "validation.safetensors").write_bytes(b"cut")
    desk.refuse(*words, naming=["validation.safetensors", "SHA-256"])
    odd = make_run(desk.folder / "odd", names=("a|b", "c", "d"))
    validate(odd, torch.randn(21, 3), labels)
    desk.refuse("predict", "odd", "photos", "--coverage", "0.9", naming=["a|b", "--format jsonl"])


def test_what_users_get_wrong(desk, run, photos):
    def refuse(*words, naming):
        desk.refuse("predict", *words, naming=naming)

    refuse("nowhere", "photos", naming=["nowhere is not a run folder", "no such folder"])
    refuse("photos", "photos", naming=["photos is not a run folder", "model.json"])
    (desk.folder / "begun").mkdir()
    (desk.folder / "begun" / "config.yaml").write_text("data: x\n")
    refuse("begun", "photos", naming=["begun", "no model yet", "--resume"])
    shutil.copytree(run, desk.folder / "folds" / "fold-0")
    refuse("folds", "photos", naming=["folds of a run", "folds/fold-0"])
    refuse("run", naming=["IMAGES is missing"])
    (desk.folder / "empty").mkdir()
    refuse("run", "empty", naming=["no image in empty"])
    refuse("run", "none*.jpg", naming=["no file matches none*.jpg"])
    refuse("run", "gone.jpg", "--out", "t.csv", naming=["none of 1 image can be read", "gone.jpg (no such file)"])
    np.savez(desk.folder / "two.npz", a=np.zeros(1), b=np.zeros(1))
    refuse("run", "two.npz", naming=["two.npz", "'images'", "a, b"])
    np.savez(desk.folder / "small.npz", images=np.zeros((2, 8, 8, 3), np.uint8))
    refuse("run", "small.npz", naming=["small.npz", "[2, 8, 8, 3]", "16 x 16"])
    np.savez(desk.folder / "float.npz", images=np.zeros((2, 16, 16, 3)))
    refuse("run", "float.npz", naming=["float.npz", "uint8"])
    np.savez(desk.folder / "object.npz", images=np.array([None]))
    refuse("run", "object.npz", naming=["object.npz"])
    (desk.folder / "text.npz").write_text("no archive")
    refuse("run", "text.npz", naming=["text.npz", "not an .npz archive"])
    refuse("run", "gone.npz", naming=["no such file: gone.npz"])
    refuse("run", "photos", "--top_k", "4", naming=["--top_k 4", "3 classes"])
    refuse("run", "photos", "--top_k", "0", naming=["--top_k", "1 or more"])
    refuse("run", "photos", "--batch_size", "0", naming=["--batch_size"])
    refuse("run", "photos", "--workers", "-1", naming=["--workers"])
    refuse("run", "photos", "--reject_below", "1.5", naming=["--reject_below", "1.5"])
    refuse("run", "photos", "--coverage", "90", naming=["--coverage", "0.9", "90"])
    refuse("run", "photos", "--prior", "uniforn", naming=["'uniforn'", "'uniform'"])
    refuse("run", "photos", "--prior", "gone.csv", naming=["no such file: gone.csv"])
    refuse("run", "photos", "--out", "table", naming=["--out table", ".csv", "--format"])
    refuse("run", "photos", "--out", "photos", naming=["--out photos"])
    refuse("run", "photos", "--format", "xml", naming=["--format", "'xml'"])
    refuse("run", "photos", "--format", "parquet", naming=["--format parquet", "--out"])
    refuse("run", "photos", "--out", "photos/notes.txt/t.csv", naming=["--out photos/notes.txt/t.csv", "not a folder"])
    refuse("run", "gone.jpg", "--out", "no/where/t.csv", naming=["none of 1 image can be read"])
    os.rename(array_file(desk.folder / "array.npy"), desk.folder / "array.npz")
    refuse("run", "array.npz", naming=["array.npz", "not an .npz archive"])
    refuse("run", "photos", "--device", "nonsense", naming=["--device nonsense"])
    (desk.folder / "table.csv").write_text("mine")
    refuse("run", "photos", "--out", "table.csv", naming=["--out table.csv exists", "--overwrite"])
    desk.run("predict", "run", "photos", "--out", "table.csv", "--overwrite")
    assert len(rows_of((desk.folder / "table.csv").read_text())) == 7


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_full_disk_leaves_nothing(desk, run, photos, monkeypatch, ending):
    real = open

    class Full(io.FileIO):
        def write(self, data):
            if self.tell() > 20:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    def full(path, mode="r", *args, **options):
        return Full(path, "wb") if str(path).endswith(".tmp") else real(path, mode, *args, **options)

    monkeypatch.setattr(result_table, "open", full, raising=False)
    words = ["predict", "run", "photos", "--batch_size", "1", "--out", f"t.{ending}"]
    desk.refuse(*words, naming=[f"--out t.{ending} cannot be written", "No space left"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(desk, run, photos):
    (desk.folder / "fixed").mkdir()
    (desk.folder / "fixed").chmod(0o500)
    desk.refuse("predict", "run", "photos", "--out", "fixed/t.csv", naming=["--out fixed/t.csv", "Permission denied"])


def test_stopping_leaves_nothing(desk, run, photos, monkeypatch):
    def stop(self, rows):
        raise KeyboardInterrupt

    monkeypatch.setattr(result_table.ResultTable, "write", stop)
    before = desk.snapshot()
    assert desk.call("predict", "run", "photos", "--out", "t.parquet")[0] == 130
    assert desk.snapshot() == before


def test_names_of_files_that_are_no_text(desk, run, paint):
    odd = os.fsdecode(b"photos/caf\xe9.png")
    (desk.folder / "photos").mkdir()
    try:
        paint(desk.folder / "photos" / "plain.png", 0, 0).rename(odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    paint(desk.folder / "photos" / "two\nlines, and a comma.png", 0, 1)
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        desk.run("predict", "run", "photos", "--out", name)
    assert (desk.folder / "t.csv").read_bytes().splitlines()[1].startswith(b"photos/caf\xe9.png,")
    rows = list(csv.DictReader(io.StringIO((desk.folder / "t.csv").read_bytes().decode("latin1"), newline="")))
    assert rows[1]["file"] == "photos/two\nlines, and a comma.png"
    lines = [json.loads(line)["file"] for line in (desk.folder / "t.jsonl").read_text().splitlines()]
    table = pyarrow.parquet.read_table(desk.folder / "t.parquet").column("file").to_pylist()
    assert lines == table == ["photos/caf\N{REPLACEMENT CHARACTER}.png", "photos/two\nlines, and a comma.png"]


def test_links_in_a_circle_and_hidden_files(desk, run, photos):
    (photos / "round").symlink_to(photos)
    (photos / ".hidden.png").write_bytes(b"")
    assert len(rows_of(desk.run("predict", "run", "photos")[0])) == 7
    assert len(rows_of(desk.run("predict", "run", "photos/**/0*.png")[0])) >= 7


def test_from_python(desk, run, photos):
    done = longtail.predict(run, str(photos), out=desk.folder / "t.csv", prior="uniform", quiet=True)
    assert (done.images, done.unreadable, done.out) == (7, 0, desk.folder / "t.csv")
    assert done.prior == pytest.approx(dict.fromkeys(NAMES, 1 / 3))
    assert longtail.predict(run, [photos], out=desk.folder / "u.csv", quiet=True).prior is None
