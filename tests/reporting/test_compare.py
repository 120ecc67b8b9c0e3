"""Runs side by side: grouped by seed, paired where they can be, and not compared where they cannot."""

import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

from longtail.config import TrainConfig, replace_options
from longtail.errors import UserError
from longtail.files import load_tensors, save_tensors
from longtail.reporting.compare import as_markdown, compare
from longtail.reporting.compared_runs import find_runs, group_by_seed
from longtail.training import evaluation
from longtail.training.evaluation import summarise, write_evaluation

COUNTS = [150, 60, 30, 10, 4]
TESTS = [40, 40, 40, 20, 20]
NAMES = ["cat", "dog", "lynx", "otter", "<b>seal</b>"]
EVIL = "<script>alert(1)</script>"
SKILLS = {"cross_entropy": 1.0, "gml": 2.0}


def make_run(
    folder, method="gml", seed=0, skill=1.0, predictions=False, counts=None, tests=None, edges=(100, 20), **kw
):
    """Write a finished run whose logits are better the higher ``skill``; one seed and skill, one set of images."""
    counts, tests = counts or COUNTS, tests or TESTS
    folder.mkdir(parents=True)
    config = replace_options(
        TrainConfig(data="digits-lt", method=method, seed=seed, out=str(folder)), {"group_edges": list(edges), **kw}
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(tests))
    generator = torch.Generator().manual_seed(100 * seed + len(method))
    logits = torch.randn(len(labels), len(counts), generator=generator)
    logits[torch.arange(len(labels)), labels] += skill
    prior = torch.full((len(counts),), 1 / len(counts))
    evaluated = summarise(logits, labels, torch.tensor(counts), prior, NAMES[: len(counts)], edges)
    write_evaluation(folder, replace(evaluated, files=[f"test/{k}.png" for k in range(len(labels))]))
    for file in [] if predictions else folder.glob("predictions.*"):
        file.unlink()
    lines = [{"stage": "teacher", "epoch": 1, "classifier": 9.0}]
    lines += [
        {"stage": "student", "epoch": e, "classifier": 3.0 / e, "test_balanced_accuracy": 0.2 * e} for e in (1, 2)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def seeds(desk):
    """Three seeds of two methods."""
    for seed in range(3):
        make_run(Path(f"runs/gml-seed{seed}"), "gml", seed, 1.5 + 0.1 * seed)
        make_run(Path(f"runs/ce-seed{seed}"), "cross_entropy", seed, 0.8 - 0.1 * seed)
    return desk


def figures(folder):
    return json.loads((Path(folder) / "evaluation.json").read_text())


def test_seeds_are_one_row_with_scipys_intervals(seeds):
    found = compare(["runs/ce-*", "runs/gml-*"], quiet=True)
    assert [(row.name, row.seeds, row.kind) for row in found.rows] == [
        ("ce", (0, 1, 2), "seeds"),
        ("gml", (0, 1, 2), "seeds"),
    ]
    for name, row in zip(("ce", "gml"), found.rows, strict=True):
        values = [figures(f"runs/{name}-seed{s}")["balanced_accuracy"] for s in range(3)]
        low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
        cell = row.figures["balanced_accuracy"]
        assert (cell.mean, cell.low, cell.high) == pytest.approx((np.mean(values), low, high))
    (difference,) = found.differences
    assert (found.baseline, difference.name, difference.kind) == ("ce", "gml", "seeds")
    for key in ("top1", "ece"):
        pairs = [[figures(f"runs/{m}-seed{s}")[key] for s in range(3)] for m in ("gml", "ce")]
        test = stats.ttest_rel(*pairs).confidence_interval()
        cell = difference.figures[key]
        assert (cell.low, cell.high) == pytest.approx((test.low, test.high))
    assert found.options == {"method": ["cross_entropy", "gml"]}


def test_the_baseline_is_a_name_or_a_run(seeds):
    for word in ("gml", "runs/gml-seed1", str(Path("runs/gml-seed2").resolve())):
        found = compare(["runs/*"], baseline=word, quiet=True)
        assert (found.baseline, [row.name for row in found.differences]) == ("gml", ["ce"])
    seeds.refuse("compare", "runs/*", "--baseline", "gmk", naming=["gmk", "ce", "gml"])


def test_only_shared_seeds_are_paired(seeds):
    compared = compare(["runs/ce-seed[12]", "runs/gml-seed[02]"], quiet=True)
    (difference,) = compared.differences
    assert difference.seeds == (2,)
    assert "only seed 2 is in both" in difference.note
    expected = figures("runs/gml-seed2")["top1"] - figures("runs/ce-seed2")["top1"]
    assert difference.figures["top1"] == (pytest.approx(expected), None, None)
    (none,) = compare(["runs/ce-seed[01]", "runs/gml-seed2"], quiet=True).differences
    assert "no seed that both have" in none.note
    assert set(none.figures.values()) == {None}


def test_single_runs_are_paired_by_image_if_both_have_predictions(desk):
    one, other = make_run(Path("a"), "gml", 0, 2.0, True), make_run(Path("b"), "cross_entropy", 1, 1.0, True)
    (difference,) = compare([other, one], quiet=True).differences
    assert difference.kind == "images"
    cell = difference.figures["balanced_accuracy"]
    assert cell.mean == pytest.approx(figures(one)["balanced_accuracy"] - figures(other)["balanced_accuracy"])
    assert cell.low < cell.mean < cell.high
    assert difference.figures["worst_class"].low is None
    out, _ = desk.run("compare", "b", "a")
    assert "resampled within each class" in out
    (other / "predictions.json").unlink()
    (difference,) = compare([other, one], quiet=True).differences
    assert difference.kind == "none"
    assert "longtail evaluate writes it" in difference.note
    assert difference.figures["balanced_accuracy"] == (pytest.approx(cell.mean), None, None)


def test_pairing_by_image_needs_no_logits(desk, monkeypatch):
    def difference(where):
        runs = [make_run(Path(f"{where}/{m}"), m, 0, skill, True) for m, skill in SKILLS.items()]
        (row,) = compare(runs, quiet=True).differences
        return row

    kept = difference("kept")
    monkeypatch.setattr(evaluation, "MOST_BYTES", 0)
    assert difference("large") == kept
    assert kept.kind == "images"
    assert set(load_tensors(Path("large/gml"), "predictions")[0]) == {"predicted", "labels"}


def test_predictions_of_older_runs_are_logits_alone(desk):
    runs = [make_run(Path(m), m, 0, skill, True) for m, skill in SKILLS.items()]
    (new,) = compare(runs, quiet=True).differences
    for run in runs:
        tensors, meta = load_tensors(run, "predictions")
        del tensors["predicted"]
        save_tensors(run, "predictions", tensors, meta)
    assert compare(runs, quiet=True).differences == (new,)


@pytest.mark.parametrize(
    ("numbers", "pattern", "name"),
    [
        ((0, 1), "cifar100-lt-gml-seed{}", "cifar100-lt-gml"),
        ((0, 1), "gml-e20-seed{}", "gml-e20"),
        ((1, 2), "exp1-seed{}", "exp1"),
        ((1, 2), "exp1seed{}-long", "exp1-long"),
        ((1, 2), "seed{}_gml", "gml"),
        ((0, 1), "runs-0-gml-{}", "runs-0-gml"),
        ((0, 1), "gml.{}.late", "gml.late"),
        ((0, 1), "cifar10{}", "cifar100"),
        ((1, 2), "{}", "1"),
    ],
)
def test_a_groups_name_loses_the_seed_and_no_other_digit(desk, numbers, pattern, name):
    runs = [make_run(Path(pattern.format(seed)), seed=seed) for seed in numbers]
    (group,) = group_by_seed(find_runs([str(run) for run in runs])[0])
    assert group.name == name


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tests": [40, 40, 40, 20, 19]}, "other test images"),
        ({"counts": COUNTS[:4], "tests": TESTS[:4]}, "other classes (5 and 4)"),
        ({"data": "elsewhere"}, "data differs"),
        ({"source.split_seed": 7}, "source.split_seed differs"),
    ],
)
def test_other_test_images_are_not_compared(desk, change, why):
    make_run(Path("a"))
    make_run(Path("b"), "cross_entropy", **change)
    (difference,) = compare(["a", "b"], quiet=True).differences
    assert why in difference.note
    assert set(difference.figures.values()) == {None}
    assert why in desk.run("compare", "a", "b")[0]


