"""Masks of new images: exact class numbers at the image's own size, colours, shares, and what is refused."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from longtail.errors import UserError
from longtail.segmentation import predict as module
from longtail.segmentation.mask_folder import mask_names
from longtail.segmentation.models import PixelHead, Segmenter, build_pixel_encoder, inference, largest_at_size
from longtail.segmentation.overlays import class_overlay
from longtail.segmentation.predict import predict_image, predict_masks

NAMES = ("ground", "pole", "image", "=sign")
PALETTE = torch.tensor([[0, 0, 0], [250, 0, 0], [0, 200, 100], [9, 8, 7]], dtype=torch.uint8)
SURE = 0.7


class ByRed:
    """Sees class k where red is 60 k, with probability 0.7; the others share the rest."""

    class_names = NAMES
    num_classes = len(NAMES)
    class_counts = torch.tensor([70, 20, 10, 0])
    palette = PALETTE
    mean = torch.zeros(3)

    def __init__(self, size: tuple[int, int] | None = None) -> None:
        self.size = size
        self.asked: list[tuple[tuple[int, ...], Any, Any]] = []

    def to(self, device: torch.device) -> ByRed:
        return self

    def predict(self, images: torch.Tensor, prior: Any = None, view: Any = None) -> torch.Tensor:
        self.asked.append((tuple(images.shape), prior, view))
        seen = F.one_hot(images[:, 0].long().add(30).div(60, rounding_mode="floor").clamp(max=3), 4).permute(0, 3, 1, 2)
        return torch.where(seen == 1, SURE, (1 - SURE) / 3)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a run, whose segmenter is a stand-in (``run.name`` is all that it reads of it)."""
    folder = tmp_path / "run"
    folder.mkdir()
    options = {"task": "segmentation", "segmentation": {"test_scales": [0.5, 1.0], "stride": 0.5}}
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    segmenter = ByRed()
    monkeypatch.setattr(module, "load_segmenter", lambda path: segmenter)
    monkeypatch.setattr(module, "SEEN", segmenter, raising=False)
    return folder


def seen() -> ByRed:
    found = module.SEEN  # type: ignore[attr-defined]
    assert isinstance(found, ByRed)
    return found


