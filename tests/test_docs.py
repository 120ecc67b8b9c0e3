"""Every command and code block of README and docs, run as it stands; pictures, figures and reference of the docs.

`make check` runs all pages, each in a folder of its own; `make test` those of `BRIEF`, in this process.
"""

import csv
import importlib.util
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import longtail
import longtail.segmentation
from longtail.cli import main
from longtail.methods import METHODS
from tar_files import pack

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]}
BRIEF = ("embeddings.md", "pretrained.md", "priors.md", "progress.md", "report.md")
"""Pages whose commands take a few seconds together."""
TRAINED = "runs/photos"
"""The run that pages speak of without training it."""
NPZ = ((0, "images"), (1, "labels"))
CLASSES = ("cat", "lynx", "otter")


def commands(page):
    lines = re.findall(r"^    ((?:longtail|python docs/) ?[^#\n]+)", PAGES[page], re.MULTILINE)
    return [line.strip() for line in lines]


def python_blocks(page):
    blocks = re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)
    return blocks[:1] if page == "README.md" else blocks  # its second is a sketch of the example


def run(words, folder):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "LONGTAIL_CACHE": str(folder / "cache")}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with all that the pages speak of: bars of three classes, 20/6/3 images, as arrays, files and lists."""
    path, generator = tmp_path_factory.mktemp("docs"), np.random.default_rng(0)

    def made(counts):
        labels = np.repeat(np.arange(3), counts)
        images = generator.integers(0, 120, (len(labels), 24, 24), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[:, 6 * label : 6 * label + 6] += 100
        return images, labels

    splits = {"train": made([20, 6, 3]), "test": made([5, 5, 5])}
    np.savez(path / "images.npz", **{f"{part}_{what}": x[k] for part, x in splits.items() for k, what in NPZ})
    rows = []
    for part, (images, labels) in splits.items():
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = f"{CLASSES[label]}/{part}_site{index % 4}_{index}.png"
            for file in (path / "photos" / name, path / "sorted" / part / name):
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(file)
            rows.append({"path": name, "label": CLASSES[label], "split": part, "group": f"site{part}{index % 4}"})
    with open(path / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"path": f"photos/{row['path']}"} for row in rows)
    write_parquet(path / "labels.parquet", rows)
    held = [{"image": (path / "photos" / row["path"]).read_bytes(), **row} for row in rows]
    write_parquet(path / "photos.parquet", [{k: row[k] for k in ("image", "label", "split")} for row in held])
    for part in splits:
        lines = [f"{row['path']} {CLASSES.index(row['label'])}\n" for row in rows if row["split"] == part]
        (path / f"{part}.txt").write_text("".join(lines))
    pack(path / "sorted" / "train", path / "shards", 2, start="train")
    pack(path / "sorted" / "test", path / "shards", 1, label="json", start="test")
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path / "vit.safetensors")
    write_streets(path / "streets", generator)
    (path / "new").mkdir()
    shutil.copy(path / "photos" / rows[0]["path"], path / "new")
    (path / "docs").symlink_to(DOCS)
    return path


def write_streets(path, generator):
    """Images with masks: a road below, a tree, and in every other image a person."""
    for folder in ("images", "masks"):
        (path / folder).mkdir(parents=True)
    (path / "classes.txt").write_text("sky\nroad\ntree\nperson\n")
    for number in range(10):
        mask = np.zeros((48, 64), np.uint8)
        mask[28:], mask[10:30, 6 * (number % 5) : 6 * (number % 5) + 9] = 1, 2
        if number % 2:
            mask[24:34, 50:54] = 3
        image = mask[..., None] * np.array([40, 55, 30]) + generator.integers(0, 60, (48, 64, 3))
        Image.fromarray(image.astype(np.uint8)).save(path / "images" / f"{number:04d}.png")
        Image.fromarray(mask).save(path / "masks" / f"{number:04d}.png")


def write_parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.fixture
def folder(files, tmp_path, request):
    """A copy of `files` for one page, with a finished run if the page speaks of one without training it."""
    lines = commands(request.getfixturevalue("page"))
    path = tmp_path / "work"
    shutil.copytree(files, path, symlinks=True, ignore=shutil.ignore_patterns("runs"))  # of other pages
    if any(TRAINED in line for line in lines) and not any(f"--out {TRAINED}" in line for line in lines):
        shutil.copytree(request.getfixturevalue("trained"), path / TRAINED)
    return path


@pytest.fixture(scope="module")
def trained(files):
    run(shlex.split(f"longtail train photos --epochs 2 --out {TRAINED}"), files)
    return files / TRAINED


def test_the_pages_have_commands_and_blocks():
    assert len(commands("README.md")) >= 6
    assert len(commands("your-images.md")) >= 12
    assert len(commands("index.md")) >= 4
    assert len(python_blocks("extending.md")) >= 5
    assert README.count("```python") >= 2


@pytest.mark.check
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page) or python_blocks(page)])
def test_the_page_as_it_stands(page, folder):
    for line in commands(page):
        words = shlex.split(line)
        run(words, folder)
        if words[1] == "train" and "--out" in words:
            assert (folder / words[words.index("--out") + 1] / "report.html").exists(), line
    if page != "extending.md" and python_blocks(page):
        images = "import torch\nimages = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)\n" if page == "README.md" else ""
        run([sys.executable, "-c", images + "\n".join(python_blocks(page))], folder)


@pytest.mark.parametrize("page", BRIEF)
def test_a_brief_page_as_it_stands(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for line in commands(page):
        assert main(shlex.split(line)[1:]) == 0, line
    names: dict[str, object] = {}  # blocks of a page follow each other
    for block in python_blocks(page):
        exec(compile(block, page, "exec"), names)


def test_the_loop_snippet_is_what_the_example_does():
    """The second block is a sketch; its calls must be those of the example, which the tests run."""
    example = (ROOT / "examples" / "gml_in_your_loop.py").read_text()
    for call in (
        "GMLLoss(class_counts",
        "ClassQueue(class_counts, capacity=",
        "queue.offsets, ids, queue.ids, queue.filled",
    ):
        assert call in README
        assert call in example


def load(path):
    """Import a file that is no part of the package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_examples_of_a_method_and_a_source(request, monkeypatch, tmp_path):
    """The blocks of the page one after the other, then the tests in them, then a run with the new method."""
    helpers = load(ROOT / "tests" / "methods" / "test_methods.py")
    names = {"build": helpers.build, "loader_for": helpers.loader_for, "__name__": "extending"}
    monkeypatch.setitem(METHODS, "reweighting", None)  # put back afterwards
    for block in python_blocks("extending.md"):
        # Several files shown one after the other: "from __future__" may stand at the head of each.
        exec(compile(block, "extending.md", "exec"), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test(*(request.getfixturevalue(name) for name in inspect.signature(test).parameters))
    result = longtail.train("digits-lt", method="reweighting", epochs=1, out=str(tmp_path / "run"), quiet=True)
    assert result.evaluation["balanced_accuracy"] > 0
    assert result.load().logit_prior.tolist() == pytest.approx([0.1] * 10)


@pytest.fixture(scope="module")
def circle():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "pictures"))
        yield load(DOCS / "pictures" / "circle.py")


