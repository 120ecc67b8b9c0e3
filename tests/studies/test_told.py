"""What a study tells: figures against scipy, text that stays text, the page's promises, and the command line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tiny_studies import bars

import longtail
from longtail.cli import main
from longtail.errors import UserError
from longtail.files import read_json
from longtail.metrics import MeanInterval
from longtail.options import OPTION_NAMES
from longtail.reporting.compared_runs import FIGURES
from longtail.studies import results
from longtail.studies.catalog import STUDIES
from longtail.studies.charts import Line, line_figure
from longtail.studies.published import published_figures
from longtail.studies.tables import percent_cell

SHORT = "--epochs 1 --device cpu --batch_size 8 --queue.projection_dim 8 --checkpoint.every_seconds 0 --quiet".split()


def test_means_intervals_and_paired_differences_against_scipy(run):
    record = run("methods", methods=["cross_entropy", "gml"], seeds=3).results
    assert record == read_json(Path("study/results.json"))
    by_row = {}
    for entry in record["runs"]:
        evaluation = read_json(Path("study", entry["run"], "evaluation.json"))
        assert entry["figures"]["balanced_accuracy"] == evaluation["balanced_accuracy"]
        assert entry["figures"]["few"] == evaluation["groups"]["few"]["accuracy"]
        by_row.setdefault(entry["row"], []).append(entry["figures"])
    rows = {row["name"]: row for row in record["panels"][0]["rows"]}
    for name in FIGURES:
        one, other = (np.array([figures[name] for figures in by_row[row]], float) for row in ("gml", "cross_entropy"))
        for values, told in ((one, rows["gml"]["figures"][name]), (one - other, rows["gml"]["differences"][name])):
            if np.isnan(values).any():
                assert told is None
                continue
            half = stats.t.ppf(0.975, 2) * values.std(ddof=1) / np.sqrt(3)
            expected = [values.mean(), values.mean() - half, values.mean() + half]
            assert [told["mean"], told["low"], told["high"]] == pytest.approx(expected, abs=1e-12)
    assert rows["cross_entropy"]["against"] == ""
    turned = run("methods", methods=["cross_entropy", "gml"], seeds=3, against="gml").results["panels"][0]["rows"]
    assert [row["against"] for row in turned] == ["gml", ""]
    back, forth = turned[0]["differences"]["balanced_accuracy"], rows["gml"]["differences"]["balanced_accuracy"]
    assert back["mean"] == pytest.approx(-forth["mean"])
    with pytest.raises(UserError, match=r"unknown row 'gmll'; did you mean 'gml'"):
        run("methods", methods=["cross_entropy", "gml"], seeds=3, against="gmll")
    assert rows["gml"]["seconds"] > 0
    assert record["hardware"]
    assert record["versions"][0]["longtail"] == longtail.__version__
    assert record["protocol"]["epochs"] == 1


@pytest.mark.parametrize(
    ("value", "more", "text"),
    [
        (None, {}, "-"),
        (MeanInterval(0.5, None, None), {}, "50.0"),
        (MeanInterval(0.5, 0.48, 0.52), {}, "50.0 ± 2.0"),
        (MeanInterval(0.031, 0.01, 0.052), {"sign": True}, "+3.1 ± 2.1"),
        (MeanInterval(-0.0001, None, None), {"sign": True}, "0.0"),
        (MeanInterval(1.234, 1.0, 1.468), {"bits": True}, "1.23 ± 0.23"),
    ],
)
def test_a_cell_of_a_table(value, more, text):
    cell = percent_cell(value, **more)
    assert cell.text == text
    assert (cell.value is None) == (value is None)


def test_published_figures_stand_beside_their_rows(run, monkeypatch):
    monkeypatch.setattr(results, "published_figures", lambda data, imbalance: published_figures("cifar100-lt", 100))
    monkeypatch.setattr("longtail.studies.cells.published_set", lambda *sizes: ("cifar100-lt", 100))
    record = run("methods", methods=["cross_entropy", "gml"]).results
    panel = record["panels"][0]
    assert [p["top1_percent"] for p in panel["rows"][1]["published"]] == [[53.0], [54.0], [53.12]]
    assert "TCL" in {p["method"] for p in panel["published_without_a_row"]}
    text = Path("study/study.md").read_text()
    assert "53.0 (200 epochs, Suh & Seo, ICML 2023)".replace("&", "&amp;") in text
    assert "44.6 (200 epochs, independent re-run, DBM, AAAI 2025)" in text
    assert re.search(r"TCL +\| +58\.7 \| +ResNet-32 \| +- \| +reported for TCL", text)


def test_names_stay_text_and_the_page_asks_nobody(run):
    evil = Path("<img src=x onerror=hacked()>.npz")
    np.savez(evil, **bars())
    run("temperature", data=str(evil))
    for file in ("study.md", "study.html"):
        text = Path("study", file).read_text()
        assert "<img" not in text, file
        assert "img src=x" in text
    page = Path("study/study.html").read_text()
    assert "Content-Security-Policy" in page
    assert "default-src 'none'" in page
    assert not re.search(r"<[^>]+\s(src|srcset|action|onclick)=", page)
    assert page.count("<script>") == 1
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert page.count('class="compared sorts"') == page.count("<caption") == page.count('<h2 id="title-')
    values = [float(value) for value in re.findall(r'data-value="([^"]+)"', page)]
    assert len(values) > 20
    svg = page[page.index("<svg") : page.index("</svg>")]
    assert svg.count("<polyline") == 8  # a line a row
    assert "<title" in svg
    assert "<desc" in svg
    assert "nan" not in svg


def test_additions_say_what_the_runs_hold(run):
    added = run("temperature", seeds=2, epochs=2).results["added"]
    row = added["bars"]["learned from 0.5"]
    logs = [Path(p).read_text().splitlines() for p in sorted(Path("study/cells").glob("*from-0.5*/metrics.jsonl"))]
    told = [[json.loads(line) for line in log if '"student"' in line] for log in logs]
    expected = [np.mean([log[epoch]["temperature"] for log in told]) for epoch in range(2)]
    assert row["mean"] == pytest.approx(expected)
    assert row["epochs"] == [1, 2]
    fixed = added["bars"]["fixed at 0.2"]["mean"]
    assert fixed == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize(
    ("name", "more", "head"),
    [
        ("imbalance", {"methods": ["cross_entropy", "gml"]}, "Balanced accuracy at imbalance 100 minus that at 1"),
        ("queue", {"epochs": 1}, "balanced accuracy by capacity and minimum"),
        ("prior", {"methods": ["cross_entropy", "gml"]}, "accuracy by test set, full test set, weighted"),
        ("teachers", {}, "teacher and student"),
    ],
)
def test_every_other_addition_is_told(run, name, more, head, monkeypatch):
    if name == "teachers":
        small = lambda base: [row for row in rows(base) if "resnet20" in row.name]  # noqa: E731
        rows = STUDIES[name].rows
        monkeypatch.setitem(STUDIES, name, STUDIES[name].__class__(**{**vars(STUDIES[name]), "rows": small}))
    result = run(name, **more)
    assert result.exit_code == 0, result.results
    text = Path("study/study.md").read_text()
    assert head in text
    assert head in Path("study/study.html").read_text()
    if name == "teachers":
        [run_] = result.results["runs"]
        evaluation = read_json(Path("study", run_["run"], "teacher", "evaluation.json"))
        told = result.results["added"]["bars"]["teacher cifar_resnet20"]["teacher"]["mean"]
        assert told == pytest.approx(evaluation["balanced_accuracy"])
    if name == "prior":
        uniform = result.results["added"]["bars"]["gml"]["uniform"]["exact"]["unknown"]["mean"]
        [top1] = [r["figures"]["top1"] for r in result.results["runs"] if r["row"] == "gml"]
        assert uniform == pytest.approx(top1)


def test_a_chart_of_one_point_and_of_none():
    assert line_figure("a", "t", "c", [Line("x", ())], x_title="", as_percent=True) is None
    one = line_figure("a", "t", "c", [Line("x", ((3.0, MeanInterval(0.5, -0.2, 1.2)),))], x_title="", as_percent=True)
    assert one is not None
    assert "nan" not in one.svg


# --- The command line


def test_the_list_of_studies(desk):
    out, err = desk.run("study")
    listed = [line.split()[0] for line in out.splitlines() if line and not line.startswith("longtail ")]
    assert listed == list(STUDIES)
    assert err == ""
    out, _ = desk.run("study", "--help")
    assert out.startswith("usage: longtail study [NAME]")
    for option in ("--data", "--methods", "--seeds", "--jobs", "--recipe", "--out", "--code", "--..."):
        assert f"\n  {option} " in out


@pytest.mark.parametrize(
    ("words", "naming"),
    [
        ("method", ["unknown study 'method'", "'methods'"]),
        ("clop", ["unknown study 'clop'"]),
        ("methods --seeds 0", ["--seeds must be 1 or more"]),
        ("methods --jobs two", ["--jobs must be a whole number"]),
        ("methods --methods gmll", ["unknown method 'gmll'", "'gml'"]),
        ("methods --methods", ["--methods needs a value"]),
        ("methods --epoch 3", ["unknown option --epoch", "--epochs"]),
        ("methods --epochs three", ["--epochs must be a whole number"]),
        ("methods --recipe demmo", ["unknown recipe 'demmo'"]),
        ("methods --code kep", ["unknown --code 'kep'", "'keep'"]),
        ("methods --data digit-lt", ["digit-lt"]),
        ("methods --seed 3", ["--seed", "--seeds"]),
        ("switches --methods gml", ["--methods"]),
        ("methods one too", ["one word too many"]),
        ("imagenet-lt --root nowhere", ["ImageNet-LT", "nowhere"]),
    ],
)
def test_mistakes_in_the_words(desk, words, naming):
    desk.refuse("study", *words.split(), naming=naming)


def test_from_the_command_line_with_several_methods(desk, one_thread):
    np.savez("bars.npz", **bars())
    words = ["study", "methods", "--data", "bars.npz", "--seeds", "1", *SHORT[:-1], "--methods"]
    out, err = desk.run(*words, "cross_entropy", "gml", "--out", "s")
    assert "bars: cross_entropy, seed 0: done" in out
    assert re.search(r"gml, seed 0: done \(0:0\d\); 2 of 2\n", out)
    assert err == ""
    out, _ = desk.run(*words, "cross_entropy,gml", "--out", "s")
    assert "done (" not in out
    assert out.endswith("study: s/study.html\n")
    code, out, err = desk.call(
        "study", "queue", "--data", "bars.npz", "--seeds", "1", *SHORT, "--queue.projection_dim", "0"
    )
    assert code == 2
    assert "--queue.projection_dim must be above 0" in err


def test_a_failing_cell_is_exit_code_1(desk, one_thread, monkeypatch):
    np.savez("bars.npz", **bars())
    monkeypatch.setattr("longtail.studies.worker.api.train", lambda **options: 1 / 0)
    code, _, err = desk.call("study", "methods", "--data", "bars.npz", "--methods", "gml", "--seeds", "1", *SHORT)
    assert (code, err) == (1, "")
    assert read_json(Path("runs/study-methods-bars/results.json"))["failed"] == 1


def test_options_of_a_study_hide_none_of_training_that_cells_take():
    own = {"data", "methods", "seeds", "jobs", "recipe", "out", "code", "quiet"}
    assert own & set(OPTION_NAMES) == {"data", "out"}
    assert main(["study", "--help"]) == 0
