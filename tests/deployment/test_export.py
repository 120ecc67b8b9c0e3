"""Exports give what torch gives, say how they are used, and are whole or not there."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import longtail
from longtail.data.decode import fit, read_image
from longtail.deployment import export as command
from longtail.deployment import formats
from longtail.deployment.export import export
from longtail.deployment.graph import Form, check_against_torch, measure_resizing, resize_to_framing
from longtail.deployment.whole_folder import whole_folder
from longtail.errors import UserError
from longtail.files import save_tensors
from longtail.models import Classifier

pytestmark = pytest.mark.usefixtures("one_thread")
PRIOR = torch.tensor([0.2, 0.3, 0.5])


def session_of(folder):
    runtime = pytest.importorskip("onnxruntime")
    return runtime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


def pixels_for(model, count, seed=7):
    shape = (count, len(model.mean), *model.image_size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def normalised(model, pixels):
    mean, std = (x.numpy().astype(np.float64).reshape(-1, 1, 1) for x in (model.mean, model.std))
    return ((pixels / 255.0 - mean) / std).astype(np.float32)


def slow_probabilities(model, pixels, temperature=1.0, prior=None):
    """The model in float64, and Bayes' rule as it stands in the book."""
    with torch.no_grad():
        logits = model.double()(torch.from_numpy(normalised(model, pixels)).double()).numpy() / temperature
    model.float()
    weight = np.exp(logits - logits.max(1, keepdims=True))
    if prior is not None:
        weight = weight * prior.double().numpy() / model.logit_prior.double().numpy()
    return weight / weight.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("encoder", "channels", "side", "head"),
    [
        ("small_net", 1, 8, "cosine"),
        pytest.param("cifar_resnet20", 3, 32, "cosine", marks=pytest.mark.check),
        pytest.param("cifar_resnet32", 3, 32, "linear", marks=pytest.mark.check),
        pytest.param("resnet18", 3, 32, "cosine", marks=pytest.mark.check),
        pytest.param("vit_tiny_patch16_224", 3, 32, "linear", marks=pytest.mark.check),
    ],
)
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_every_kind_of_encoder_at_any_batch_size(tmp_path, build_model, encoder, channels, side, head, format):
    if format == "onnx":
        pytest.importorskip("onnxscript")
    model = build_model(encoder, channels, side, head)
    model.save(tmp_path / "run")
    folder = export(tmp_path / "run", format=format, quiet=True)
    if format == "onnx":
        session = session_of(folder)
        call = lambda images: session.run(None, {"images": images})  # noqa: E731
    else:
        program = torch.export.load(folder / "model.pt2").module()
        call = lambda images: [x.detach().numpy() for x in program(torch.from_numpy(images))]  # noqa: E731
    for count in (1, 2, 5):
        pixels = pixels_for(model, count)
        logits, probabilities = call(normalised(model, pixels))
        assert logits.shape == probabilities.shape == (count, 3)
        assert probabilities == pytest.approx(slow_probabilities(model, pixels), abs=1e-4)
        assert logits == pytest.approx(model.logits(torch.from_numpy(pixels)).numpy(), abs=1e-4 * 30)


