"""The run report: one page, nothing fetched, nothing unescaped, and the figures of the files it was made from."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
import time
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml

from longtail.config import TrainConfig, replace_options
from longtail.errors import UserError
from longtail.metrics import evaluate_predictions, per_class_table
from longtail.reporting import write_report
from longtail.reporting.svg import Scale, linear_scale, number, percent
from longtail.training.evaluation import write_evaluation

DASH = "\u2013"
EVIL = "<script>alert(1)</script>"
VOID = {"meta", "link", "input", "br", "hr", "img"}
FETCHING = {"src", "srcset", "href", "xlink:href", "data", "action", "formaction", "poster", "background", "ping"}


class Page(HTMLParser):
    """The parsed page: elements, text, scripts, and whether tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append((tag, values))
        if tag == "script":
            self.scripts.append((values, ""))
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif "style" not in self.open:
            self.words.append(data)
            if self.open and ("td" in self.open or "th" in self.open):
                self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [values for name, values in self.tags if name == tag]


def make_run(folder: Path, counts: list[int], tests: list[int], names: list[str], **options: object) -> dict:
    """Write a small run folder (config, evaluation, table of classes) and return its evaluation."""
    folder.mkdir(parents=True, exist_ok=True)
    config = replace_options(TrainConfig(data="digits-lt", method="gml", seed=3), dict(options))
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))
    return write_figures(folder, counts, tests, names, seed=0)


def write_figures(folder: Path, counts: list[int], tests: list[int], names: list[str], seed: int) -> dict:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(tests))
    logits = torch.randn(len(labels), len(counts), generator=torch.Generator().manual_seed(seed))
    logits[torch.arange(len(labels)), labels] += 2.0
    totals = torch.tensor(counts)
    evaluation = evaluate_predictions(logits, labels, totals, torch.full((len(counts),), 1 / len(counts)))
    evaluation["selection"] = "last"
    evaluation["class_names"], evaluation["class_counts"] = names, counts
    evaluation["worst_class_name"] = names[evaluation["worst_class"]["class"]]
    folder.mkdir(exist_ok=True)
    write_evaluation(folder, evaluation, per_class_table(logits, labels, totals, names))
    return json.loads((folder / "evaluation.json").read_text())


COUNTS = [150, 97, 63, 41, 26, 17, 11, 7, 5, 3]
TESTS = [30] * 8 + [9, 0]
NAMES = [f"digit {k}" for k in range(8)] + ["eight & more", EVIL]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_run(tmp_path / "run", COUNTS, TESTS, NAMES)
    return tmp_path / "run"


def write_log(folder: Path, lines: list[dict]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def read(folder: Path) -> Page:
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert page.open == [], f"left open: {page.open}"
    return page


def full(run: Path) -> None:
    """Add every optional file, each with text that would break out if it were not escaped."""
    write_figures(run / "teacher", COUNTS, TESTS, NAMES, seed=1)
    write_log(
        run,
        [
            {"stage": "teacher", "epoch": 1, "step": 9, "lr": 0.1, "steps_taken": 9, "classifier": 2.5, "bits": 0.5},
            {"stage": "student", "epoch": 1, "step": 9, "lr": 0.1, "gml": 1.5, "temperature": 0.07, "test_top1": 0.25},
            {"stage": "student", "skipped_step": 12, "epoch": 2, "why": f"loss {EVIL} is nan"},
            {"stage": "student", "epoch": 2, "step": 18, "lr": 0.05, "gml": 1.25, EVIL: 3.0},
            {"stage": EVIL, "epoch": 1, "lr": 0.5},
        ],
    )
    record = {"versions": {"torch": "2.15.0"}, "hardware": {"processor": EVIL}, "seconds": {"student": 185.0}}
    (run / "environment.json").write_text(json.dumps(record))


def test_page_fetches_nothing_and_runs_only_its_own_script(run: Path) -> None:
    full(run)
    page, source = read(run), (run / "report.html").read_text()
    for tag, values in page.tags:
        for name in FETCHING & set(values):
            if tag == "data":
                continue
            assert values[name].startswith("#") or values[name] == "data:,", (tag, name, values[name])
        assert not [name for name in values if name.startswith("on")], (tag, values)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", source)
    targets = {values["id"] for _, values in page.tags if "id" in values}
    assert {a["href"][1:] for a in page.all("a")} <= targets
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv"))
    (own,) = [text for values, text in page.scripts if values.get("type") != "application/json"]
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_text_is_escaped_everywhere(run: Path) -> None:
    full(run)
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"data": f"a{EVIL}.npz", "method": '"><b>x'}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    page = read(run)
    source = (run / "report.html").read_text()
    assert EVIL not in source
    assert "<b>" not in source
    assert len(page.scripts) == 2
    assert page.text.count(EVIL) >= 6
    data = json.loads(next(text for values, text in page.scripts if values.get("type")))
    assert data["names"] == NAMES


