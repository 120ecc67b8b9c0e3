"""Whole runs that train a part of a pretrained encoder: stopped and resumed, deployed, and what is refused before."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import longtail
from bars import bars
from longtail.config import replace_options
from longtail.errors import UserError
from longtail.methods import MethodContext, get_method
from longtail.methods.gml import GML
from longtail.models import Classifier, TunedEncoder, build_encoder, load_weights
from longtail.option_groups import TuneOptions
from longtail.options import make_config
from longtail.training.defaults import resolve
from longtail.training.guard import Interrupted
from longtail.training.optimisers import build_optimiser, parameter_groups, set_rate
from longtail.training.stages import plan_stages
from longtail.training.time_estimate import estimate_time
from longtail.training.weight_defaults import choose_pretrained
from whole_runs import run, stop_at_step

pytestmark = pytest.mark.usefixtures("one_thread")
RESULTS = ["model.safetensors", "model.json", "metrics.jsonl", "evaluation.json"]
VIT = "test_vit"


@pytest.fixture(scope="module")
def splits():
    """Three classes of 32x32 colour images, 12/5/2 for training and 4 a class for testing."""
    return bars([12, 5, 2], [4, 4, 4], channels=3, side=32, views="light")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file as timm's users have one: the state of a whole model, classifier included."""
    torch.manual_seed(3)
    file = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model(VIT, num_classes=7, img_size=32).state_dict(), file)
    return file


@pytest.fixture
def options(splits, weights):
    """Return a function from changed options to those of a run, resolved and with its weights chosen."""

    def build(**changes):
        given = {
            "data": "bars",
            "epochs": 2,
            "batch_size": 8,
            "device": "cpu",
            "queue.capacity": 24,
            "teacher.epochs": 1,
        }
        given |= {"backbone": VIT, "pretrained": str(weights), "checkpoint.every_seconds": 0.0}
        # As the pixels of `splits` are normalised.
        given |= {"source.mean": list(splits.mean), "source.std": list(splits.std)}
        given |= {key.replace("__", "."): value for key, value in changes.items()}
        config, _ = resolve(make_config({key: value for key, value in given.items() if value is not None}), splits)
        return replace_options(choose_pretrained(config, splits)[0], {"out": "unused"})

    return build


def results(path):
    return {name: (path / name).read_bytes() for name in RESULTS}


TRAINED = {"teacher__kind": "frozen"}
CASES = [
    ("frozen", {}),
    ("frozen", {"teacher__cache": 2}),
    ("lora", {"optimiser__ema": 0.9}),
    ("adapter", {"tune__lr_decay": 0.5, "tune__encoder_lr": 0.3}),
    ("prompt", {"tune__prompts": 2, "teacher__kind": "momentum"}),
    ("bias", {"optimiser__name": "sgd"}),
    ("norm", {"method": "bcl"}),
]


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_a_stop_in_the_middle_resumes_to_the_same_bytes_and_keeps_the_rest(
    kind, changes, tmp_path, options, splits, weights, monkeypatch
):
    config = options(tune__kind=kind, **changes)
    run(tmp_path / "whole", config, splits)
    stop_at_step(monkeypatch, get_method(config.method), 3)
    with pytest.raises(Interrupted, match="its state is saved"):
        run(tmp_path / "stopped", config, splits)
    monkeypatch.undo()
    run(tmp_path / "stopped", config, splits, resume=True)
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")

    model = Classifier.load(tmp_path / "whole")
    own = {key: value for key, value in model.encoder.state_dict().items() if ".down." not in key and ".up." not in key}
    start = timm.create_model(VIT, num_classes=0, img_size=32)
    start.load_state_dict(
        {k: v for k, v in longtail.models.weight_files.read_tensors(weights).items() if not k.startswith("head.")}
    )
    same = {
        key for key, value in start.state_dict().items() if torch.equal(value, plain(own).get(key, torch.zeros(())))
    }
    changed = start.state_dict().keys() - same
    expected = {
        "lora": lambda key: (
            any(part in key for part in ("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight"))
            and key.startswith("blocks.")
        ),
        "bias": lambda key: key.endswith("bias"),
        "norm": lambda key: "norm" in key,
    }.get(kind, lambda key: False)
    assert changed == {key for key in start.state_dict() if expected(key)}
    assert isinstance(model.encoder, TunedEncoder) == (kind in ("adapter", "prompt"))
    assert ("tuning" in model.spec) == (kind in ("adapter", "prompt"))