def draw(path: Path, labels: list[list[int]], **options: Any) -> torch.Tensor:
    """Write an image in which the red channel tells the class; return the labels."""
    wanted = torch.tensor(labels)
    red = (wanted * 60).to(torch.uint8).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([red, red * 0 + 50, red * 0 + 90], 2)).save(path, **options)
    return wanted


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_masks_hold_the_classes_at_the_image_s_own_size(run: Path, tmp_path: Path) -> None:
    first = draw(tmp_path / "in" / "a.png", [[0, 1, 1, 2], [0, 0, 3, 3], [0, 0, 0, 0]])
    draw(tmp_path / "in" / "deep" / "b.bmp", [[2, 2]])
    done = predict_masks(run, [tmp_path / "in"], out=tmp_path / "out", quiet=True)
    assert (done.images, done.skipped, done.out) == (2, (), tmp_path / "out")
    assert sorted(str(path.relative_to(done.out)) for path in done.out.rglob("*.*")) == [
        "classes.csv",
        "masks/a.png",
        "masks/b.png",
        "overlays/a.jpg",
        "overlays/b.jpg",
        "shares.csv",
    ]
    with Image.open(done.out / "masks" / "a.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.array(image), first.numpy())
        assert np.array_equal(np.array(image.convert("RGB")), PALETTE[first].numpy())
    with Image.open(done.out / "overlays" / "a.jpg") as image:
        assert image.size == (4, 3)
    classes = table(done.out / "classes.csv")
    assert [(row["index_in_mask"], row["class"], row["colour"]) for row in classes] == [
        ("0", "ground", "#000000"),
        ("1", "pole", "#fa0000"),
        ("2", "image", "#00c864"),
        ("3", "=sign", "#090807"),
    ]
    row = table(done.out / "shares.csv")[0]
    assert (row["image"], row["mask"], row["error"]) == (str(tmp_path / "in" / "a.png"), "masks/a.png", "")
    assert [float(row[name]) for name in ("ground", "pole", "class image", "=sign")] == pytest.approx(
        [7 / 12, 2 / 12, 1 / 12, 2 / 12], rel=1e-5
    )
    assert float(row["confidence"]) == pytest.approx(SURE, rel=1e-5)


def test_overlay_is_the_image_in_the_classes_colours(run: Path, tmp_path: Path) -> None:
    labels = draw(tmp_path / "flat.png", [[1] * 24] * 16)
    predict_masks(run, [tmp_path / "flat.png"], out=tmp_path / "out", quiet=True)
    image = torch.tensor([60, 50, 90], dtype=torch.uint8)[:, None, None].expand(3, 16, 24)
    expected = class_overlay(image, labels, PALETTE).permute(1, 2, 0).numpy().astype(int)
    with Image.open(tmp_path / "out" / "overlays" / "flat.jpg") as drawn:
        assert np.abs(np.array(drawn).astype(int) - expected).max() <= 4
    predict_masks(run, [tmp_path / "flat.png"], out=tmp_path / "bare", masks_only=True, quiet=True)
    assert not (tmp_path / "bare" / "overlays").exists()


def test_an_image_is_brought_to_the_size_of_training_and_its_mask_back() -> None:
    segmenter = ByRed(size=(4, 8))
    image = torch.zeros(3, 8, 16, dtype=torch.uint8)
    image[0, :, 8:] = 120
    labels, confidence = predict_image(segmenter, image)  # type: ignore[arg-type]
    assert segmenter.asked[0][0] == (1, 3, 4, 8)
    assert labels.shape == (8, 16)
    assert labels[:, :7].unique().tolist() == [0]
    assert labels[:, 9:].unique().tolist() == [2]
    assert 0.5 < confidence < SURE


@pytest.mark.parametrize("together", [1, 3, 100])
def test_classes_are_enlarged_a_few_at_a_time_with_the_same_result(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    probabilities = torch.rand(7, 3, 5, generator=torch.Generator().manual_seed(0)).softmax(0)
    probabilities[4] = probabilities[2]  # of equals the first class wins
    monkeypatch.setattr(inference, "_MOST_VALUES", together * 11 * 9)
    best, labels = largest_at_size(probabilities, (11, 9))
    whole = F.interpolate(probabilities[None], (11, 9), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(best, whole.amax(0))
    assert torch.equal(labels, whole.argmax(0))
    assert not (labels == 4).any()


def test_a_saved_segmenter_predicts_what_it_predicts_in_python(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = {"encoder": "mobilenetv3_small_050", "decoder": "fpn", "width": 32, "in_channels": 3, "head": "cosine"}
    encoder = build_pixel_encoder(spec["encoder"], spec["decoder"], 3, 32)
    counts, prior = torch.tensor([50, 30, 20]), torch.full((3,), 1 / 3)
    head = PixelHead("cosine", encoder.feature_dim, 3, 30.0)
    statistics = ([0.5] * 3, [0.25] * 3, PALETTE[:3], (32, 48), {**spec, "scale": 30.0})
    made = Segmenter(encoder, head, NAMES[:3], counts, counts, prior, *statistics)
    made.save(tmp_path / "run")
    pixels = torch.randint(256, (3, 40, 56), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.save(tmp_path / "a.png")
    predict_masks(tmp_path / "run", [tmp_path / "a.png"], out=tmp_path / "out", prior="train", device="cpu", quiet=True)
    small = torch.from_numpy(np.array(image.resize((48, 32), Image.Resampling.BILINEAR))).permute(2, 0, 1)
    probabilities = made.eval().predict(small[None], "train")
    whole = F.interpolate(probabilities, (40, 56), mode="bilinear", align_corners=False)[0]
    with Image.open(tmp_path / "out" / "masks" / "a.png") as mask:
        assert np.array_equal(np.array(mask), whole.argmax(0).numpy())
    confidence = float(table(tmp_path / "out" / "shares.csv")[0]["confidence"])
    assert confidence == pytest.approx(float(whole.amax(0).mean()), rel=1e-4)


def test_pictures_are_turned_upright(run: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    labels = draw(tmp_path / "turned.png", [[0, 1, 2], [3, 3, 3]], exif=exif)
    predict_masks(run, [tmp_path / "turned.png"], out=tmp_path / "out", quiet=True)
    with Image.open(tmp_path / "out" / "masks" / "turned.png") as image:
        assert np.array_equal(np.array(image), labels.rot90(-1).numpy())


def test_it_looks_as_the_run_was_tested_unless_told_otherwise(run: Path, tmp_path: Path) -> None:
    draw(tmp_path / "a.png", [[0]])
    (tmp_path / "prior.csv").write_text("class,prior\nground,1\npole,1\nimage,2\n=sign,4\n")
    predict_masks(run, [tmp_path / "a.png"], out=tmp_path / "one", quiet=True)
    predict_masks(
        run,
        [tmp_path / "a.png"],
        out=tmp_path / "two",
        window=[32, 64],
        scales=[1.5],
        mirror=True,
        prior=str(tmp_path / "prior.csv"),
        quiet=True,
    )
    (_, no_prior, as_tested), (_, prior, changed) = seen().asked
    assert no_prior is None
    assert prior.tolist() == [0.125, 0.125, 0.25, 0.5]
    assert (as_tested.window, as_tested.stride, as_tested.scales, as_tested.mirror) == (None, 0.5, (0.5, 1.0), False)
    assert (changed.window, changed.stride, changed.scales, changed.mirror) == ((32, 64), 0.5, (1.5,), True)


def test_names_are_told_apart() -> None:
    files = ["x/0001.png", "y/0001.png", "y/0002.jpg", "y/0002.png", "y/Z.png", "y/z.png", "only.png"]
    names = mask_names(files)
    assert names == ["x_0001", "y_0001", "y_0002_jpg", "y_0002_png", "y_Z_png", "y_z_png_2", "only"]
    assert mask_names(["p/x/a.png", "q/x/a.png"]) == ["x_a_png", "x_a_png_2"]
    many = mask_names([f"{k}/x/{name}" for k in range(3) for name in ("a.png", "x_a.png", "X_A_png.png")])
    assert len({name.casefold() for name in many}) == 9


def test_files_that_cannot_be_read_are_named_or_listed(run: Path, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png", [[1]])
    (tmp_path / "in" / "b.png").write_bytes(b"no image")
    draw(tmp_path / "in" / "c.png", np.random.default_rng(0).integers(0, 4, (40, 40)).tolist())
    data = (tmp_path / "in" / "c.png").read_bytes()
    (tmp_path / "in" / "c.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"b\.png cannot be read as an image \(not an image\).*--on_bad_image skip"):
        predict_masks(run, [tmp_path / "in"], out=tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()  # told before anything is written
    (tmp_path / "in" / "b.png").unlink()
    with pytest.raises(UserError, match=r"c\.png cannot be read as an image \(cut off"):
        predict_masks(run, [tmp_path / "in"], out=tmp_path / "out", quiet=True)
    assert not (tmp_path / "out" / "shares.csv").exists()
    done = predict_masks(
        run, [tmp_path / "in", tmp_path / "gone.png"], out=tmp_path / "out", on_bad_image="skip", overwrite=True
    )
    assert [(Path(file).name, reason) for file, reason in done.skipped] == [
        ("c.png", "cut off"),
        ("gone.png", "no such file"),
    ]
    assert [row["error"] for row in table(done.out / "shares.csv")] == ["", "cut off", "no such file"]
    with pytest.raises(UserError, match=r"none of 1 image can be read, first .*gone\.png \(no such file\)"):
        predict_masks(run, [tmp_path / "gone.png"], out=tmp_path / "none", on_bad_image="skip", quiet=True)


def test_a_second_call_refuses_and_replaces_only_what_is_ours(run: Path, tmp_path: Path) -> None:
    draw(tmp_path / "a.png", [[1]])
    draw(tmp_path / "b.png", [[2]])
    out = tmp_path / "out"
    predict_masks(run, [tmp_path / "a.png"], out=out, quiet=True)
    with pytest.raises(UserError, match=r"--out .*out already holds classes\.csv; add --overwrite"):
        predict_masks(run, [tmp_path / "b.png"], out=out, quiet=True)
    assert (out / "masks" / "a.png").exists()
    predict_masks(run, [tmp_path / "b.png"], out=out, overwrite=True, quiet=True)
    assert [path.name for path in (out / "masks").iterdir()] == ["b.png"]
    assert [path.name for path in (out / "overlays").iterdir()] == ["b.jpg"]
    (out / "masks" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds another file \(masks/notes\.txt\)"):
        predict_masks(run, [tmp_path / "a.png"], out=out, overwrite=True, quiet=True)
    mine = tmp_path / "mine"
    draw(mine / "masks" / "truth.png", [[1]])
    with pytest.raises(UserError, match="was not written by this command"):
        predict_masks(run, [tmp_path / "a.png"], out=mine, overwrite=True, quiet=True)
    assert (mine / "masks" / "truth.png").exists()


def test_what_is_stopped_leaves_whole_files_only(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        draw(tmp_path / "in" / f"{name}.png", [[1]])
    real: Callable[..., Any] = module.predict_image

    def stopped(*given: Any) -> Any:
        if len(seen().asked) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(module, "predict_image", stopped)
    with pytest.raises(KeyboardInterrupt):
        predict_masks(run, [tmp_path / "in"], out=tmp_path / "out", quiet=True)
    left = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert left == ["a.jpg", "a.png", "b.jpg", "b.png", "classes.csv"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prior": "unifrom"}, "unknown prior 'unifrom'; did you mean 'uniform'"),
        ({"on_bad_image": "ignore"}, "unknown --on_bad_image 'ignore'"),
        ({"out": None}, "--out is missing"),
        ({"window": [32]}, "window must be a height and a width"),
        ({"scales": [0.0]}, "scales must be factors above 0"),
        ({"images": ["x.npz"]}, "x.npz holds arrays"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    run: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    draw(tmp_path / "a.png", [[1]])
    given = {"images": [tmp_path / "a.png"], "out": tmp_path / "out", "quiet": True} | options
    with pytest.raises(UserError, match=words):
        predict_masks(run, given.pop("images"), **given)
    assert not (tmp_path / "out").exists()


def test_images_may_not_lie_where_masks_go(run: Path, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "masks" / "a.png", [[1]])
    with pytest.raises(UserError, match="already holds masks"):
        predict_masks(run, [tmp_path / "in"], out=tmp_path / "in", quiet=True)
    assert (tmp_path / "in" / "masks" / "a.png").exists()