def test_figures_are_those_of_the_json(run: Path) -> None:
    full(run)
    evaluation = json.loads((run / "evaluation.json").read_text())
    teacher = json.loads((run / "teacher" / "evaluation.json").read_text())
    page = read(run)
    exact = [float(values["value"]) for values in page.all("data")]
    for figures in (evaluation, teacher):
        for key in ("top1", "balanced_accuracy", "top5", "harmonic_mean", "macro_f1", "ece", "class_ece"):
            assert figures[key] in exact, key
            assert f"{100 * figures[key]:.1f}\u00a0%" in "".join(page.words), key
        assert all(figures["groups"][group]["accuracy"] in exact for group in ("many", "medium", "few"))
        assert figures["mutual_information_bits"] in exact
    assert exact[0] == evaluation["top1"]
    for low, high in (evaluation["intervals"][key] for key in ("top1", "balanced_accuracy", "medium", "few")):
        assert f"95 % interval {100 * low:.1f} {DASH} {100 * high:.1f} %" in page.text
    assert "1 class with more than 100 training images" in page.text
    assert "4 tested of 5 classes with fewer than 20 training images" in page.text
    assert "Figures of the last epoch; the test set selected nothing." in page.text
    for entry in evaluation["reliability"]:
        if entry["count"]:
            cells = [str(entry["count"]), percent(entry["confidence"]), percent(entry["accuracy"])]
            assert cells in [row[1:] for row in page.rows]


def test_class_table_says_when_images_are_too_few(run: Path) -> None:
    page = read(run)
    rows = {row[0]: row for row in page.rows if len(row) == 8}
    lines = (run / "per_class.csv").read_text().splitlines()
    first = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    assert rows["digit 0"][1:4] == ["many", "150", "30"]
    assert rows["digit 0"][4] == f"{100 * int(first['correct']) / 30:.1f}\u00a0%"
    assert rows["digit 0"][5] == f"{100 * float(first['low']):.1f} {DASH} {100 * float(first['high']):.1f}\u00a0%"
    assert re.fullmatch(r"too few to tell \(\d of 9\)", rows["eight & more"][4])
    assert rows[EVIL][4:7] == ["no test image", DASH, DASH]
    assert all(values.get("scope") in ("row", "col") for values in page.all("th"))


def test_every_chart_is_described(run: Path) -> None:
    full(run)
    page = read(run)
    ids = [values["id"] for _, values in page.tags if "id" in values]
    assert len(ids) == len(set(ids))
    charts = page.all("svg")
    assert len(charts) == 4 + 3 + 5 + 1
    for chart in charts:
        assert chart["role"] == "img"
        assert set(chart["aria-labelledby"].split()) <= set(ids)
    assert "1.5 at epoch 1, 1.25 at epoch 2; lowest 1.25 at epoch 2, highest 1.5 at epoch 1." in page.text
    assert {"header", "nav", "main", "footer"} <= {tag for tag, _ in page.tags}
    assert "Student: 2 epochs, 3 min 5 s" in page.text
    assert "Skipped steps: 1" in page.text


def test_groups_without_classes_and_intervals_without_spread(tmp_path: Path) -> None:
    evaluation = make_run(tmp_path, [30, 12], [2, 1], ["a", "b"])
    assert evaluation["groups"]["many"]["accuracy"] is None
    assert evaluation["intervals"]["few"] is None
    evaluation["intervals"]["top1"] = [1.0, 1.0]
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    page = read(tmp_path)
    assert "no such class 0 classes with more than 100 training images" in page.text
    assert "too few test images for an interval 1 class with fewer than 20" in page.text
    assert "no interval: each class is all right or all wrong" in page.text
    assert "Top-5" not in page.text
    assert "None" not in page.text
    assert "nan" not in page.text


def test_optional_files_may_be_missing(run: Path) -> None:
    page = read(run)
    assert "Training" not in [word.strip() for word in page.words]
    assert "Skipped" not in page.text
    assert "teacher:" not in page.text
    assert "Versions and hardware were not recorded." in page.text
    (run / "metrics.jsonl").write_text('{"stage": "train", "epoch": 1, "classifier": 2.0}\n{"stage": "tr')
    (run / "environment.json").write_text('{"seconds": {"train": 4.2}}')
    assert "Train: 1 epoch, 4.2 s" in read(run).text