def plain(state):
    """Names of the encoder as timm has it, whatever was put around its parts."""
    found = {}
    for key, value in state.items():
        name = key.removeprefix("encoder.").replace(".block.", ".").replace(".mlp.mlp.", ".mlp.")
        found[name] = value
    return found


@pytest.mark.parametrize("kind", ["frozen", "lora", "adapter"])
def test_methods_of_two_stages_keep_what_tuning_left(kind, tmp_path, options, splits):
    config = options(method="crt", tune__kind=kind, decoupled__epochs=1)
    evaluation = run(tmp_path / "run", config, splits)
    assert 0 <= evaluation["top1"] <= 1
    first, last = Classifier.load(tmp_path / "run" / "representation"), Classifier.load(tmp_path / "run")
    ends = first.encoder.state_dict(), last.encoder.state_dict()
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    assert not torch.equal(first.head.weight, last.head.weight)
    assert first.spec.get("tuning") == last.spec.get("tuning")


def test_the_best_epoch_of_a_merged_encoder_is_what_is_kept(tmp_path, options, splits, monkeypatch):
    """Validation says that the first epoch is best: the result is that of a run of which nothing later entered."""
    held = replace(splits, validation=splits.test)
    config = options(method="logit_adjustment", tune__kind="lora", val_fraction=0.2, optimiser__schedule="constant")
    kept = []

    def look(self, epoch, figures, classifier, real=longtail.training.selection.BestEpoch.see):
        kept.append(classifier)
        real(self, epoch, {**figures, "val_balanced_accuracy": 1.0 / epoch}, classifier)

    monkeypatch.setattr("longtail.training.selection.BestEpoch.see", look)
    run(tmp_path / "run", config, held)
    found = Classifier.load(tmp_path / "run").state_dict()
    assert all(torch.equal(value, found[key]) for key, value in kept[0].state_dict().items())
    assert not torch.equal(kept[1].encoder.blocks[0].attn.qkv.weight, found["encoder.blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize(("kind", "form"), [("lora", "torch"), ("prompt", "onnx")])
def test_from_image_files_to_an_exported_model(kind, form, desk, make_photos, weights):
    if form == "onnx":
        pytest.importorskip("onnxscript")
    make_photos(desk.folder / "images", {"left": 9, "right": 4}, side=32)
    words = f"train images --backbone {VIT} --image_size 32 --pretrained {weights} --tune.kind {kind} --method "
    words += "logit_adjustment --epochs 1 --batch_size 8 --device cpu --loading.resident true --out run"
    desk.run(*words.split())
    said = json.loads((desk.folder / "run" / "evaluation.json").read_text())
    desk.run("evaluate", "run")
    assert json.loads((desk.folder / "run" / "evaluation.json").read_text())["top1"] == said["top1"]
    desk.run(*"predict run images/left/00.png --out answers.csv".split())
    assert "left" in (desk.folder / "answers.csv").read_text()
    desk.run(*f"export run --format {form} --out exported".split())
    model, raw = longtail.load("run"), torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    pixels, folder = model.preprocess(raw), desk.folder / "exported"
    if form == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(str(folder / "model.onnx"))
        logits = session.run(None, {"images": pixels.numpy()})[0]
    else:
        logits = torch.export.load(folder / "model.pt2").module()(pixels)[0].detach().numpy()
    assert np.abs(logits - model.logits(raw).numpy()).max() < 1e-3


def method_of(config, splits, name="gml", **how):
    stage = plan_stages(config)[-1]
    previous = None
    if stage.takes is not None:
        first = plan_stages(config)[0]
        previous = get_method(first.method).build(MethodContext(config, first, splits.train, splits.mean, splits.std))
        previous = previous.classifier().eval()
    context = MethodContext(config, stage, splits.train, splits.mean, splits.std, previous)
    return get_method(name).build(context)


def test_without_tuning_the_groups_are_the_methods_own(options, splits):
    method = method_of(options(), splits)
    own, found = method.param_groups(), parameter_groups(method, TuneOptions())
    assert [group.keys() for group in found] == [group.keys() for group in own]
    assert [[id(p) for p in group["params"]] for group in found] == [[id(p) for p in group["params"]] for group in own]


def test_every_rate_is_decay_to_the_depth(options, splits):
    config = options(tune__kind="full", tune__lr_decay=0.5, tune__encoder_lr=0.1)
    method = method_of(config, splits)
    groups = parameter_groups(method, config.tune)
    optimiser = build_optimiser(groups, config.optimiser, torch.device("cpu"))
    set_rate(optimiser, 0.8)
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert rates.keys() == {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    expected = {
        "head.weight": 0.8,
        "query_projection.layers.0.weight": 0.8,
        "contrast_loss.log_temperature": 0.8,
        "encoder.norm.weight": 0.08 * 0.5,
        "encoder.blocks.5.attn.qkv.weight": 0.08 * 0.5,
        "encoder.blocks.4.attn.qkv.weight": 0.08 * 0.5**2,
        "encoder.blocks.0.mlp.fc2.bias": 0.08 * 0.5**6,
        "encoder.pos_embed": 0.08 * 0.5**7,
        "encoder.patch_embed.proj.weight": 0.08 * 0.5**7,
    }
    assert {name: rates[name] for name in expected} == pytest.approx(expected)
    # The temperature keeps its own group, without decay.
    decays = {names[id(p)]: group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    assert decays["contrast_loss.log_temperature"] == 0
    assert decays["encoder.norm.weight"] == decays["head.weight"] == config.optimiser.weight_decay


def test_a_rate_on_a_device_is_scaled_in_place():
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimiser = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:], "lr_scale": 0.25}], lr=0.0)
    rates = []
    for group in optimiser.param_groups:
        group["lr"] = torch.zeros(())
        rates.append(group["lr"])
    set_rate(optimiser, 0.5)
    assert [rate.item() for rate in rates] == [0.5, 0.125]