def test_files_tell_test_sets_of_one_size_apart(desk):
    one, other = make_run(Path("a"), predictions=True), make_run(Path("b"), "cross_entropy", predictions=True)
    tensors = {"logits": torch.zeros(sum(TESTS), 5), "labels": torch.arange(5).repeat_interleave(torch.tensor(TESTS))}
    save_tensors(other, "predictions", tensors, {"files": [f"other/{k}.png" for k in range(sum(TESTS))]})
    (difference,) = compare([one, other], quiet=True).differences
    assert "files differ" in difference.note


def test_groups_of_other_edges_have_no_difference(desk):
    make_run(Path("a"))
    make_run(Path("b"), edges=(50, 5))
    (difference,) = compare(["a", "b"], quiet=True).differences
    assert "hold other classes" in difference.note
    assert [difference.figures[name] for name in ("many", "medium", "few")] == [None] * 3
    assert difference.figures["top1"].mean == 0


def test_markdown_and_json_hold_the_same_and_stay_text(desk):
    make_run(Path("a"))
    make_run(Path(f"{EVIL.replace('/', '')} |x"), "cross_entropy", skill=0.2)
    desk.run("compare", "a", f"{EVIL.replace('/', '')} |x", "--out", "c.md")
    desk.run("compare", "a", f"{EVIL.replace('/', '')} |x", "--out", "c.json")
    text, record = Path("c.md").read_text(), json.loads(Path("c.json").read_text())
    assert "<script>" not in text
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    assert set(widths[:4]) == {11}
    shown = 100 * record["groups"][0]["figures"]["top1"]["mean"]
    assert f"| {shown:.1f} " in text
    assert record["groups"][0]["runs"] == ["a"]
    assert record["baseline"] == "a"


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_fetches_nothing_and_runs_nothing(desk):
    make_run(Path("a"))
    make_run(Path(EVIL.replace("/", "")), "cross_entropy", skill=0.2)
    desk.run("compare", "a", EVIL.replace("/", ""), "--out", "c.html")
    text = Path("c.html").read_text()
    page = Page(text)
    assert page.open == []
    assert "script" not in [tag for tag, _ in page.tags]
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "script-src" not in policy
    for _, attrs in page.tags:
        assert not {"src", "srcset", "action", "onclick", "onload"} & attrs.keys()
        assert attrs.get("href", "data:,") == "data:,"
    lines = [a for tag, a in page.tags if tag == "polyline"]
    assert len(lines) == 4  # two figures of two runs; the teacher's stage is another's
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_the_terminal_table_is_whole_in_a_pipe(seeds):
    out, _ = seeds.run("compare", "runs/*")
    assert re.search(r"gml +3 +\d+\.\d ± \d+\.\d", out)
    assert "Difference to ce" in out
    assert re.search(r"method +cross_entropy +gml", out)
    assert seeds.run("compare", "runs/*", "--quiet") == ("", "")


