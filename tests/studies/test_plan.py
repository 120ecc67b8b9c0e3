"""Plans: which cells a study has, with which options, what they share, and what may not be asked of it."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_studies import bars

from longtail.config import get_option
from longtail.data import DataSplits, ImageSet
from longtail.data.counts import exponential_profile
from longtail.errors import UserError
from longtail.methods import METHODS
from longtail.options import OPTION_NAMES, make_config, read_recipe
from longtail.studies import plan as planning
from longtail.studies.catalog import RECIPES, STUDIES, get_study
from longtail.studies.plan import make_plan
from longtail.studies.published import PUBLISHED_FIGURES, published_figures, published_set

PAPER = {100: (53.0, 54.0, 53.12), 50: (57.6, 58.1, 58.17), 10: (65.7, 67.0, 66.93)}


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "bars.npz", **bars())
    return "bars.npz"


def sketch(name, num_classes, imbalance, tests=100, side=32):
    """The sizes of CIFAR without its pixels."""
    n_max = 500 if num_classes == 100 else 5000
    counts = torch.tensor(exponential_profile(n_max, num_classes, imbalance))
    names = tuple(str(c) for c in range(num_classes))

    def images(each):
        labels = torch.arange(num_classes).repeat_interleave(each)
        return ImageSet(torch.zeros(1, 3, side, side, dtype=torch.uint8).expand(len(labels), -1, -1, -1), labels, names)

    tested = torch.full((num_classes,), 10_000 // num_classes)
    return DataSplits(name, images(counts), images(tested), (0.5,) * 3, (0.2,) * 3, "cifar")


@pytest.fixture
def cifar(monkeypatch):
    """Plans see data sets of the right sizes, with nothing in them."""

    def read(config, say):
        return sketch(config.data, 10 if "10-" in config.data else 100, config.imbalance or 100)

    monkeypatch.setattr(planning, "read_splits", read)
    monkeypatch.setattr(ImageSet, "fingerprint", lambda self: f"{len(self)}")


def test_every_study_that_is_asked_for_is_there():
    names = "methods cifar teacher-student teachers imbalance temperature queue prior switches gml-plus".split()
    assert list(STUDIES) == [*names, "imagenet-lt", "inaturalist2018", "places-lt", "clip"]
    for name in ("clop", "ade20k", "method"):
        with pytest.raises(UserError, match=f"unknown study '{name}'; (did you mean|known)"):
            get_study(name)
    names = (
        "cross_entropy infonce focal class_balanced ldam ldam_drw logit_adjustment balanced_softmax crt lws tau_norm"
    )
    assert list(METHODS) == [*names.split(), *"ncm supcon supcon_la paco bcl proco gml".split()]


def test_rows_name_options_that_exist():
    base = make_config({"backbone": "small_net", "epochs": 3, "queue.capacity": 256, "loss.temperature": 0.1})
    for study in STUDIES.values():
        for row in [] if study.methods else study.rows(base):
            assert set(row.options) <= set(OPTION_NAMES), (study.name, row.name)
            make_config(row.options)
        for panel in study.panels:
            assert set(panel) <= set(OPTION_NAMES)
        names = [row.name for row in ([] if study.methods else study.rows(base))]
        assert len(names) == len(set(names))
    assert len(STUDIES["teachers"].rows(base)) == 4
    photos = make_config({"backbone": "resnext50_32x4d", "epochs": 3})
    assert all("cifar" not in row.name for row in STUDIES["teachers"].rows(photos))


def test_cells_are_panels_times_rows_times_seeds(data):
    plan = make_plan(STUDIES["methods"], {}, data=data, methods=["cross_entropy", "gml"], seeds=3)
    assert [(cell.row, cell.seed) for cell in plan.cells] == [
        (m, s) for m in ("cross_entropy", "gml") for s in range(3)
    ]
    assert len({cell.folder for cell in plan.cells}) == 6
    assert [row.against for row in plan.panels[0].rows] == ["cross_entropy"] * 2
    assert all(cell.config.seed == cell.options["seed"] == cell.seed for cell in plan.cells)
    plan = make_plan(STUDIES["imbalance"], {}, data=data, methods=["gml"])
    assert [panel.title for panel in plan.panels] == [f"bars, imbalance {k}" for k in (1, 10, 20, 50, 100)]


def test_an_identity_changes_with_what_moves_figures_and_with_nothing_else(data):
    def folder(method="gml", **given):
        given = {key.replace("__", "."): value for key, value in given.items()}
        return make_plan(STUDIES["methods"], given, data=data, methods=[method]).cells[0].folder

    first = folder()
    assert re.fullmatch(r"bars-gml-seed0-[0-9a-f]{10}", first)
    assert folder() == folder(device="cpu") == folder(checkpoint__every_seconds=1.0) == folder(capture=False) == first
    assert folder(epochs=60) == first  # what is chosen from the data anyway
    others = [folder(epochs=3), folder(queue__capacity=64), folder(loss__temperature=0.3), folder(optimiser__lr=0.01)]
    assert len({first, *others}) == 5
    # Options that a method does not read move nothing.
    assert folder("cross_entropy", queue__capacity=64) == folder("cross_entropy")
    np.savez(data, **bars(seed=1))
    assert folder() != first  # the same name, other images


def test_first_stages_are_shared_where_all_that_moves_them_is_the_same(data):
    plan = make_plan(STUDIES["switches"], {}, data=data, seeds=2)
    keys = {}
    for cell in plan.cells:
        keys[cell.row, cell.seed] = [(shared.name, shared.option, shared.key) for shared in cell.shares]
    assert keys["gml", 0] == keys["own key out", 0] == keys["no distillation", 0] == keys["one FIFO queue", 0]
    [(name, option, key)] = keys["gml", 0]
    assert (name, option) == ("teacher", "teacher.run")
    assert keys["gml", 1] != keys["gml", 0]
    assert keys["prior strength 0", 0] != keys["gml", 0]  # its teacher has no prior either
    assert keys["momentum encoder", 0] == []
    for given in ({"optimiser.lr": 0.01}, {"teacher.epochs": 3}, {"loss.scale": 20.0}, {"batch_size": 8}):
        other = make_plan(STUDIES["switches"], given, data=data).cells[0]
        assert other.shares[0].key != key, given
    for given in ({"queue.capacity": 64}, {"loss.temperature": 0.3}, {"epochs": 7, "teacher.epochs": 60}):
        other = make_plan(STUDIES["switches"], given, data=data).cells[0]
        assert other.shares[0].key == key, given


def test_cifar_has_the_published_settings_for_every_row(cifar):
    plan = make_plan(STUDIES["cifar"], {}, methods=["cross_entropy", "gml"])
    titles = [panel.title for panel in plan.panels]
    assert titles == [f"{data}, imbalance {k}" for data in ("cifar100-lt", "cifar10-lt") for k in (100, 50, 10)]
    for panel in plan.panels:
        assert panel.facts.published == (panel.options["data"], panel.options["imbalance"])
    recipe = read_recipe(RECIPES["cifar100-lt"])
    gml, entropy = plan.cells[1].config, plan.cells[0].config
    for key, value in recipe.items():
        if key not in ("data", "imbalance", "method"):
            assert get_option(gml, key) == value, key
    for key in ("epochs", "backbone", "batch_size", "views.classifier", "optimiser.lr", "optimiser.milestones"):
        assert get_option(entropy, key) == recipe[key], key
    assert entropy.loss.distillation_temperature == make_config({}).loss.distillation_temperature


def test_a_shorter_smaller_student_has_a_teacher_alike(cifar):
    given = {"epochs": 15, "backbone": "cifar_resnet20"}
    plan = make_plan(STUDIES["cifar"], given, data="cifar100-lt", methods=["gml"])
    assert len(plan.panels) == 3
    for cell in plan.cells:
        assert (cell.config.epochs, cell.config.teacher.epochs) == (15, 15)
        assert (cell.config.backbone, cell.config.teacher.backbone) == ("cifar_resnet20", "cifar_resnet20")
    plan = make_plan(STUDIES["cifar"], {"epochs": 15, "teacher.epochs": 9}, data="cifar100-lt", methods=["gml"])
    assert plan.cells[0].config.teacher.epochs == 9
    assert plan.cells[0].config.teacher.backbone == "cifar_resnet56"


def test_what_is_given_narrows_the_panels_or_takes_their_place(cifar):
    def titles(given, **more):
        return [panel.title for panel in make_plan(STUDIES["cifar"], given, methods=["gml"], **more).panels]

    assert titles({"imbalance": 50.0}) == ["cifar100-lt, imbalance 50", "cifar10-lt, imbalance 50"]
    assert titles({"imbalance": 20.0}, data="cifar10-lt") == ["cifar10-lt, imbalance 20"]
    # A file is as it is, and is known again by its sizes.
    plan = make_plan(STUDIES["cifar"], {}, data="some/where/mine.npz", methods=["gml"])
    assert [(panel.title, panel.facts.published) for panel in plan.panels] == [("mine", ("cifar100-lt", 100))]
    assert plan.cells[0].config.queue.capacity == 4096


def test_a_recipe_of_the_user_is_for_every_row(data):
    Path("mine.yaml").write_text("method: gml\nepochs: 4\nimbalance: 5\nqueue: {capacity: 32}\ndata: bars.npz\n")
    plan = make_plan(STUDIES["methods"], {"batch_size": 5}, recipe="mine.yaml", methods=["cross_entropy", "gml"])
    assert [cell.config.epochs for cell in plan.cells] == [4, 4]
    assert [cell.config.imbalance for cell in plan.cells] == [5, 5]
    assert [cell.config.queue.capacity for cell in plan.cells] == [256, 32]
    assert [cell.config.batch_size for cell in plan.cells] == [5, 5]


@pytest.mark.parametrize(
    ("name", "given", "more", "naming"),
    [
        ("switches", {"loss.prior_strength": 0.5}, {}, ["--loss.prior_strength", "switches varies"]),
        ("queue", {"queue.capacity": 64}, {}, ["--queue.capacity", "queue varies"]),
        ("methods", {"seed": 3}, {}, ["--seed", "--seeds N"]),
        ("methods", {"method": "gml"}, {}, ["--method ", "--methods"]),
        ("methods", {"folds": 3}, {}, ["--folds"]),
        ("switches", {}, {"methods": ["gml"]}, ["its own rows", "--methods"]),
        ("methods", {}, {"methods": ["gmll"]}, ["unknown method 'gmll'", "did you mean 'gml'"]),
        ("methods", {}, {"recipe": "demmo"}, ["unknown recipe 'demmo'", "'demo'"]),
        ("methods", {}, {"data": "digit-lt"}, ["digit-lt", "digits-lt"]),
        ("methods", {"backbone": "smal_net"}, {}, ["smal_net"]),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_one_sentence(data, name, given, more, naming):
    with pytest.raises(UserError) as caught:
        make_plan(STUDIES[name], given, **{"data": data, **more})
    for part in naming:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cell_that_cannot_be_trained_says_so_and_the_others_stay(data):
    plan = make_plan(STUDIES["queue"], {}, data=data)
    small = replace(STUDIES["queue"], rows=lambda base: [*STUDIES["queue"].rows(base)[:1], tiny])
    tiny = replace(STUDIES["queue"].rows(plan.cells[0].config)[1], name="tiny")
    tiny = replace(tiny, options={"method": "gml", "queue.capacity": 2, "queue.min_per_class": 2})
    refused = {cell.row: cell.refused for cell in make_plan(small, {}, data=data).cells}
    assert refused["capacity 256, minimum 2"] == ""
    assert "queue.capacity" in refused["tiny"] or "capacity" in refused["tiny"]


def test_published_figures_are_those_of_the_paper():
    for imbalance, figures in PAPER.items():
        found = [f.top1[0] for f in published_figures("cifar100-lt", imbalance) if f.method == "gml"]
        assert found == list(figures)
    groups = [f.groups for f in published_figures("cifar100-lt", 100) if f.method == "bcl"]
    assert groups == [(67.14, 51.31, 29.23)]
    assert [f.text for f in published_figures("imagenet-lt", None) if f.method == "bcl"] == [
        "57.2-57.8 (reported for BCL)"
    ]
    assert all(f.source and 20 < f.top1[0] < 95 for f in PUBLISHED_FIGURES)
    assert published_set(100, 10_847, 10_000) == ("cifar100-lt", 100)
    assert published_set(100, 10_846, 10_000) is None
    # A method's name is ours wherever we have it, so that its figures find their row.
    assert {f.method for f in PUBLISHED_FIGURES if f.method.islower()} <= set(METHODS)