@pytest.mark.parametrize("kind", ["bias", "norm"])
def test_biases_and_norms_alone_are_not_decayed(kind, options, splits):
    config = options(tune__kind=kind)
    method = method_of(config, splits)
    optimiser = build_optimiser(parameter_groups(method, config.tune), config.optimiser, torch.device("cpu"))
    encoder = {id(parameter) for parameter in method.encoder.parameters()}
    decays = {(id(p) in encoder): g["weight_decay"] for g in optimiser.param_groups for p in g["params"] if p.ndim > 0}
    assert decays == {True: 0.0, False: config.optimiser.weight_decay}


def test_a_frozen_encoder_is_not_in_the_optimiser(options, splits):
    method = method_of(options(tune__kind="frozen"), splits)
    trained = {id(p) for group in parameter_groups(method, TuneOptions(kind="frozen")) for p in group["params"]}
    assert trained
    assert not trained & {id(parameter) for parameter in method.encoder.parameters()}


def test_defaults_of_tuned_runs(options, splits):
    assert options(tune__kind="lora").tune.rank == 8
    assert options(tune__kind="adapter").tune.rank == 1
    assert options(tune__kind="bias").tune.rank is None
    config = options(tune__kind="norm", backbone="small_net", pretrained="none")
    assert (config.optimiser.name, config.optimiser.lr) == ("adamw", 1e-3)
    assert options(backbone="small_net", pretrained="none").optimiser.name == "sgd"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"tune__kind": "adapter", "backbone": "small_net", "pretrained": "none"}, ["small_net", "use frozen, lora"]),
        (
            {"tune__kind": "adapter", "teacher__backbone": "cifar_resnet20", **TRAINED},
            ["cifar_resnet20", "--teacher.run"],
        ),
        ({"tune__kind": "lora", "backbone": "small_net", "pretrained": None}, ["small_net", "--pretrained none"]),
        ({"tune__kind": "lora", "teacher__backbone": "small_net", **TRAINED}, ["weights for small_net", "FILE"]),
        ({"tune__kind": "frozen", "method": "infonce"}, ["infonce", "logit_adjustment"]),
        ({"tune__kind": "lora", "method": "crt", "decoupled__run": "x"}, ["--decoupled.run", "leave one"]),
        ({"tune__rank": 4}, ["--tune.rank 4", "lora or adapter"]),
        ({"tune__kind": "lora", "tune__prompts": 4}, ["--tune.prompts 4", "--tune.kind prompt"]),
        ({"tune__kind": "frozen", "tune__lr_decay": 0.5}, ["--tune.lr_decay 0.5", "frozen"]),
        ({"tune__lr_decay": 1.5}, ["--tune.lr_decay", "at most 1"]),
        ({"tune__encoder_lr": 0.0}, ["--tune.encoder_lr", "above 0"]),
    ],
)
def test_what_cannot_be_meant_is_refused_before_training(changes, parts, options, splits):

    def start():
        config = options(**changes)
        get_method(config.method).check(config, splits.train)

    with pytest.raises(UserError) as told:
        start()
    text = str(told.value)
    assert all(part in text for part in parts), text
    assert "\n" not in text