@pytest.mark.parametrize("name", ["config.yaml", "evaluation.json", "per_class.csv"])
def test_needed_files_are_named_when_missing_or_broken(run: Path, name: str) -> None:
    whole = (run / name).read_bytes()
    for broken in (b"", whole[: len(whole) // 2] + b"\xff", None):
        if broken is None:
            (run / name).unlink()
        else:
            (run / name).write_bytes(broken)
        with pytest.raises(UserError, match=re.escape(name)):
            write_report(run)
    assert not (run / "report.html").exists()


def test_files_that_do_not_belong_together_are_refused(run: Path) -> None:
    lines = (run / "per_class.csv").read_text().splitlines(keepends=True)
    (run / "per_class.csv").write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match=r"per_class\.csv does not belong"):
        write_report(run)
    (run / "evaluation.json").write_text('{"top1": 0.5}')
    with pytest.raises(UserError, match=r"evaluation\.json lacks 'test_images'"):
        write_report(run)


def test_a_log_changed_in_its_middle_is_refused(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"stage": "train"\n{"stage": "train", "epoch": 2, "lr": 0.1}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read: line 1"):
        write_report(run)


def test_command_gives_back_every_option_that_was_set(tmp_path: Path) -> None:
    options = {"epochs": 7, "loss.temperature": 0.07, "loss.learn_temperature": False, "views.query": "it's"}
    options |= {"optimiser.milestones": [0.5, 0.75], "out": "runs/x", "device": "cpu"}
    make_run(tmp_path, [30, 12], [20, 20], ["a", "b"], **options)
    page = read(tmp_path)
    command = next(word for word in page.words if word.startswith("longtail train"))
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["longtail", "train", "digits-lt"]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert {name: yaml.safe_load(value) for name, value in given.items()} == {
        "--method": "gml",
        "--epochs": 7,
        "--loss.temperature": 0.07,
        "--loss.learn_temperature": False,
        "--views.query": "it's",
        "--optimiser.milestones": [0.5, 0.75],
        "--seed": 3,
    }


def test_many_classes_stay_small_and_fast(tmp_path: Path) -> None:
    classes = 8142
    counts = [max(2, int(1000 / (k + 1) ** 0.7)) for k in range(classes)]
    names = [f"Genusname speciesname {k}" for k in range(classes)]
    (tmp_path / "config.yaml").write_text("data: many\nmethod: gml\n")
    rows = [
        {
            "class": k,
            "name": names[k],
            "train_images": n,
            "group": "many" if n > 100 else "medium" if n >= 20 else "few",
        }
        | {"test_images": 3, "correct": k % 4, "accuracy": (k % 4) / 3, "low": 0.1, "high": 0.9}
        | {"mean_confidence": 0.123456789, "most_confused_with": names[k - 1], "confused_count": 1}
        for k, n in enumerate(counts)
    ]
    small = make_run(tmp_path / "small", COUNTS, TESTS, NAMES)
    write_evaluation(tmp_path, small | {"classes": classes}, rows)
    began = time.perf_counter()
    path = write_report(tmp_path)
    assert time.perf_counter() - began < 3.0
    assert path.stat().st_size < 2_000_000
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.tags) < 3000
    assert "The first 100 of 8142 classes" in page.text
    data = json.loads(next(text for values, text in page.scripts if values.get("type")))
    assert [row[1] for row in data["rows"]] == counts
    assert data["rows"][5] == [0, counts[5], 3, 1, 0.1, 0.9, 0.1235, 4, 1]


def test_same_files_give_the_same_bytes(run: Path) -> None:
    full(run)
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert [entry.name for entry in run.iterdir() if entry.suffix == ".tmp"] == []


def test_scales_place_values_and_choose_round_ticks() -> None:
    scale = Scale(1, 100, 0.0, 200.0, log=True)
    assert [scale(v) for v in (1, 10, 100)] == pytest.approx([0.0, 100.0, 200.0])
    assert Scale(1, 1000, 0, 1, log=True).ticks() == pytest.approx([1, 10, 100, 1000])
    axis = linear_scale([0.013, 0.094], 100.0, 0.0)
    assert (axis.low, axis.high) == pytest.approx((0.0, 0.1))
    assert axis.ticks() == pytest.approx([0.0, 0.02, 0.04, 0.06, 0.08, 0.1])
    assert axis(0.05) == pytest.approx(50.0)
    flat = linear_scale([2.0, 2.0], 0.0, 1.0)
    assert flat.low < 2.0 < flat.high
    assert linear_scale([0.0], 0.0, 1.0).high > 0
    assert [number(v) for v in (8142, 24426, 0.07, 1e-5)] == ["8142", "24\u202f426", "0.07", "1e-05"]
