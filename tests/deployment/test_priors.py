"""Priors from a table: every row counts, in any order, and what is no prior is refused with its line."""

import pytest
import torch

from longtail.data import ImageSet
from longtail.deployment.priors import find_prior, read_prior
from longtail.errors import UserError
from longtail.models import build_classifier

NAMES = ("cat", "lynx", "otter, sea")


def write(folder, text):
    file = folder / "prior.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_weights_of_any_unit_in_any_order(tmp_path):
    file = write(tmp_path, 'prior,class\n5,"otter, sea"\n60,cat\n\n35,lynx\n')
    assert read_prior(file, NAMES).tolist() == pytest.approx([0.6, 0.35, 0.05])
    assert read_prior(str(file), NAMES).dtype == torch.float64


def test_names_that_differ_in_blanks_alone_are_told(tmp_path):
    with pytest.raises(UserError, match=r"classes 'a' and ' a ' differ in outer blanks"):
        read_prior(write(tmp_path, "class,prior\na,1\n a ,2\n"), ("a", " a "))


def test_semicolons_mark_and_class_that_never_occurs(tmp_path):
    file = write(tmp_path, "\ufeffclass;prior;note\notter, sea;0;\ncat;1e-1;x\nlynx; 0.3 ;\n")
    assert read_prior(file, NAMES).tolist() == pytest.approx([0.25, 0.75, 0.0])


@pytest.mark.parametrize(
    ("text", "naming"),
    [
        ("class,prior\ncat,1\nlynx,1\n", ["otter, sea"]),
        ("class,prior\ncat,1\n", ["lynx", "1 other class"]),
        ('class,prior\ncat,1\nlynx,1\n"otter, sea",1\ndog,1\n', ["line 5", "dog"]),
        ("class,prior\ncat,1\nlynks,1\n", ["line 3", "lynks", "did you mean 'lynx'"]),
        ("class,prior\ncat,1\ncat,2\n", ["line 3", "cat", "second time"]),
        ("class,prior\ncat,-1\n", ["line 2", "cat", "-1"]),
        ("class,prior\ncat,nan\n", ["line 2", "nan"]),
        ("class,prior\ncat,inf\n", ["inf"]),
        ("class,prior\ncat,many\n", ["many"]),
        ("class,prior\ncat,\n", ["''"]),
        ('class,prior\ncat,0\nlynx,0\n"otter, sea",0\n', ["every class has prior 0"]),
        ("name,prior\ncat,1\n", ["'class'", "name, prior"]),
        ("class,share\ncat,1\n", ["'prior'"]),
        ("class,prior\n", ["no rows"]),
        ("", ["empty"]),
    ],
)
def test_what_is_no_prior_is_refused(tmp_path, text, naming):
    with pytest.raises(UserError) as error:
        read_prior(write(tmp_path, text), NAMES)
    assert "prior.csv" in str(error.value)
    for part in naming:
        assert part in str(error.value)


def test_missing_file_and_many_classes(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_prior(tmp_path / "none.csv", NAMES)
    with pytest.raises(UserError, match="unknown class 'dog'") as error:
        read_prior(write(tmp_path, "class,prior\ndog,1\n"), [str(k) for k in range(8142)])
    assert len(str(error.value)) < 300


@pytest.fixture
def classifier():
    images = ImageSet(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), NAMES)
    spec = {"encoder": "small_net", "in_channels": 1, "head": "cosine", "scale": 30.0}
    counts = torch.tensor([60, 30, 10])
    return build_classifier(spec, NAMES, counts, torch.ones(3), [0.5], [0.5], images.framing)


def test_prior_by_word_or_file(tmp_path, classifier):
    assert find_prior("uniform", classifier).tolist() == pytest.approx([1 / 3] * 3)
    assert find_prior("train", classifier).tolist() == pytest.approx([0.6, 0.3, 0.1])
    file = write(tmp_path, 'class,prior\ncat,1\nlynx,1\n"otter, sea",2\n')
    assert find_prior(str(file), classifier).tolist() == pytest.approx([0.25, 0.25, 0.5])
    with pytest.raises(UserError, match="did you mean 'uniform'"):
        find_prior("unifrom", classifier)
    with pytest.raises(UserError, match="no such file"):
        find_prior("nowhere.csv", classifier)


def test_the_shift_is_the_log_ratio_of_priors(classifier):
    shift = classifier.prior_shift(torch.tensor([0.6, 0.4, 0.0]))
    assert shift[:2].exp().tolist() == pytest.approx([1.8, 1.2])
    assert shift[2] == -torch.inf
