"""Runs whose head starts from texts: what it is worth before training is kept, and nothing is computed twice."""

import json

import pytest
import torch
from safetensors.torch import save_file

import longtail
import longtail.files
import tiny_clip
from longtail.config import replace_options
from longtail.data import DataSplits, ImageSet
from longtail.errors import UserError
from longtail.methods import MethodContext, get_method
from longtail.models import Classifier, build_encoder, class_embeddings, class_prompts, encoder_defaults, load_weights
from longtail.options import make_config
from longtail.training.defaults import resolve
from longtail.training.guard import Interrupted
from longtail.training.stages import plan_stages
from longtail.training.weight_defaults import choose_pretrained
from longtail.training.zero_shot import TextHeads, read_zero_shot
from whole_runs import run, stop_at_step

pytestmark = pytest.mark.usefixtures("one_thread")
VIT = "open_clip:tiny-ViT"
COUNTS, TESTED = {"ant": 9, "big_bee": 5, "cat": 3}, {"ant": 3, "big_bee": 3, "cat": 3}
RESULTS = "model.safetensors model.json metrics.jsonl evaluation.json zero_shot.json".split()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of the whole tiny model."""
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip.register(folder)
    return tiny_clip.model_and_file("tiny-ViT", folder)[1]


@pytest.fixture(scope="module")
def splits():
    generator = torch.Generator().manual_seed(0)

    def images(counts):
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(list(counts.values())))
        pixels = torch.randint(0, 256, (len(labels), 3, 16, 16), generator=generator, dtype=torch.uint8)
        return ImageSet(pixels, labels, tuple(counts))

    return DataSplits("noise", images(COUNTS), images(TESTED), (0.5,) * 3, (0.25,) * 3, "tiny")


@pytest.fixture
def config(weights, splits):
    def build(**changes):
        given = {
            "data": "x",
            "backbone": VIT,
            "pretrained": str(weights),
            "epochs": 2,
            "batch_size": 6,
            "device": "cpu",
        }
        # As the pixels of `splits` are normalised.
        given |= {"source.mean": list(splits.mean), "source.std": list(splits.std)}
        given |= {"queue.capacity": 24, "checkpoint.every_seconds": 0.0, "optimiser.lr": 1e-4}
        given |= {key.replace("__", "."): value for key, value in changes.items()}
        chosen, _ = resolve(make_config(given), splits)
        return choose_pretrained(chosen, splits)

    return build


def at_start(config, splits, folder):
    """The method of a run's last stage before its first step."""
    stage = plan_stages(config)[-1]
    text = TextHeads(folder, config, splits.train.class_names, torch.device("cpu")).of(stage)
    context = MethodContext(config, stage, splits.train, splits.mean, splits.std, text_weights=text)
    return get_method(stage.method).build(context)


@pytest.mark.parametrize("method", ["cross_entropy", "logit_adjustment", "paco"])
def test_every_head_starts_as_the_zero_shot_classifier(method, config, splits, weights, tmp_path):
    chosen, notes = config(method=method)
    assert (chosen.start.head, notes) == ("text", [])
    built = at_start(chosen, splits, tmp_path).eval()
    texts = class_embeddings(VIT, str(weights), class_prompts("ensemble", list(COUNTS)))
    assert torch.equal(built.head.weight, texts)
    encoder = build_encoder(VIT, 3, (16, 16)).eval()
    load_weights(encoder, VIT, str(weights), 3)
    pixels = (splits.test.images.float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        cosines = torch.nn.functional.normalize(encoder(pixels), dim=1) @ texts.T
        assert torch.equal(built.head(built.encoder(pixels)).argmax(1), cosines.argmax(1))


def test_a_head_may_start_at_random_all_the_same(config, splits, tmp_path):
    chosen, _ = config(method="logit_adjustment", start__head="random")
    texts = at_start(config(method="logit_adjustment")[0], splits, tmp_path).head.weight
    torch.manual_seed(3)
    first = at_start(chosen, splits, tmp_path).head.weight
    assert (first - texts).abs().max() > 0.1
    run(tmp_path / "run", replace_options(chosen, {"epochs": 1}), splits)
    assert not (tmp_path / "run" / "zero_shot.json").exists()
    assert "zero_shot" not in json.loads((tmp_path / "run" / "evaluation.json").read_text())


def test_what_the_head_starts_from_is_chosen_from_the_weights(config, weights, tmp_path):
    assert config(pretrained="none")[0].start.head == "random"
    assert config(backbone="small_net", pretrained=None)[0].start.head is None  # there is no choice
    save_file(build_encoder(VIT, 3).state_dict(), tmp_path / "visual.safetensors")
    chosen, notes = config(pretrained=str(tmp_path / "visual.safetensors"))
    assert chosen.start.head == "random"
    assert "the head starts at random (" in notes[0]
    assert "visual.safetensors does not hold the text tower" in notes[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pretrained": "none"}, "--pretrained, or use --start.head random"),
        ({"backbone": "small_net", "pretrained": None}, "small_net has none"),
        ({"start__prompts": "ensembel"}, "did you mean 'ensemble'"),
    ],
)
def test_texts_that_cannot_be_had_are_refused(config, changes, words):
    with pytest.raises(UserError, match=words):
        config(start__head="text", **changes)