@pytest.fixture(scope="module")
def street():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "pictures"))
        yield load(DOCS / "pictures" / "street.py")


def test_the_page_shows_the_pictures_that_the_code_makes(circle, street):
    pictures = {**circle.pictures(), **street.pictures()}
    shown = {name for page in PAGES.values() for name in re.findall(r"!\[[^\]]+\]\(pictures/([\w-]+\.svg)\)", page)}
    assert shown == set(pictures)
    for svg in pictures.values():
        root = ElementTree.fromstring(svg)
        assert {child.tag.rpartition("}")[2] for child in root} >= {"title", "desc"}
        assert "nan" not in svg


def test_the_figures_of_the_page_are_those_that_its_command_prints(circle):
    def rows(text):
        table = re.findall(r"^\| ([\d.]+) \| (-?[\d.]+) \| (-?[\d.]+) \|$", text, re.MULTILINE)
        return [[float(number) for number in row] for row in table]

    printed, page = circle.figures(), " ".join(PAGES["idea.md"].split())
    assert len(rows(printed)) == len(rows(PAGES["idea.md"])) > 4
    for row, told in zip(rows(printed), rows(PAGES["idea.md"]), strict=True):
        assert told == pytest.approx(row, abs=0.011)
    for pattern, sentence in (
        (r"H\(Y\) = ([\d.]+)", "Of these classes it is {} bits"),
        (r"I\(Z; Y\) = ([\d.]+)", "where the truth is known, it is {} bits"),
        (r"one vector a class, .*: ([\d.]+)", "{} with one vector a class"),
        (r"stays: (\d+)", "of the class of 500 stay for {}."),
        (r"(\d+) \(class of 5\)", "its keys still stay for {} steps"),
    ):
        assert sentence.format(re.search(pattern, printed)[1]) in page


def test_the_bits_of_the_circle_by_brute_force(circle):
    """The bound that the page quotes, from histograms of the same draws: no density model, no loss."""
    angles, labels = circle.draw(circle.COUNTS * 4000, seed=3)
    bins = (angles % 360 / 3).long()
    joint = torch.zeros(120, 3, dtype=torch.float64).index_put_((bins, labels), torch.tensor(1.0).double(), True)
    joint /= joint.sum()
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    bits = torch.where(joint > 0, joint * (joint / independent).log2(), 0.0).sum()
    assert circle.true_bits() == pytest.approx(float(bits), abs=0.01)


def test_the_reference_has_every_public_name():
    reference = "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    documented = set(re.findall(r"^::: ([\w.]+)$", reference, re.MULTILINE))
    homes = {f"longtail.{longtail._HOMES[name]}.{name}" for name in longtail.__all__}
    dense = longtail.segmentation
    homes |= {f"longtail.segmentation.{dense._HOMES[name]}.{name}" for name in dense.__all__}
    assert homes <= documented, f"add to docs/reference: {sorted(homes - documented)}"


@pytest.mark.check
def test_the_site_is_built_without_a_warning_and_asks_nobody_for_anything(tmp_path):
    pytest.importorskip("mkdocs", reason="`make docs` installs what builds the site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert "Documentation built" in done.stderr  # with --quiet neither this nor a warning would be there
    pages = {path: path.read_text() for path in (tmp_path / "site").rglob("*.html")}
    assert len(pages) >= len(PAGES) - 1
    for path, html in pages.items():
        asked = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=.?(https?:[^\s\">]+)", html)
        assert asked == [], path
        assert "$$" not in html, path
        assert ":class:<code>" not in html, path