def test_a_run_named_twice_counts_once(seeds):
    runs, _ = find_runs(["runs/gml-seed0", "runs/gml-*", "runs/../runs/gml-seed0"])
    assert len(runs) == 3


def test_runs_of_the_same_options_and_seed_are_refused(desk):
    make_run(Path("a"))
    make_run(Path("b"))
    desk.refuse("compare", "a", "b", naming=["a and b", "same seed"])


def test_of_equal_runs_that_a_glob_finds_one_is_left_out(desk):
    for name in ("a1", "a2"):
        make_run(Path(name))
    make_run(Path("b"), "cross_entropy")
    out, _ = desk.run("compare", "a*", "b")
    assert "left out: a2 has the same options and the same seed as a1." in out
    desk.refuse("compare", "a1", "a2", "b", naming=["a1 and a2", "leave one of them out"])


def test_names_that_clash_become_paths(desk):
    runs = [make_run(Path(f"{where}/run"), method) for where, method in (("x", "gml"), ("y", "cross_entropy"))]
    groups = group_by_seed(find_runs([str(run) for run in runs])[0])
    assert [group.name for group in groups] == ["x/run", "y/run"]


def test_bad_input_is_refused(desk):
    make_run(Path("a"))
    make_run(Path("b"), "cross_entropy")
    desk.refuse("compare", naming=["RUNS", "usage"])
    desk.refuse("compare", "a", naming=["two or more"])
    desk.refuse("compare", "a", "nowhere", naming=["nowhere", "no such folder"])
    desk.refuse("compare", "nothing-*", naming=["nothing-*", "no finished run"])
    Path("empty").mkdir()
    desk.refuse("compare", "a", "empty", naming=["empty", "config.yaml"])
    Path("b/evaluation.json").rename("b/kept")
    desk.refuse("compare", "a", "b", naming=["b is not finished", "--resume"])
    Path("b/kept").rename("b/evaluation.json")
    desk.refuse("compare", "a", "b", "--out", "c.txt", naming=["c.txt", ".md"])
    Path("c.md").write_text("mine")
    desk.refuse("compare", "a", "b", "--out", "c.md", naming=["c.md", "--overwrite"])
    desk.run("compare", "a", "b", "--out", "c.md", "--overwrite")
    assert "mine" not in Path("c.md").read_text()
    Path("a/evaluation.json").write_text("{")
    desk.refuse("compare", "a", "b", naming=["a/evaluation.json"])


