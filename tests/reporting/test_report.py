"""The run report: one page, nothing fetched, nothing unescaped, and the figures of the files it was made from."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import shlex
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml

from longtail.config import TrainConfig, replace_options
from longtail.data.thumbnails import thumbnail
from longtail.deployment.under_prior import print_figures
from longtail.errors import UserError
from longtail.metrics.folds import fold_figures
from longtail.reporting import summary, unlearned, warnings, write_report
from longtail.reporting.svg import Scale, linear_scale, number, percent
from longtail.training.evaluation import Evaluation, summarise, write_evaluation
from longtail.training.progress import ProgressReporter

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


def write_figures(
    folder: Path, counts: list[int], tests: list[int], names: list[str], seed: int, edges: tuple[int, int] = (100, 20)
) -> dict:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(tests))
    logits = torch.randn(len(labels), len(counts), generator=torch.Generator().manual_seed(seed))
    logits[torch.arange(len(labels)), labels] += 2.0
    evaluation = summarise(
        logits, labels, torch.tensor(counts), torch.full((len(counts),), 1 / len(counts)), names, edges
    )
    folder.mkdir(exist_ok=True)
    write_evaluation(folder, evaluation)
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
    (run / "gallery.json").write_text(json.dumps(GALLERY))


DOT = thumbnail(torch.zeros(1, 1, 1, dtype=torch.uint8))
GALLERY = {
    "group": "few",
    "images": 39,
    "mistakes": 5,
    "most_of_a_class": 3,
    "no_neighbours": None,
    "entries": [
        {"image": 7, "file": f"a/{EVIL}.jpg", "true": EVIL, "predicted": '"><b>x', "confidence": 0.876}
        | {"thumbnail": DOT}
        | {"nearest": [{"image": 3, "file": None, "class": EVIL, "similarity": 0.914, "thumbnail": DOT}]},
        {"image": 9, "file": None, "true": "eight & more", "predicted": "\u0623\u0631\u0646\u0628", "confidence": 0.5}
        | {"thumbnail": DOT, "nearest": []},
    ],
}


def test_page_fetches_nothing_and_runs_only_its_own_script(run: Path) -> None:
    full(run)
    page, source = read(run), (run / "report.html").read_text()
    for tag, values in page.tags:
        for name in FETCHING & set(values):
            if tag == "data":
                continue
            own = values[name].startswith("#") or values[name] == "data:,"
            picture = tag == "img" and values[name].startswith("data:image/png;base64,")
            assert own or picture, (tag, name, values[name])
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
    assert len(charts) == 5 + 3 + 5 + 1
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
    assert "no interval: every class is all right or all wrong here 1 class with fewer than 20" in page.text
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


def test_many_classes_stay_small(tmp_path: Path) -> None:
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
    nothing = torch.empty(0, classes)
    write_evaluation(tmp_path, Evaluation(small | {"classes": classes}, rows, nothing, *torch.empty(3, 0)))
    path = write_report(tmp_path)
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


def test_mistakes_are_shown_with_their_neighbours(run: Path) -> None:
    assert "Mistakes" not in read(run).text
    full(run)
    page = read(run)
    assert "5 of 39 test images of few classes are wrong. Shown are 2: the rarest classes first" in page.text
    alts = [values["alt"] for values in page.all("img")]
    assert alts == [
        f'Test image of {EVIL}, taken for "><b>x',
        f"Training image of {EVIL}",
        "Test image of eight & more, taken for \u0623\u0631\u0646\u0628",
    ]
    assert f"a/{EVIL}.jpg" in page.text
    assert "Test image 9" in page.text
    assert "87.6 %" in page.text
    assert "0.91 true" in page.text
    for reason in ("This method keeps no queue.", EVIL):
        (run / "gallery.json").write_text(json.dumps(GALLERY | {"no_neighbours": reason}))
        assert f"Nearest training images are not shown. {reason}" in read(run).text
        assert EVIL not in (run / "report.html").read_text()
    (run / "gallery.json").write_text(json.dumps(GALLERY | {"entries": [], "mistakes": 0}))
    assert "None: all 39 test images of few classes are right." in read(run).text


@pytest.mark.parametrize("uri", ["https://example.org/x.png", "data:text/html;base64,AAAA", DOT + '"', "data:,", 3])
def test_a_gallery_with_anything_but_its_own_pictures_is_refused(run: Path, uri: object) -> None:
    entry = GALLERY["entries"][0] | {"thumbnail": uri}
    (run / "gallery.json").write_text(json.dumps(GALLERY | {"entries": [entry]}))
    with pytest.raises(UserError, match=r"gallery\.json cannot be read"):
        write_report(run)
    for broken in ("[]", "{}", json.dumps(GALLERY)[:-9], json.dumps(GALLERY | {"entries": [{}]})):
        (run / "gallery.json").write_text(broken)
        with pytest.raises(UserError, match=r"gallery\.json cannot be read"):
            write_report(run)


def test_confusions_are_counted_with_intervals(run: Path) -> None:
    evaluation = json.loads((run / "evaluation.json").read_text())
    page = read(run)
    flow = evaluation["group_confusion"]
    for true, predicted in (("few", "many"), ("many", "few")):
        count, images = flow[true][predicted], flow[true]["images"]
        # Wilson's interval, written out.
        z, share = 1.959963984540054, count / images
        middle, half = share + z * z / (2 * images), z * ((share * (1 - share) + z * z / (4 * images)) / images) ** 0.5
        low, high = (100 * (middle + sign * half) / (1 + z * z / images) for sign in (-1, 1))
        was = "was" if count == 1 else "were"
        assert f"Of {images} test images of {true} classes, {count} {was} taken for a {predicted} class" in page.text
        assert f"{100 * share:.1f} %, 95 % interval {low:.1f} {DASH} {high:.1f} %." in page.text
        row = flow[true]
        cells = [str(row[key]) for key in ("images", "right", "many", "medium", "few")]
        assert [true, *cells] in page.rows
    first = evaluation["confused_pairs"][0]
    row = next(row for row in page.rows if len(row) == 6 and row[2:4] == [str(first["count"]), str(first["of"])])
    assert row[0].startswith(NAMES[first["true"]])
    assert row[1].startswith(NAMES[first["predicted"]])
    assert row[4] == percent(first["count"] / first["of"])
    for broken in ([{"true": 99, "predicted": 0, "count": 1, "of": 2}], [{}], 3):
        (run / "evaluation.json").write_text(json.dumps(evaluation | {"confused_pairs": broken}))
        with pytest.raises(UserError, match=r"evaluation\.json has confusions that cannot be read"):
            write_report(run)
    del evaluation["confused_pairs"]
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    assert "What is taken for what" not in read(run).text


def test_confusions_of_few_images_are_not_given_as_shares(tmp_path: Path) -> None:
    make_run(tmp_path, [150, 30, 12], [0, 20, 2], ["a", "b", "c"])
    page = read(tmp_path)
    assert re.search(
        r"Of 2 test images of few classes, \d w\w+ taken for a many class: too few images to tell", page.text
    )
    assert "No test image is of a class with more than 100 training images" in page.text


def test_a_chosen_epoch_and_a_temperature_are_told(run: Path) -> None:
    evaluation = json.loads((run / "evaluation.json").read_text())
    selected = {"epoch": 12, "of": 30, "figure": "val_balanced_accuracy", "value": 0.8125, "images": 64}
    groups = {"many": {"accuracy": 0.5}, "medium": {"accuracy": None}, "few": {"accuracy": 0.25}}
    added = {"selection": "best", "selected": selected}
    added["calibrated"] = {"temperature": 1.37, "ece": 0.0512, "class_ece": 0.2034}
    added["post_hoc"] = {"tau": 0.7, "balanced_accuracy": 0.4375, "groups": groups}
    (run / "evaluation.json").write_text(json.dumps(evaluation | added))
    record = {"temperature": 1.37, "images": 64, "nll": [0.91, 0.75], "ece": [0.132, 0.041]}
    (run / "calibration.json").write_text(json.dumps(record))
    text = read(run).text
    assert "Figures of epoch 12, the best of 30 by balanced accuracy on 64 validation images (81.2 %)" in text
    assert "A temperature of 1.37 was fitted on 64 validation images" in text
    assert "divided by it by longtail predict and in exports (the model is too sure of itself)" in text
    (run / "calibration.json").write_text(json.dumps(record | {"temperature": 1.0}))
    assert "No temperature was fitted: the 64 validation images are too few" in read(run).text
    (run / "calibration.json").write_text(json.dumps(record))
    assert "from 13.2 % to 4.1 %, and the negative log-likelihood from 0.91 to 0.75" in text
    assert "On the test images the mean gap becomes 5.1 %, and that by class 20.3 %" in text
    assert "no better than without" not in text
    added["calibrated"]["ece"] = 0.99
    (run / "evaluation.json").write_text(json.dumps(evaluation | added))
    assert "20.3 %: no better than without, as happens where" in read(run).text
    assert "strength 0.7, chosen on the validation images; Menon et al. 2021" in text
    assert "a balanced accuracy of 43.8 %, many 50.0 %, few 25.0 %. The figures above are without it." in text
    for broken in ("{}", "[]", json.dumps(record | {"ece": [0.1]}), json.dumps(record | {"nll": "x"})):
        (run / "calibration.json").write_text(broken)
        with pytest.raises(UserError, match=r"calibration\.json cannot be read"):
            write_report(run)


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


def test_every_class_figure_stands_beside_its_test_images(run: Path) -> None:
    full(run)
    page = read(run)
    with (run / "per_class.csv").open(newline="") as file:
        classes = list(csv.DictReader(file))
    rows = {row[0]: row for row in page.rows if len(row) == 8}
    for line in classes:
        assert rows[line["name"]][3] == line["test_images"]
        if int(line["confused_count"]):
            taken = f"{line['most_confused_with']} ({line['confused_count']} of {line['test_images']})"
            assert rows[line["name"]][7] == taken
    for folder in (run, run / "teacher"):
        figures = json.loads((folder / "evaluation.json").read_text())
        with (folder / "per_class.csv").open(newline="") as file:
            worst = list(csv.DictReader(file))[figures["worst_class"]["class"]]
        assert f"{worst['name']}: {worst['correct']} of {worst['test_images']}" in page.text
    assert "5 classes with fewer than 20 training images; 99 test images" in page.text
    # What the script builds is what the page holds without it.
    (own,) = [text for values, text in page.scripts if not values.get("type")]
    assert " (${r.times} of ${r.test})" in own


def test_group_edges_are_those_of_the_evaluation(tmp_path: Path) -> None:
    make_run(tmp_path, COUNTS, TESTS, NAMES)
    usual = read(tmp_path).text
    assert "many: more than 100 training images, medium: 20 to 100, few: fewer than 20" in usual
    assert "set for this run" not in usual
    write_figures(tmp_path, COUNTS, TESTS, NAMES, seed=0, edges=(37, 8))
    text = read(tmp_path).text
    assert text.count("many: more than 37 training images, medium: 8 to 37, few: fewer than 8") == 3
    assert "4 classes with more than 37 training images" in text
    assert "These edges were set for this run; most published figures use 100 and 20." in text
    assert not re.search(r"than (100|20) training", text)


RECORD = {
    "notes": [f"3 images lie in train and test, first {EVIL}.", "2 classes have one image each."],
    "train_images": 12345,
    "test_images": 321,
    "skipped": [{"file": f"a/{EVIL}.jpg", "reason": "cut off <at> 12 %"}, {"file": "b.tif", "reason": "empty"}],
    "skipped_count": 2,
    "test_split": "held out: 20 % of each class, seed 0",
}


def test_the_data_is_told(run: Path) -> None:
    assert "About the data" not in read(run).text
    (run / "data.json").write_text(json.dumps(RECORD))
    page = read(run)
    assert "12 345 training images, 321 test images. Test set: held out: 20 % of each class, seed 0." in page.text
    for note in RECORD["notes"]:
        assert note in page.words
    assert [f"a/{EVIL}.jpg", "cut off <at> 12 %"] in page.rows
    assert "2 files that were skipped" in page.text
    assert "are listed" not in page.text
    assert EVIL not in (run / "report.html").read_text()
    (run / "data.json").write_text(json.dumps(RECORD | {"skipped_count": 4000}))
    assert "4000 files that were skipped The first 2 are listed." in read(run).text
    (run / "data.json").write_text(json.dumps(RECORD | {"skipped": [], "skipped_count": 0, "notes": []}))
    assert "skipped" not in read(run).text
    for broken in ("[]", '{"notes": []}', json.dumps(RECORD | {"skipped": [1]}), json.dumps(RECORD)[:-9]):
        (run / "data.json").write_text(broken)
        with pytest.raises(UserError, match=r"data\.json cannot be read"):
            write_report(run)


def make_folds(folder: Path, folds: int, repeats: int) -> dict:
    """Write a run over folds: each fold's figures, and on top those of the first deal as one test set."""
    parts = []
    for position in range(folds * repeats):
        tests = [6, 6, 6, 6, 6, 2, 2, 1, position % 2, 0]
        parts.append(make_run(folder / f"fold-{position}", COUNTS, tests, NAMES, seed=position))
        parts[-1] = write_figures(folder / f"fold-{position}", COUNTS, tests, NAMES, seed=position)
    first = [sum(6 if k < 5 else 2 if k < 7 else int(k == 7) for _ in range(folds)) for k in range(8)]
    make_run(folder, COUNTS, [*first, folds // 2, 0], NAMES)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    evaluation["folds"] = fold_figures(parts, folds, repeats)
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return evaluation


def test_figures_over_folds_come_first(tmp_path: Path) -> None:
    evaluation = make_folds(tmp_path, folds=4, repeats=1)
    write_report(tmp_path / "fold-2")
    page = read(tmp_path)
    record = evaluation["folds"]
    names = ["top1", "balanced_accuracy", "many", "medium", "few", "worst_class", "ece"]
    of = [record["figures"][name] for name in names]
    rows = {row[0]: [re.sub(r"\s+", " ", cell).strip() for cell in row[1:]] for row in page.rows if len(row) == 9}
    assert rows["Fold"] == [
        "Test images",
        "Top-1",
        "Balanced",
        "Many",
        "Medium",
        "Few",
        "Worst class",
        "Calibration error",
    ]
    assert rows["Mean"] == ["", *[percent(figure["mean"]).replace("\u00a0", " ") for figure in of]]
    assert rows["Standard dev."] == ["", *[percent(figure["sd"]).replace("\u00a0", " ") for figure in of]]
    for position in range(4):
        cells = [percent(figure["values"][position]).replace("\u00a0", " ") for figure in of]
        cells[5] += f" of {record['figures']['worst_class']['test_images'][position]}"
        assert rows[f"Fold {position + 1}"] == [str(record["test_images"][position]), *cells]
    assert [a["href"] for a in page.all("a") if not a["href"].startswith("#")] == ["fold-2/report.html"]
    assert "Each image was tested by a model that had not seen it." in page.text
    assert "Student's t" not in page.text
    titles = [values["id"] for tag, values in page.tags if tag == "h2"]
    assert titles[:3] == ["folds-title", "figures-title", "tail-title"]
    assert "All folds pooled" in page.text
    assert "4 folds, seed 3" in page.text
    assert "one run" not in page.text
    assert "Versions and hardware are in the reports of the folds." in page.text
    assert not [a for a in page.all("a") if a["href"] == "#training"]


def test_folds_dealt_again_have_an_interval_and_say_what_is_pooled(tmp_path: Path) -> None:
    evaluation = make_folds(tmp_path, folds=2, repeats=3)
    evaluation["folds"]["figures"]["few"] |= {"values": [None] * 5 + [0.5], "undefined": 5, "mean": 0.5, "sd": None}
    evaluation["folds"]["figures"]["few"] |= {"interval": None}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    page = read(tmp_path)
    low, high = evaluation["folds"]["figures"]["top1"]["interval"]
    assert next(row for row in page.rows if row[0] == "95\u00a0% interval")[2] == (
        f"{100 * low:.1f} {DASH} {100 * high:.1f}\u00a0%"
    )
    assert "50.0 % in 1 of 6 folds" in page.text
    assert "Fold 2, deal 3" in page.text
    assert "They are those of the first deal, so that each image counts once." in page.text
    evaluation["test_images"] = sum(evaluation["folds"]["test_images"])
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    assert "Each image counts 3 times, so the intervals below are too narrow." in read(tmp_path).text


def test_a_changed_record_of_folds_is_refused(tmp_path: Path) -> None:
    evaluation = make_folds(tmp_path, folds=2, repeats=1)
    record = evaluation["folds"]
    for broken in ([], {"folds": 2}, record | {"repeats": 2}, record | {"figures": {"top1": {"values": [1, 1]}}}):
        (tmp_path / "evaluation.json").write_text(json.dumps(evaluation | {"folds": broken}))
        with pytest.raises(UserError, match=r"evaluation\.json cannot be read as figures over folds"):
            write_report(tmp_path)


def test_a_run_that_calls_everything_one_class_says_so(run: Path) -> None:
    assert "calls" not in read(run).text
    labels = torch.tensor([0] * 30 + [1] * 10)
    logits = torch.zeros(40, 3)
    logits[:39, 0] = 1.0
    logits[39, 1] = 1.0
    evaluation = summarise(logits, labels, torch.tensor([99, 9, 9]), torch.full((3,), 1 / 3), [EVIL, "b", "c"])
    write_evaluation(run, evaluation)
    said = f"calls nearly every test image '{EVIL}': 39 of 40, and 9 of the 10 images that are of another class"
    assert f"the model {said}" in read(run).text
    assert said in warnings(evaluation.figures)[0]
    (run / "teacher").mkdir()
    write_evaluation(run / "teacher", evaluation)
    assert f"the teacher {said}" in read(run).text
    older = {key: value for key, value in evaluation.figures.items() if key != "one_class"}
    assert warnings(older) == []


def test_bits_below_zero_are_explained_where_they_are_shown(run: Path) -> None:
    full(run)
    assert "below 0" not in read(run).text
    write_log(run, [{"stage": "train", "epoch": 1, "bits": -0.4}, {"stage": "train", "epoch": 2, "bits": 0.1}])
    assert read(run).text.count("below 0") == 1
    evaluation = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps(evaluation | {"mutual_information_bits": -0.25}))
    page = read(run)
    assert page.text.count("below 0") == 2
    assert "worse than the bare frequencies of the classes" in page.text


def test_groups_with_untested_classes_say_so_in_every_place(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert {name: group["tested_classes"] for name, group in evaluation["groups"].items()} != {
        name: group["classes"] for name, group in evaluation["groups"].items()
    }
    print_figures(ProgressReporter(), evaluation)
    table, line, page = capsys.readouterr().out, summary(evaluation), read(run).text
    assert "few 4 tested of 5" in " ".join(table.split())
    assert re.search(r"few [0-9.]+ \(4 tested of 5\)", line)
    assert "4 tested of 5 classes with fewer than 20 training images" in page
    assert re.search(r"medium [0-9.]+ \(4\)", line)


def test_a_training_that_was_too_short_is_told() -> None:
    log: list[dict[str, object]] = [
        {"stage": stage, "epoch": 1, "classifier": loss} for stage, loss in (("teacher", 0.2), ("student", 0.4))
    ]
    log += [{"stage": "student", "epoch": 2, "step": 9, "skipped_step": True}]
    # Of 75 and 25 images the entropy is 0.56.
    assert unlearned(log, [75, 25, 0]) == [
        "the student was far from having learned its own training images when training ended (classifier loss 0.40; "
        "0.56 is that of knowing the class frequencies alone): more --epochs are likely to help."
    ]
    assert unlearned(log[:1], [75, 25]) == []
    assert unlearned(log[1:], [75, 25])[0].startswith("the model was far")
    assert unlearned([{"stage": "student", "epoch": 1, "other": 3.0}], [75, 25]) == []