@pytest.mark.parametrize("method", ["gml", "cross_entropy"])
def test_a_run_that_was_stopped_goes_on_from_the_same_heads(method, config, splits, tmp_path, monkeypatch):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a picture of a {}\nmany of {}\n")
    chosen, _ = config(method=method, start__prompts=str(prompts), teacher__kind="frozen")
    evaluation = run(tmp_path / "whole", chosen, splits)
    first = read_zero_shot(tmp_path / "whole")
    assert evaluation["zero_shot"] == first
    assert first["top1"] * 9 == pytest.approx(round(first["top1"] * 9))
    # Stopped in the first stage: in GML's, the student's head is still to come.
    stop_at_step(monkeypatch, get_method("logit_adjustment"), 2)
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", chosen, splits)
    monkeypatch.undo()
    prompts.unlink()

    def never(*_):
        raise AssertionError("texts are embedded anew")

    monkeypatch.setattr("longtail.training.zero_shot.class_embeddings", never)
    run(tmp_path / "stopped", chosen, splits, resume=True)
    for name in RESULTS:
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_teacher_without_a_text_tower_starts_at_random(config, splits, weights, tmp_path):
    save_file(build_encoder(VIT, 3).state_dict(), tmp_path / "visual.safetensors")
    chosen, notes = config(
        method="gml", teacher__kind="frozen", teacher__pretrained=str(tmp_path / "visual.safetensors")
    )
    assert (chosen.start.head, notes) == ("text", [])
    heads = TextHeads(tmp_path, chosen, splits.train.class_names, torch.device("cpu"))
    teacher, student = (heads.of(stage) for stage in plan_stages(chosen))
    assert teacher is None
    assert torch.equal(student, class_embeddings(VIT, str(weights), class_prompts("ensemble", list(COUNTS))))


@pytest.mark.parametrize("crash_at", [1, 2])
def test_a_crash_while_texts_are_written_leaves_a_run_that_can_go_on(crash_at, config, splits, tmp_path, monkeypatch):
    """A teacher with a text tower of its own: two heads, and a crash just before a file that describes them."""
    other = tiny_clip.model_and_file("tiny-ViT", tmp_path, seed=1)[1]
    chosen, _ = config(method="gml", teacher__kind="frozen", teacher__pretrained=str(other), epochs=1)
    expected = {
        weights: class_embeddings(VIT, str(weights), class_prompts("ensemble", list(COUNTS)))
        for weights in (chosen.pretrained, str(other))
    }
    real, calls = longtail.files.write_json, []

    def crash(path, *rest):
        calls.append(path.name == "text_heads.json")
        if sum(calls) == crash_at and calls[-1]:
            raise KeyboardInterrupt
        real(path, *rest)

    monkeypatch.setattr("longtail.files.write_json", crash)
    stop_at_step(monkeypatch, get_method("logit_adjustment"), 1)
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        run(tmp_path / "run", chosen, splits)
    monkeypatch.undo()
    heads = TextHeads(tmp_path / "run", chosen, splits.train.class_names, torch.device("cpu"))
    for stage in plan_stages(chosen):
        assert torch.equal(heads.of(stage), expected[stage.weights])


def test_the_figures_are_those_of_the_text_head(config, splits, weights, tmp_path):
    chosen, _ = config(method="logit_adjustment", epochs=1)
    run(tmp_path, chosen, splits)
    spec = {"encoder": VIT, "in_channels": 3, "head": "cosine"}
    model = Classifier.load(tmp_path)
    encoder = build_encoder(VIT, 3, (16, 16)).eval()
    load_weights(encoder, VIT, str(weights), 3)
    assert model.spec["encoder"] == spec["encoder"]
    texts = class_embeddings(VIT, str(weights), class_prompts("ensemble", list(COUNTS)))
    with torch.no_grad():
        predicted = (encoder(model.preprocess(splits.test.images)) @ texts.T).argmax(1)
    right = predicted == splits.test.labels
    figures = read_zero_shot(tmp_path)
    assert figures["top1"] == pytest.approx(float(right.double().mean()))
    assert figures["balanced_accuracy"] == pytest.approx(float(right.double().mean()))  # classes of the same size
    assert figures["groups"]["few"]["classes"] == 3


def test_from_photos_to_a_deployed_model(desk, make_photos, weights):
    make_photos(desk.folder / "photos" / "train", COUNTS)
    make_photos(desk.folder / "photos" / "test", TESTED, first=50)
    words = f"--backbone {VIT} --pretrained {weights} --image_size 16 --epochs 1 --batch_size 6 --device cpu"
    common = [*words.split(), "--method", "cross_entropy", "--loading.workers", "0", "--out", "run"]
    out, err = desk.run("train", "photos", *common)
    told = out + err
    assert told.count("zero-shot: top-1 ") == 1
    assert "start.head text" in told
    before = read_zero_shot(desk.folder / "run")
    report = (desk.folder / "run" / "report.html").read_text()
    assert "(zero-shot)" in report
    assert f'zero-shot: <data value="{before["top1"]}">' in report
    desk.run("evaluate", "run", "--device", "cpu")
    assert json.loads((desk.folder / "run" / "evaluation.json").read_text())["zero_shot"] == before
    model = longtail.load(desk.folder / "run")
    expected = encoder_defaults(VIT)
    torch.testing.assert_close(model.mean, torch.tensor(expected.mean))
    assert (model.image_size, model.framing.interpolation) == ((16, 16), "bicubic")
    desk.run("predict", "run", "photos/test/ant", "--out", "said.csv", "--device", "cpu")
    assert len((desk.folder / "said.csv").read_text().splitlines()) == 1 + TESTED["ant"]
    desk.run("export", "run", "--format", "onnx")


def test_a_damaged_file_of_figures_is_told(tmp_path):
    assert read_zero_shot(tmp_path) is None
    for text in ('{"top1": 0.5}', "[]", '{"top1": 3, "balanced_accuracy": 0.5, "groups": {}}'):
        (tmp_path / "zero_shot.json").write_text(text)
        with pytest.raises(UserError, match=r"zero_shot\.json cannot be read as figures before training"):
            read_zero_shot(tmp_path)
