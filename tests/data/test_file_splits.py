"""From files on disk to training and test sets: what is held out, what stays together, what is cut, what is told."""

import csv
import json

import numpy as np
import pytest

from longtail.data import exponential_profile, load_data
from longtail.data.counts import step_profile
from longtail.data.file_splits import FileChecks
from longtail.data.sources import load_test_set
from longtail.errors import UserError
from longtail.option_groups import DataOptions

COUNTS = {"ant": 12, "bee": 7, "cat": 2, "dog": 1}


def paths(images):
    return [images.paths[index] for index in range(len(images))]


def split(data, folds=None, imbalance=None, checks=None, **source):
    return load_data(str(data), folds=folds, imbalance=imbalance, source=DataOptions(**source), checks=checks)


def said(splits, *words):
    """Whether one note holds all ``words``."""
    return any(all(word in note for word in words) for note in splits.notes)


@pytest.fixture(scope="module")
def photos(tmp_path_factory, make_photos):
    return make_photos(tmp_path_factory.mktemp("data") / "photos", COUNTS)


def table(file, columns, rows):
    with file.open("w", newline="") as text:
        csv.writer(text).writerows([columns, *rows])
    return file


# --- Held out


def test_a_share_of_each_class_is_held_out_but_never_its_last_training_image(photos):
    splits = split(photos)
    # round(0.2 x 12), round(0.2 x 7), at least one of two, none of one
    assert splits.test.class_counts.tolist() == [2, 1, 1, 0]
    assert splits.train.class_counts.tolist() == [10, 6, 1, 1]
    assert set(paths(splits.train)) | set(paths(splits.test)) == {
        f"{name}/{number:02d}.png" for name, count in COUNTS.items() for number in range(count)
    }
    assert said(splits, "4 of 22 images are held out", "--source.test_share")
    assert said(splits, "1 class has no test image", "'dog'")
    assert split(photos, test_share=0.5).test.class_counts.tolist() == [6, 4, 1, 0]


def test_a_hold_out_follows_paths_and_its_own_seed_only(photos, tmp_path, make_photos):
    first = split(photos)
    copy = make_photos(tmp_path / "elsewhere", dict(reversed(COUNTS.items())), side=24)  # other pixels, other place
    assert paths(split(copy).test) == paths(first.test)
    assert paths(split(photos, split_seed=1).test) != paths(first.test)
    make_photos(copy, {"aardvark": 4})  # a new class moves nothing in the others
    assert [path for path in paths(split(copy).test) if "aardvark" not in path] == paths(first.test)
    whole = [(f"{name}/{number:02d}.png", name) for name, count in COUNTS.items() for number in range(count)]
    shuffled = [whole[index] for index in np.random.default_rng(0).permutation(len(whole))]
    listed = table(photos.parent / "listed.csv", ("path", "label"), shuffled)
    again = load_data(str(listed), root=str(photos))
    assert paths(again.test) == paths(first.test)
    assert paths(again.train) == paths(first.train)
    assert again.test.fingerprint() == first.test.fingerprint()


def test_the_seed_of_a_run_does_not_move_the_test_set(desk, photos):
    words = "--method cross_entropy --backbone small_net --image_size 16 --epochs 1 --batch_size 4".split()
    words += "--device cpu --loading.workers 0 --quiet".split()
    states = []
    for seed in ("0", "1"):
        desk.run("train", photos, *words, "--seed", seed, "--out", seed)
        [state] = (desk.folder / seed / "resume").glob("*/state.json")
        states.append(json.loads(state.read_text())["identity"])
    assert states[0]["test"] == states[1]["test"]
    assert states[0]["train"] == states[1]["train"]


def test_a_second_source_holds_the_test_images(photos, tmp_path, make_photos):
    other = make_photos(tmp_path / "other", {"ant": 2, "bee": 1}, first=50)
    splits = split(photos, test=str(other))
    assert splits.train.class_counts.tolist() == list(COUNTS.values())
    assert splits.test.class_counts.tolist() == [2, 1, 0, 0]
    assert splits.test_split == "given"
    assert splits.test.path(0) == str(other / "ant" / "50.png")
    assert said(splits, "2 of 4 classes have no test image", "'cat'")


# --- Groups


def sites(folder, paint, per_site=3):
    """Write images of two classes taken at 8 sites, named ``siteN_MM.png``; return their folder."""
    for label, name in enumerate(("ant", "bee")):
        for site in range(8):
            for number in range(per_site - label):
                paint(folder / name / f"site{site}_{number:02d}.png", label, 10 * site + number)
    return folder


def site_of(path):
    return path.rsplit("/", 1)[1].partition("_")[0]


