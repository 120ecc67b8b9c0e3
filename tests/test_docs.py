"""Every command and code block of README and docs, run as it stands (`make check`)."""

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


def commands(page):
    lines = re.findall(r"^    (longtail [^#\n]+)", PAGES[page], re.MULTILINE)
    return [line.strip() for line in lines]


def run(words, folder):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "LONGTAIL_CACHE": str(folder / "cache")}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
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
    for part in splits:
        lines = [f"{row['path']} {CLASSES.index(row['label'])}\n" for row in rows if row["split"] == part]
        (path / f"{part}.txt").write_text("".join(lines))
    return path


NPZ = ((0, "images"), (1, "labels"))
CLASSES = ("cat", "lynx", "otter")


def write_parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_the_readme_has_commands_and_blocks():
    assert len(commands("README.md")) >= 6
    assert len(commands("your-images.md")) >= 12
    assert README.count("```python") >= 2


@pytest.mark.check
@pytest.mark.parametrize("page", PAGES)
def test_commands_in_order(page, folder):
    for line in commands(page):
        words = shlex.split(line)
        run(words, folder)
        if words[1] == "train" and "--out" in words:
            assert (folder / words[words.index("--out") + 1] / "report.html").exists(), line


@pytest.mark.check
def test_python_from_the_readme(folder):
    block = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    script = (
        "import torch\nimages = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)\n" + block + "\nprint(probabilities.shape)"
    )
    assert "torch.Size([2, 10])" in run([sys.executable, "-c", script], folder)


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