@pytest.mark.parametrize("side", [pytest.param(160, marks=pytest.mark.check), 64])  # its own size; and resampled
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_transformer_takes_pixels_and_carries_its_class_names(tmp_path, build_model, format, side):
    if format == "onnx":
        pytest.importorskip("onnxscript")
    model = build_model("test_vit", 3, side, "cosine")
    model.save(tmp_path / "run")
    folder = export(tmp_path / "run", format=format, preprocessing=True, quiet=True)
    pixels = pixels_for(model, 3)
    if format == "onnx":
        session = session_of(folder)
        assert [entry.type for entry in session.get_inputs()] == ["tensor(uint8)"]
        about = session.get_modelmeta().custom_metadata_map
        _, probabilities = session.run(None, {"images": pixels})
    else:
        extra = {"longtail.json": ""}
        program = torch.export.load(folder / "model.pt2", extra_files=extra).module()
        about = json.loads(extra["longtail.json"])
        probabilities = program(torch.from_numpy(pixels))[1].detach().numpy()
    assert json.loads(about["class_names"]) == list(model.class_names)
    assert probabilities == pytest.approx(slow_probabilities(model, pixels), abs=1e-4)


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_pixels_prior_and_temperature_inside(calibrated, model, format):
    if format == "onnx":
        pytest.importorskip("onnxscript")
    folder = export(calibrated, format=format, preprocessing=True, prior_input=True, quiet=True)
    pixels, log_prior = pixels_for(model, 4), PRIOR.log().numpy()
    if format == "onnx":
        session = session_of(folder)
        assert [entry.type for entry in session.get_inputs()] == ["tensor(uint8)", "tensor(float)"]
        logits, probabilities = session.run(None, {"images": pixels, "log_prior": log_prior})
    else:
        program = torch.export.load(folder / "model.pt2").module()
        logits, probabilities = (
            x.detach().numpy() for x in program(torch.from_numpy(pixels), torch.from_numpy(log_prior))
        )
    assert probabilities == pytest.approx(slow_probabilities(model, pixels, 1.7, PRIOR), abs=1e-5)
    exp = np.exp(logits - logits.max(1, keepdims=True))
    assert exp / exp.sum(1, keepdims=True) == pytest.approx(probabilities, abs=1e-5)


def test_the_metadata_say_how_to_use_it(calibrated, model):
    pytest.importorskip("onnxscript")
    about = session_of(export(calibrated, quiet=True)).get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == list(model.class_names)
    assert json.loads(about["class_counts"]) == [150, 40, 3]
    assert json.loads(about["logit_prior"]) == pytest.approx([1 / 3] * 3)
    assert json.loads(about["mean"]) == pytest.approx([0.4, 0.5, 0.45])
    assert json.loads(about["std"]) == pytest.approx([0.2, 0.25, 0.3])
    assert json.loads(about["framing"]) == {"size": [16, 16], "resize": 20, "interpolation": "bicubic"}
    assert json.loads(about["temperature"]) == 1.7
    assert about["longtail_version"] == longtail.__version__
    assert session_of(calibrated / "export" / "onnx").get_inputs()[0].shape == ["batch", 3, 16, 16]
    assert about["images"] == "float32 [batch, 3, 16, 16], (pixel / 255 - mean) / std"
    extra = {formats.TORCH_RECORD: ""}
    folder = export(calibrated, format="torch", uncalibrated=True, quiet=True)
    torch.export.load(folder / "model.pt2", extra_files=extra)
    record = json.loads(extra[formats.TORCH_RECORD])
    assert record == {key: value for key, value in about.items() if key != "temperature"}