@pytest.mark.parametrize("folds", [None, 3])
@pytest.mark.parametrize("how", ["pattern", "column"])
def test_groups_never_lie_on_both_sides(tmp_path, paint, folds, how):
    data, options = sites(tmp_path / "photos", paint), {"group_pattern": r"(site\d+)_"}
    if how == "column":
        found = [path.relative_to(data).as_posix() for path in sorted(data.rglob("*.png"))]
        rows = [(path, path.split("/")[0], site_of(path)) for path in found]
        data = table(data / "all.csv", ("path", "label", "place"), rows)
        options = {"group_column": "place"}
    tested = []
    for fold in range(folds or 1):
        splits = split(data, folds=folds, fold=fold, **options)
        train, test = ({site_of(path) for path in paths(part)} for part in (splits.train, splits.test))
        assert test
        assert not train & test
        assert splits.test_split.endswith("; 8 groups kept whole")
        tested += paths(splits.test)
    assert len(tested) == len(set(tested))
    if folds is None:  # groups were needed: by themselves images of a site go to both sides
        plain = split(tmp_path / "photos")
        assert {site_of(path) for path in paths(plain.train)} & {site_of(path) for path in paths(plain.test)}
    else:
        assert len(tested) == 8 * 3 + 8 * 2


def test_groups_torn_by_a_given_split_are_told(tmp_path, paint):
    folder = sites(tmp_path / "photos", paint)
    found = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    for torn in (True, False):
        rows = [
            (path, path.split("/")[0], "test" if (path.endswith("_00.png") if torn else "site3" in path) else "train")
            for path in found
        ]
        data = table(folder / "all.csv", ("path", "label", "split"), rows)
        splits = split(data, group_pattern=r"(site\d+)_")
        assert splits.test_split == "given"
        assert len(splits.test) == sum(row[2] == "test" for row in rows)
        assert said(splits, "groups lie in both training and test set", "8 groups", "'site0'") == torn


# --- Duplicates


@pytest.mark.parametrize("folds", [None, 2])
def test_exact_duplicates_stay_on_one_side_of_a_split_that_is_made_here(tmp_path, paint, folds):
    for number in range(12):
        for copy in "abc":  # three names for the same pixels
            paint(tmp_path / "photos" / "ant" / f"{copy}{number:02d}.png", 0, number)
            paint(tmp_path / "photos" / "bee" / f"{copy}{number:02d}.png", 1, number)
    for seed in range(3):
        splits = split(tmp_path / "photos", folds=folds, split_seed=seed)
        train, test = ({path[:4] + path[-6:] for path in paths(part)} for part in (splits.train, splits.test))
        assert test
        assert not train & test
        assert not said(splits, "also in the training set")
        assert said(splits, "training images repeat others pixel by pixel")