def test_a_glob_leaves_out_what_is_no_finished_run_and_says_so(seeds):
    Path("runs/gml-seed1/evaluation.json").unlink()
    Path("runs/notes").mkdir()
    Path("runs/file.txt").write_text("")
    out, _ = seeds.run("compare", "runs/*")
    assert "left out: runs/gml-seed1" in out
    assert "left out: runs/notes" in out
    assert "file.txt" not in out


def test_names_are_escaped_in_markdown(desk):
    make_run(Path("a_b*c"))
    make_run(Path("d"), "cross_entropy")
    text = as_markdown(compare(["a_b*c", "d"], quiet=True))
    assert r"a\_b\*c" in text


def test_the_error_is_a_user_error_in_python_too():
    with pytest.raises(UserError):
        compare(["nowhere"])


def test_two_seeds_are_said_to_say_little(seeds):
    for ending in ("md", "html"):
        out, _ = seeds.run("compare", "runs/ce-*", "runs/gml-*", "--out", f"three.{ending}")
        assert "says little" not in out + Path(f"three.{ending}").read_text()
        out, _ = seeds.run("compare", "runs/ce-seed[01]", "runs/gml-*", "--out", f"two.{ending}")
        words = " ".join(f"{out} {Path(f'two.{ending}').read_text()}".split())
        # Below the figures (ce has two seeds) and below the differences (two are shared), here and in the file.
        assert words.count("2 seeds: the interval says little") == 4
        assert f"{stats.t.ppf(0.975, 1):.1f} standard errors" in words
        assert f"{stats.t.ppf(0.975, 2):.1f} with three seeds, {stats.t.ppf(0.975, 4):.1f} with five" in words


def test_bits_below_zero_are_explained(desk):
    good, bad = make_run(Path("a"), "gml", 0, 3.0), make_run(Path("b"), "cross_entropy", 0, -2.0)
    assert figures(bad)["mutual_information_bits"] < 0 < figures(good)["mutual_information_bits"]
    assert "below 0" in desk.run("compare", "a", "b")[0]
    make_run(Path("c"), "cross_entropy", 1, 2.5)
    assert "below 0" not in desk.run("compare", "a", "c")[0]


def test_options_that_a_method_does_not_read_do_not_differ(desk):
    make_run(Path("ce"), "cross_entropy", **{"queue.capacity": 8, "loss.temperature": 0.3, "loss.scale": 9.0})
    make_run(Path("la"), "logit_adjustment", **{"queue.capacity": 9, "loss.scale": 16.0, "teacher.epochs": 3})
    make_run(Path("gml"), "gml", **{"queue.capacity": 512, "loss.scale": 20.0})
    found = compare(["ce", "la", "gml"], quiet=True)
    assert found.options == {
        "method": ["cross_entropy", "logit_adjustment", "gml"],
        "loss.scale": ["not read", 16.0, 20.0],
    }
    # Runs of one method that differ in what it does not read are seeds of one another.
    make_run(Path("ce1"), "cross_entropy", 1, **{"queue.capacity": 4})
    (row,) = [row for row in compare(["ce", "ce1", "gml"], quiet=True).rows if len(row.seeds) == 2]
    assert row.seeds == (0, 1)