def test_random_weights_are_tuned_where_they_are_asked_for(options):
    assert options(tune__kind="lora", pretrained="none").pretrained == "none"


def test_time_is_told_of_tuned_runs(options, splits):
    for changes, stages in ((TRAINED, ["teacher", "student"]), ({}, ["student"])):
        times = estimate_time(options(tune__kind="lora", **changes), splits, budget=0.2)
        assert [time.name for time in times] == stages


def test_a_tuned_student_is_taught_by_the_pretrained_encoder_as_it_is(options, splits, weights):
    config = options(tune__kind="lora")
    assert (config.teacher.kind, config.teacher.pretrained) == ("pretrained", str(weights))
    method = method_of(config, splits)
    images = torch.randn(2, 3, 32, 32)
    known = build_encoder(VIT, 3, (32, 32)).eval()
    load_weights(known, VIT, str(weights), 3)
    with torch.no_grad():
        assert torch.equal(method.teacher.features(images), known(images))
    assert options().teacher.kind == "frozen"
    assert options(tune__kind="lora", pretrained="none").teacher.kind == "frozen"
    with pytest.raises(UserError, match="distillation compares the logits"):
        GML.check(options(tune__kind="lora", loss__distillation_weight=1.0), splits.train)
    with pytest.raises(UserError, match="needs pretrained weights"):
        GML.check(options(teacher__kind="pretrained", pretrained="none"), splits.train)


def test_a_tuned_student_may_be_taught_by_a_run_of_its_own(options, splits, tmp_path):
    """A small network that was trained whole, as docs/tuning.md advises: given with --teacher.run and nothing else."""
    first = options(method="logit_adjustment", backbone="small_net", pretrained="none", epochs=1)
    run(tmp_path / "teacher", first, splits)
    config = options(tune__kind="lora", teacher__run=str(tmp_path / "teacher"), teacher__epochs=None)
    assert config.teacher.kind == "frozen"
    GML.check(config, splits.train)
    assert [stage.name for stage in plan_stages(config)] == ["student"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"teacher.kind": "pretrained"}, "a teacher of --teacher.kind pretrained is not trained"),
        ({"teacher.kind": "momentum"}, "a teacher of --teacher.kind momentum is not trained"),
        ({"tune.kind": "lora"}, "a teacher of --teacher.kind pretrained is not trained"),
        ({"teacher.run": "somewhere"}, "the teacher of --teacher.run is trained already"),
        ({"method": "bcl"}, "a teacher of --teacher.kind none is not trained"),
        ({"teacher.kind": "frozen"}, None),
        ({"method": "logit_adjustment"}, None),  # which has no teacher to speak of
    ],
)
def test_epochs_of_a_teacher_that_is_not_trained_are_told(changes, told, splits, weights):
    given = {"data": "bars", "device": "cpu", "backbone": VIT, "pretrained": str(weights), **changes}
    assert not [note for note in resolve(make_config(given), splits)[1] if "teacher" in note]
    config, notes = resolve(make_config({**given, "teacher.epochs": 7}), splits)
    assert not [note for note in resolve(config, splits)[1] if "teacher" in note]  # nor when the run goes on
    expected = [] if told is None else [f"--teacher.epochs 7 is not used: {told}."]
    assert [note for note in notes if "teacher" in note] == expected


def test_the_teacher_is_tuned_likewise(options, splits, tmp_path):
    config = options(tune__kind="adapter", epochs=1, teacher__epochs=1, **TRAINED)
    seen = []
    real = GML._build_teacher
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GML, "_build_teacher", lambda self: seen.append(real(self)) or seen[-1])
        run(tmp_path / "run", config, splits)
    assert isinstance(seen[0].encoder, TunedEncoder)
    assert not any(parameter.requires_grad for parameter in seen[0].encoder.parameters())
    assert build_encoder(VIT, 3, (32, 32)).feature_dim == seen[0].encoder.feature_dim