def test_duplicates_tie_groups_together(tmp_path, paint):
    folder = sites(tmp_path / "photos", paint)
    for site in range(0, 8, 2):  # each even site shares an image with the next odd one
        paint(folder / "ant" / f"site{site + 1}_77.png", 0, 10 * site)
    seen = set()
    for seed in range(6):
        splits = split(folder, group_pattern=r"(site\d+)_", split_seed=seed)
        train, test = ({int(site_of(path)[4:]) // 2 for path in paths(part)} for part in (splits.train, splits.test))
        assert test
        assert not train & test
        seen |= test
    assert len(seen) > 1


def test_duplicates_across_a_given_split_are_told(tmp_path, make_photos):
    make_photos(tmp_path / "photos" / "train", {"ant": 4, "bee": 3})
    make_photos(tmp_path / "photos" / "test", {"ant": 2, "bee": 1}, first=3)  # ant 3 is in both
    splits = split(tmp_path / "photos")
    assert said(splits, "1 test image is also in the training set", "test/ant/03.png = train/ant/03.png")
    assert len(splits.test) == 3


# --- Folds


def test_every_image_is_tested_once_and_lone_images_always_train(photos):
    tested = []
    for fold in range(3):
        splits = split(photos, folds=3, fold=fold)
        assert bool((splits.train.class_counts > 0).all())
        assert splits.test_split == f"fold {fold + 1} of 3"
        assert not set(paths(splits.train)) & set(paths(splits.test))
        assert len(splits.train) + len(splits.test) == 22
        tested += paths(splits.test)
    assert sorted(tested) == sorted(
        f"{name}/{number:02d}.png" for name, count in COUNTS.items() for number in range(count) if count > 1
    )


def test_each_deal_is_another_one(photos):
    deals = [
        [paths(split(photos, folds=3, fold=3 * deal + fold, repeats=2).test) for fold in range(3)] for deal in (0, 1)
    ]
    once, again = (sorted(path for tested in deal for path in tested) for deal in deals)
    assert once == again
    assert deals[0] != deals[1]
    assert split(photos, folds=3, fold=4, repeats=2).test_split == "fold 2 of 3, deal 2 of 2"


# --- Made long-tailed


@pytest.mark.parametrize(("profile", "made"), [("exponential", exponential_profile), ("step", step_profile)])
def test_image_files_are_cut_to_a_profile(tmp_path, make_photos, profile, made):
    make_photos(tmp_path / "photos" / "train", {"ant": 9, "bee": 16, "cat": 16, "dog": 5})
    make_photos(tmp_path / "photos" / "test", {"ant": 2, "bee": 2, "cat": 2, "dog": 2}, first=60)
    whole, splits = split(tmp_path / "photos"), split(tmp_path / "photos", imbalance=8, profile=profile)
    # From the largest class down, as far as each can give: bee, cat, ant, dog.
    bee, cat, ant, dog = made([16, 16, 9, 5], 4, 8)
    assert splits.train.class_counts.tolist() == [ant, bee, cat, dog]
    assert bee == 16
    assert max(ant, dog) < 9
    assert set(paths(splits.train)) < set(paths(whole.train))
    assert paths(splits.test) == paths(whole.test)
    # A smaller set keeps images of a larger one, and the same ones every time.
    harder = split(tmp_path / "photos", imbalance=16, profile=profile)
    assert set(paths(harder.train)) < set(paths(splits.train))
    assert paths(split(tmp_path / "photos", imbalance=8, profile=profile).train) == paths(splits.train)


def test_group_edges_reach_figures_table_and_report(desk, make_photos):
    make_photos(desk.folder / "photos" / "train", {"ant": 9, "bee": 4, "cat": 2})
    make_photos(desk.folder / "photos" / "test", {"ant": 2, "bee": 2, "cat": 2}, first=60)
    words = "--method cross_entropy --backbone small_net --image_size 16 --epochs 1 --batch_size 4".split()
    words += "--device cpu --loading.workers 0 --quiet".split()
    groups = {}
    for name, edges in (("own", ["--group_edges", "[8, 3]"]), ("usual", [])):
        desk.run("train", "photos", *words, *edges, "--out", name)
        with (desk.folder / name / "per_class.csv").open() as text:
            groups[name] = [row["group"] for row in csv.DictReader(text)]
    assert groups == {"own": ["many", "medium", "few"], "usual": ["few", "few", "few"]}
    figures = {name: json.loads((desk.folder / name / "evaluation.json").read_text()) for name in groups}
    assert figures["own"]["group_edges"] == [8, 3]
    assert [group["classes"] for group in figures["own"]["groups"].values()] == [1, 1, 1]
    assert [group["classes"] for group in figures["usual"]["groups"].values()] == [0, 0, 3]
    page = (desk.folder / "own" / "report.html").read_text()
    assert "3 to 8" in page
    assert "20 to 100" in (desk.folder / "usual" / "report.html").read_text()
    before = (desk.folder / "own" / "evaluation.json").read_bytes()
    desk.run("evaluate", "own", "--device", "cpu")
    assert (desk.folder / "own" / "evaluation.json").read_bytes() == before


# --- What cannot be read


@pytest.mark.parametrize("check", ["full", "sample"])
def test_unreadable_files_are_named_or_left_out(tmp_path, make_photos, check):
    make_photos(tmp_path / "photos", {"ant": 6, "bee": 4})
    (tmp_path / "photos" / "bee" / "00.png").write_bytes(b"GIF")
    cut = tmp_path / "photos" / "ant" / "00.png"
    cut.write_bytes(cut.read_bytes()[:-300])  # only decoding finds that
    bad = ["ant/00.png", "bee/00.png"] if check == "full" else ["bee/00.png"]
    with pytest.raises(UserError, match=rf"{len(bad)} of 10 images cannot be read: {bad[0]}"):
        split(tmp_path / "photos", check=check)
    splits = split(tmp_path / "photos", check=check, checks=FileChecks(on_bad="skip"))
    assert [file for file, _ in splits.skipped] == bad
    assert len(splits.train) + len(splits.test) == 10 - len(bad)
    assert said(splits, f"{len(bad)} of 10 images cannot be read", bad[0])


def test_what_is_left_out_to_evaluate_on_is_told(tmp_path, make_photos):
    make_photos(tmp_path / "photos", {"ant": 3, "bee": 2, "elk": 2})
    names = ("ant", "bee", "cat")
    with pytest.raises(UserError, match=r"1 class that the model does not know \(first 'elk'; 2 images\)"):
        load_test_set(str(tmp_path / "photos"), names)
    found = load_test_set(str(tmp_path / "photos"), names, source=DataOptions(unknown_labels="skip"))
    assert found.test.labels.tolist() == [0, 0, 0, 1, 1]
    assert found.test.class_names == names
    assert len(found.train) == 0
    assert said(found, "2 images of 1 class that", "'elk'")


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["01", "2", "3.0"], ("1", "2", "3"), [0, 1, 2]),
        (["01", "1", "02"], ("01", "1", "2"), [0, 1, 2]),  # a class's own spelling goes first
        ([" ant", "bee ", "ant"], ("ant", "bee"), [0, 0, 1]),  # in the order of classes
    ],
)
def test_labels_of_a_model_are_known_in_any_spelling(tmp_path, paint, labels, names, expected):
    rows = [(f"{number}.png", label) for number, label in enumerate(labels)]
    for number in range(3):
        paint(tmp_path / f"{number}.png", 0, number)
    data = str(table(tmp_path / "t.csv", ("path", "label"), rows))
    assert load_test_set(data, names).test.labels.tolist() == expected
    if names == ("1", "2", "3"):
        with pytest.raises(UserError, match=r"does not know \(first '01'"):
            load_test_set(data, names, source=DataOptions(labels="names"))