def painting(generator, height, width):
    """A picture with soft shapes, hard edges and some noise."""
    coarse = generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int64)
    image[height // 4 : height // 2, width // 3 : width // 2] = generator.integers(0, 256, 3)
    return np.clip(image + generator.integers(-6, 7, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.check
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_inside_is_close_to_pillow(tmp_path, build_model, interpolation):
    pytest.importorskip("onnxscript")
    model = build_model(side=16, resize=20, interpolation=interpolation)
    model.save(tmp_path / "run")
    session = session_of(export(tmp_path / "run", resizing=True, quiet=True))
    generator = np.random.default_rng(0)
    for height, width in ((16, 16), (20, 20), (41, 57), (300, 123), (12, 200), (17, 9), (64, 64)):
        image = painting(generator, height, width)
        _, probabilities = session.run(None, {"images": image.transpose(2, 0, 1)[None]})
        framed = fit(Image.fromarray(image), model.framing).transpose(2, 0, 1)[None]
        assert probabilities == pytest.approx(slow_probabilities(model, framed), abs=0.03), (height, width)


def test_resized_pixels_are_pillows_but_for_one_level(build_model):
    from longtail.deployment.graph import resize_to_framing

    generator = np.random.default_rng(1)
    for interpolation, side, resize in (("bilinear", 16, 20), ("bicubic", 16, 20), ("bilinear", 15, 16)):
        framing = build_model(side=side, resize=resize, interpolation=interpolation).framing
        for height, width in ((41, 57), (300, 123), (33, 33), (17, 19), (128, 40)):
            image = painting(generator, height, width)
            ours = resize_to_framing(torch.from_numpy(image.transpose(2, 0, 1)[None].copy()), framing)[0].numpy()
            gap = np.abs(ours - fit(Image.fromarray(image), framing).transpose(2, 0, 1))
            # The two steps and the one differ most where a side is not a whole number of pixels after resizing.
            assert np.median(gap) <= 1, (interpolation, height, width)
            assert gap.mean() <= 1.0, (interpolation, height, width)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_in_another_way_is_found(build_model, interpolation):
    model, form = build_model(side=16, resize=20, interpolation=interpolation), Form(resizing=True)
    module = formats.DeployedClassifier(model, form).eval()

    def careless(inputs):
        """Without antialiasing."""
        height, width = inputs[0].shape[-2:]
        sides = [20 * side // min(height, width) for side in (height, width)]
        pixels = torch.nn.functional.interpolate(inputs[0].float(), sides, mode=interpolation)
        return module(pixels.round().clamp(0, 255))

    assert check_against_torch(lambda inputs: module(*inputs), model, form, "x") == pytest.approx(0, abs=1e-5)
    with pytest.raises(UserError, match="do not agree"):
        check_against_torch(careless, model, form, "x")
    said = measure_resizing(lambda inputs: module(*inputs), model, form)
    assert re.search(r"pixels that torch resizes in the same way by [\d.]+ of 255 levels", said)


@pytest.mark.check
@pytest.mark.parametrize(
    ("encoder", "side", "resize", "interpolation"),
    [("small_net", 16, 20, "bicubic"), ("cifar_resnet20", 64, 73, "bilinear"), ("resnet18", 224, 256, "bicubic")],
)
def test_resizing_of_the_file_agrees_with_torch(tmp_path, build_model, encoder, side, resize, interpolation):
    pytest.importorskip("onnxscript")
    build_model(encoder, 3, side, "cosine", resize, interpolation).save(tmp_path / "run")
    assert (export(tmp_path / "run", resizing=True, quiet=True) / "model.onnx").is_file()


@pytest.mark.parametrize(
    ("channels", "side", "resize"), [pytest.param(1, 16, 16, marks=pytest.mark.check), (3, 17, 17), (3, 17, 20)]
)
def test_a_torch_file_that_resizes_takes_images_of_any_shape(tmp_path, build_model, channels, side, resize):
    """Also where the framing cuts nothing off: a program that was traced for oblong images must take square ones."""
    model = build_model("small_net", channels, side, "cosine", resize)
    model.save(tmp_path / "run")
    folder = export(tmp_path / "run", format="torch", resizing=True, quiet=True)
    module = torch.export.load(folder / "model.pt2").module()
    for height, width in ((side, side), (1, 1), (40, 23), (9, 70)):
        pixels = torch.randint(0, 256, (2, channels, height, width), dtype=torch.uint8)
        framed = resize_to_framing(pixels, model.framing).to(torch.uint8)
        torch.testing.assert_close(module(pixels)[0], model.logits(framed), rtol=1e-4, atol=1e-4)


def test_safetensors_load_without_the_run(calibrated, model, tmp_path):
    folder = export(calibrated, format="safetensors", out=tmp_path / "handed-on", quiet=True)
    shutil.rmtree(calibrated)
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "calibration.json",
        "model.json",
        "model.safetensors",
    ]
    pixels = torch.from_numpy(pixels_for(model, 3))
    loaded = longtail.load(folder)
    assert torch.equal(loaded.logits(pixels), model.logits(pixels))
    assert loaded.temperature == 1.7
    assert loaded.predict(pixels).numpy() == pytest.approx(slow_probabilities(model, pixels.numpy(), 1.7), abs=1e-6)
    assert loaded.predict(pixels, prior=PRIOR).numpy() == pytest.approx(
        slow_probabilities(model, pixels.numpy(), 1.7, PRIOR), abs=1e-6
    )


def test_predict_says_the_same_of_an_export_as_of_its_run(calibrated, model, desk):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    logits = torch.randn(60, 3, generator=generator) + 2 * torch.eye(3)[labels]
    save_tensors(calibrated, "validation", {"logits": logits, "labels": labels}, {})
    folder = export(calibrated, format="safetensors", quiet=True)
    np.savez("x.npz", images=pixels_for(model, 5))
    words = ["x.npz", "--coverage", "0.8", "--format", "jsonl"]
    said = [desk.run("predict", place, *words) for place in (calibrated, folder)]
    assert "temperature 1.7" in said[0][1]
    assert said[0] == said[1]


def test_a_model_without_its_run_is_enough(tmp_path, model):
    model.save(tmp_path / "model")
    folder = export(tmp_path / "model", format="torch", out=tmp_path / "out", quiet=True)
    assert (folder / "model.pt2").is_file()
    assert "None: there is no evaluation.json" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("channels", "format", "options"),
    [
        (3, "onnx", {"prior_input": True}),
        (1, "torch", {"prior_input": True}),
        (1, "safetensors", {}),
        pytest.param(1, "onnx", {"resizing": True}, marks=pytest.mark.check),
        pytest.param(3, "onnx", {"resizing": True, "prior_input": True}, marks=pytest.mark.check),
        pytest.param(3, "onnx", {"preprocessing": True}, marks=pytest.mark.check),
        pytest.param(3, "torch", {"preprocessing": True}, marks=pytest.mark.check),
        pytest.param(3, "safetensors", {}, marks=pytest.mark.check),
    ],
)
def test_the_python_in_the_card_runs_and_is_right(
    tmp_path, build_model, monkeypatch, capsys, format, options, channels
):
    if format == "onnx":
        pytest.importorskip("onnxscript")
    model = build_model(channels=channels, side=16, resize=20)
    model.save(tmp_path / "run")
    folder = export(tmp_path / "run", format=format, quiet=True, **options)
    image = Image.fromarray(painting(np.random.default_rng(3), 47, 60))
    (image if channels == 3 else image.convert("L")).save(folder / "photo.jpg", quality=95)
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[0]
    monkeypatch.chdir(folder)
    exec(compile(code, "card", "exec"), {})
    name, probability = capsys.readouterr().out.rsplit(maxsplit=1)
    framed = fit(read_image(folder / "photo.jpg"), model.framing).transpose(2, 0, 1)[None][:, :channels]
    expected = model.predict(torch.from_numpy(framed.copy()))[0]
    assert name == model.class_names[int(expected.argmax())]
    assert float(probability) == pytest.approx(float(expected.max()), abs=0.03)


def test_a_difference_to_torch_leaves_no_file(run, monkeypatch):
    class Broken(formats.DeployedClassifier):
        def forward(self, images, log_prior=None):
            logits, probabilities = super().forward(images, log_prior)
            return logits + 0.01, probabilities

    monkeypatch.setattr(formats, "DeployedClassifier", Broken)
    with pytest.raises(UserError, match=r"do not agree.*nothing was written"):
        export(run, format="torch", quiet=True)
    assert not [p.name for p in run.rglob("*") if "export" in p.parts or p.suffix in (".pt2", ".tmp")]


@pytest.mark.parametrize("place", ["current folder", "link"])
def test_a_folder_that_stands_stays_and_holds_the_export(run, tmp_path, monkeypatch, place):
    folder = tmp_path / "here"
    folder.mkdir()
    out = Path(".")
    if place == "link":
        out = tmp_path / "elsewhere" / "link"
        out.parent.mkdir()
        out.symlink_to(folder)
    else:
        monkeypatch.chdir(folder)
    before = folder.stat().st_ino
    export(run, format="card", out=out, quiet=True)
    (folder / "README.md").write_text("old")
    export(run, format="card", out=out, overwrite=True, quiet=True)
    assert folder.stat().st_ino == before
    assert [p.name for p in folder.iterdir()] == ["README.md"]
    assert (folder / "README.md").read_text() != "old"
    assert not [p for p in (*tmp_path.iterdir(), *out.parent.iterdir()) if p.suffix in (".tmp", ".old")]
    assert out.is_symlink() == (place == "link")


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
def test_files_that_cannot_be_exchanged_are_all_left(tmp_path, monkeypatch, fails_at):
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_text("old")
    rename, calls = Path.rename, []

    def failing(self, target):
        calls.append(self)
        if len(calls) == fails_at:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)

    def replace():
        with whole_folder(folder) as fresh:
            for name in ("b", "c"):
                (fresh / name).write_text("new")

    with pytest.raises(UserError, match="Input/output error"):
        replace()
    assert {p.name: p.read_text() for p in folder.iterdir()} == {"a": "old", "b": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["here"]


def test_an_earlier_export_stays_unless_overwrite(run, desk):
    desk.run("export", run, "--format", "card", "--quiet")
    kept = desk.snapshot(run)
    desk.refuse("export", run, "--format", "card", naming=["README.md", "--overwrite"])
    assert desk.snapshot(run) == kept
    desk.run("export", run, "--format", "card", "--overwrite", "--quiet")
    (run / "export" / "card" / "mine.txt").write_text("mine")
    desk.refuse("export", run, "--format", "card", "--overwrite", naming=["mine.txt"])
    assert (run / "export" / "card" / "mine.txt").read_text() == "mine"


def test_overwrite_keeps_the_old_export_if_the_new_one_fails(run, monkeypatch):
    folder = export(run, format="safetensors", quiet=True)
    before = (folder / "model.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "write_tensors", full)
    with pytest.raises(UserError, match="No space left on device"):
        export(run, format="safetensors", overwrite=True, quiet=True)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [p.name for p in folder.parent.iterdir()] == ["safetensors"]


def test_bad_input_is_refused_in_a_sentence(desk, run):
    desk.refuse("export", "nowhere", naming=["nowhere is not a run folder", "no such folder"])
    desk.refuse("export", run, "--format", "onxx", naming=["onxx", "'onnx'"])
    desk.refuse("export", run, "--format", "safetensors", "--prior_input", naming=["--prior_input", "safetensors"])
    file = Path("taken")
    file.write_text("")
    desk.refuse("export", run, "--format", "card", "--out", file, naming=["taken", "file"])
    unfinished = Path("unfinished")
    unfinished.mkdir()
    shutil.copy(run / "config.yaml", unfinished)
    desk.refuse("export", unfinished, "--format", "card", naming=["unfinished", "no model yet", "--resume"])
    shutil.copytree(run, unfinished / "fold-0")
    desk.refuse("export", unfinished, "--format", "card", naming=["fold-0"])
    broken = Path("broken")
    shutil.copytree(run, broken)
    (broken / "model.safetensors").write_bytes(b"cut")
    desk.refuse("export", broken, "--format", "card", naming=["model.safetensors", "cut off"])


def test_missing_packages_are_named(run, desk, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    desk.refuse("export", run, naming=["onnxscript", "pip install 'longtail[onnx]'"])


def test_an_encoder_that_cannot_be_expressed_is_said(run, monkeypatch):
    class Strange(torch.nn.Module):
        def forward(self, images):
            return images.mean((2, 3)).repeat(1, int(images.sum()) % 3 + 1)  # the shape hangs on the pixels

    def load(folder):
        model = Classifier.load(folder)
        model.encoder = Strange()
        return model

    monkeypatch.setattr(command, "load_classifier", load)
    with pytest.raises(UserError, match=r"torch.export cannot express the encoder small_net"):
        export(run, format="torch", quiet=True)


def test_what_is_said(calibrated, desk):
    out, _ = desk.run("export", calibrated, "--format", "torch", "--preprocessing", "--prior_input")
    assert "model.pt2" in out
    assert "uint8 [batch, 3, 16, 16], 0..255" in out
    assert "log_prior" in out
    assert "temperature 1.7" in out
    assert re.search(r"logits differ by at most \d", out)
    assert desk.run("export", calibrated, "--format", "torch", "--overwrite", "--quiet") == ("", "")


@pytest.mark.check
def test_nothing_is_printed_by_the_exporters(run, tmp_path):
    pytest.importorskip("onnxscript")
    script = f"from longtail import export\nexport({str(run)!r}, out={str(tmp_path / 'out')!r}, quiet=True)\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_model_is_read_and_written_as_the_same_classifier(run, model):
    folder = export(run, format="safetensors", quiet=True)
    assert Classifier.load(folder).spec == model.spec
