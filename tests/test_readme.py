"""Every command and code block of the README, run as it stands (`make check`)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def commands():
    lines = re.findall(r"^    (longtail [^#\n]+)", README, re.MULTILINE)
    return [line.strip() for line in lines]


def run(words, folder):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the images.npz that the README speaks of: three classes of bars, 20/6/2 images."""
    path, generator = tmp_path_factory.mktemp("readme"), np.random.default_rng(0)

    def made(counts):
        labels = np.repeat(np.arange(3), counts)
        images = generator.integers(0, 120, (len(labels), 12, 12), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[:, 3 * label : 3 * label + 3] += 100
        return images, labels

    train_images, train_labels = made([20, 6, 2])
    test_images, test_labels = made([5, 5, 5])
    np.savez(
        path / "images.npz",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
    )
    return path


def test_the_readme_has_commands_and_blocks():
    assert len(commands()) >= 6
    assert README.count("```python") >= 2


@pytest.mark.check
def test_commands_in_order(folder):
    for line in commands():
        run(line.split(), folder)
    assert (folder / "runs" / "mine" / "report.html").exists()


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
