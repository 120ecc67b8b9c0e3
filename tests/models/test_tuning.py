"""Tuning a part of an encoder: what starts as it was, what is trained and what is not, and what is deployed."""

import copy
import json
import math
import sys

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from longtail.data import Framing
from longtail.errors import UserError
from longtail.memory import MomentumTeacher
from longtail.models import (
    Classifier,
    TunedEncoder,
    apply_tuning,
    build_classifier,
    build_encoder,
    build_head,
    check_tuning,
    default_rank,
    layer_depths,
    merge_tuning,
    tuning_spec,
)
from longtail.models.adapters import transformer_blocks
from longtail.option_groups import TuneOptions

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = (32, 32)
VIT = "test_vit"
KINDS = ["frozen", "lora", "adapter", "prompt", "bias", "norm"]
FITTING = [*((VIT, kind) for kind in KINDS)]
FITTING += [(name, kind) for name in ("test_resnet", "cifar_resnet20") for kind in ("frozen", "lora", "bias", "norm")]


def options(kind, **given):
    return TuneOptions(kind=kind, **({"rank": 4} if kind in ("lora", "adapter") else {}), **given)


def encoder_of(name, seed=0):
    torch.manual_seed(seed)
    if name == "clip":
        return clip_tower()
    return as_if_trained(build_encoder(name, 3, SIZE))


def as_if_trained(encoder):
    with torch.no_grad():
        for key, tensor in encoder.named_buffers():
            if key.endswith("running_mean"):
                tensor.normal_()
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 2)
        for parameter in encoder.parameters():  # timm starts the last normalisation of a residual block at zero
            if parameter.ndim == 1 and not parameter.any():
                parameter.uniform_(0.1, 0.5)
    return encoder


def clip_tower():
    from open_clip.transformer import VisionTransformer

    tower = VisionTransformer(image_size=32, patch_size=8, width=24, layers=3, heads=2, mlp_ratio=2, output_dim=10)
    tower.feature_dim = 10
    return tower


def images(count=3, seed=9):
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def train_a_little(encoder, steps=3):
    """A few steps on whatever requires a gradient, in training mode."""
    encoder.train()
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.5)
    torch.manual_seed(5)
    wanted = torch.randn(3, encoder.feature_dim)
    for step in range(steps):
        optimiser.zero_grad()
        (encoder(images(seed=step)) * wanted).mean().backward()
        optimiser.step()


@pytest.mark.parametrize(
    ("name", "kind"), [(n, k) for n, k in [*FITTING, ("clip", "lora"), ("clip", "adapter")] if k != "prompt"]
)
def test_features_are_at_first_those_of_the_encoder_as_it_was(name, kind):
    if name == "clip":
        pytest.importorskip("open_clip")
    encoder = encoder_of(name).eval()
    with torch.no_grad():
        before = encoder(images())
        tuned = apply_tuning(copy.deepcopy(encoder), options(kind), name).train()
        assert torch.equal(tuned(images()), before)  # also in training mode: no dropout, no statistics of the batch
    assert tuned.feature_dim == encoder.feature_dim


NORMS = (nn.LayerNorm, nn.BatchNorm2d)
MEANT = {
    "frozen": lambda key: False,
    "lora": lambda key: "lora_A" in key or "lora_B" in key,
    "adapter": lambda key: any(f".mlp.{part}" in key for part in ("down.", "up.", "scale")),
    "prompt": lambda key: key.endswith(".prompts"),
    "bias": lambda key: key.endswith("bias"),
}


@pytest.mark.parametrize(
    ("name", "kind"), [(n, k) for n, k in [*FITTING, ("clip", "lora"), ("clip", "bias")] if k != "frozen"]
)
def test_only_what_is_meant_changes(name, kind):
    if name == "clip":
        pytest.importorskip("open_clip")
    tuned = apply_tuning(encoder_of(name), options(kind), name)
    before = {key: tensor.clone() for key, tensor in tuned.state_dict().items()}
    train_a_little(tuned)
    after = tuned.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    parameters = dict(tuned.named_parameters())
    norms = [f"{key}." for key, part in tuned.named_modules() if isinstance(part, NORMS)]
    meant = {key for key in parameters if (key.startswith(tuple(norms)) if kind == "norm" else MEANT[kind](key))}
    assert {key for key, parameter in parameters.items() if parameter.requires_grad} == meant
    assert meant
    assert changed == meant


def test_nothing_of_a_frozen_encoder_enters_a_graph():
    tuned = apply_tuning(encoder_of("test_resnet"), options("frozen"), "test_resnet").train()
    before = {key: tensor.clone() for key, tensor in tuned.state_dict().items()}
    assert not tuned(images()).requires_grad
    assert all(torch.equal(tensor, before[key]) for key, tensor in tuned.state_dict().items())
    plain = encoder_of("test_resnet").train()
    plain(images())
    assert not torch.equal(plain.bn1.running_mean, before["encoder.bn1.running_mean"])  # what eval mode prevents


@pytest.mark.parametrize("name", [VIT, "test_resnet", "test_efficientnet", "clip"])
def test_merged_lora_is_a_plain_encoder_that_gives_the_same(name):
    if name == "clip":
        pytest.importorskip("open_clip")
    plain = encoder_of(name)
    names = sorted(plain.state_dict())
    tuned = apply_tuning(encoder_of(name), options("lora"), name)
    train_a_little(tuned)
    kept = {key: tensor.clone() for key, tensor in tuned.state_dict().items()}
    merged = merge_tuning(tuned)
    assert sorted(merged.state_dict()) == names
    assert [type(part) for part in merged.modules()] == [type(part) for part in plain.modules()]
    assert not merged._forward_hooks
    assert "peft_config" not in vars(merged)
    with torch.no_grad():
        expected = tuned(images())
        assert torch.allclose(merged.eval()(images()), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(plain.eval()(images()), expected, atol=1e-4)  # it had learned something to merge
    # What is trained on stays as it is, to the last bit.
    assert all(torch.equal(tensor, kept[key]) for key, tensor in tuned.state_dict().items())


# Attention that reads the weight of its map instead of calling it, whole families of timm's.
READERS = {
    "swinv2_tiny_window8_256": {"window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)},
    "beit_base_patch16_224": {"embed_dim": 24, "depth": 2, "num_heads": 2},
    "eva02_tiny_patch14_224": {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 16},
}


@pytest.mark.parametrize("name", list(READERS))
def test_lora_reaches_maps_whose_weights_are_read_without_a_call(name):
    torch.manual_seed(0)
    plain = as_if_trained(timm.create_model(name, num_classes=0, img_size=SIZE, **READERS[name])).eval()
    plain.feature_dim = plain.num_features
    tuned = apply_tuning(copy.deepcopy(plain), options("lora"), name)
    train_a_little(tuned)
    tuned.zero_grad()
    tuned(images()).square().sum().backward()
    dead = {key for key, p in tuned.named_parameters() if p.requires_grad and (p.grad is None or not torch.any(p.grad))}
    assert not dead
    assert any("attn.qkv.lora_B" in key for key, p in tuned.named_parameters() if p.requires_grad)
    merged = merge_tuning(tuned).eval()
    assert [type(part) for part in merged.modules()] == [type(part) for part in plain.modules()]
    with torch.no_grad():
        assert torch.allclose(merged(images()), tuned(images()), rtol=1e-4, atol=1e-5)
    read = [key for key in plain.state_dict() if key.endswith("attn.qkv.weight")]
    assert read
    assert not any(torch.equal(merged.state_dict()[key], plain.state_dict()[key]) for key in read)


def test_every_linear_map_of_clips_packed_attention_is_updated():
    pytest.importorskip("open_clip")
    tuned = apply_tuning(encoder_of("clip"), options("lora"), "clip")
    own = {key.rpartition(".lora")[0] for key, p in tuned.named_parameters() if p.requires_grad}
    block = "encoder.transformer.resblocks.1."
    assert {key.removeprefix(block) for key in own if key.startswith(block)} == {
        "attn.in_proj",
        "attn.out_proj",
        "mlp.c_fc",
        "mlp.c_proj",
    }


@pytest.mark.parametrize("kind", ["frozen", "bias", "norm"])
def test_what_needs_no_merging_is_deployed_as_it_lies(kind):
    encoder = encoder_of(VIT)
    assert merge_tuning(apply_tuning(encoder, options(kind), VIT)) is encoder
    assert tuning_spec(encoder) is None


@pytest.mark.parametrize("name", [VIT, "clip"])
def test_a_prompted_block_is_the_block_on_more_tokens(name):
    if name == "clip":
        pytest.importorskip("open_clip")
    plain = encoder_of(name).eval()
    tuned = apply_tuning(copy.deepcopy(plain), options("prompt", prompts=3), name)
    (where, key), *_ = transformer_blocks(plain)
    prompted = dict(tuned.named_modules())[f"encoder.{'transformer.resblocks' if name == 'clip' else 'blocks'}.0"]
    width = prompted.prompts.shape[1]
    tokens = torch.randn(2, 5, width)
    with torch.no_grad():
        expected = where.get_submodule(key)(torch.cat([prompted.prompts.expand(2, -1, -1), tokens], dim=1))[:, 3:]
        assert torch.allclose(prompted(tokens), expected, atol=1e-5)
        assert not torch.allclose(prompted(tokens), where.get_submodule(key)(tokens), atol=1e-3)
    patch = next(part for part in plain.modules() if isinstance(part, nn.Conv2d)).weight[0].numel()
    assert 0.8 < prompted.prompts.abs().max() / math.sqrt(6 / (patch + width)) <= 1


def test_the_adapter_is_the_papers_equation():
    tuned = apply_tuning(encoder_of(VIT), options("adapter"), VIT)
    adapted = tuned.encoder.blocks[0].mlp
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.normal_()
        x = torch.randn(2, 5, adapted.down.in_features)
        bottleneck = torch.clamp(x @ adapted.down.weight.T + adapted.down.bias, min=0)
        beside = adapted.scale * (bottleneck @ adapted.up.weight.T + adapted.up.bias)
        assert torch.allclose(adapted(x), adapted.mlp(x) + beside, atol=1e-4)
    fresh = apply_tuning(encoder_of(VIT), options("adapter"), VIT).encoder.blocks[0].mlp
    assert fresh.scale.item() == pytest.approx(0.1)
    assert not fresh.up.weight.any()
    assert fresh.down.weight.std() > 0.01


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "cifar_resnet20"])
@pytest.mark.parametrize("kind", ["adapter", "prompt"])
def test_a_kind_that_does_not_fit_names_encoder_and_kinds_that_do(name, kind):
    with pytest.raises(UserError, match=f"--tune.kind {kind} .*{name}.*use frozen, lora, bias, norm or full"):
        check_tuning(options(kind), name, 3, SIZE)


def test_blocks_that_take_no_further_tokens_are_told_from_those_that_do():
    check_tuning(options("prompt"), VIT, 3, SIZE)
    check_tuning(options("adapter"), "test_convnext", 3, SIZE)
    for name in ("test_convnext", "beit_base_patch16_224"):
        with pytest.raises(UserError, match=f"prompt does not fit encoder {name}.*use adapter or frozen, lora"):
            check_tuning(options("prompt"), name, 3, SIZE)


def test_adapters_stand_beside_mlps_that_take_more_than_tokens():
    check_tuning(options("adapter"), "pvt_v2_b0", 3, SIZE)
    torch.manual_seed(0)
    plain = timm.create_model(
        "pvt_v2_b0", num_classes=0, embed_dims=(8, 16, 16, 16), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2)
    ).eval()
    plain.feature_dim = plain.num_features
    tuned = apply_tuning(copy.deepcopy(plain), options("adapter"), "pvt_v2_b0")
    with torch.no_grad():
        assert torch.equal(tuned(images()), plain(images()))
    train_a_little(tuned)
    assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "prompt"])
def test_a_tuned_encoder_that_cannot_be_run_is_refused_before_training(kind, monkeypatch):
    def fails(*_):
        raise RuntimeError("no such pass")

    monkeypatch.setattr(TunedEncoder, "forward", fails)
    with pytest.raises(UserError, match=f"--tune.kind {kind} does not fit encoder {VIT}, which cannot be run with it"):
        check_tuning(options(kind), VIT, 3, SIZE)


@pytest.mark.parametrize("kind", ["frozen", "bias"])
def test_what_is_trained_on_features_is_run_on_features(kind):
    check_tuning(options(kind), "residual_adapter", 24, (1, 1))


def test_lora_without_peft_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="pip install 'longtail\\[clip\\]'"):
        check_tuning(options("lora"), "small_net", 3, SIZE)


def test_the_default_rank_gives_adapters_no_more_weights_than_a_classifier():
    encoder = encoder_of(VIT)
    blocks, width = len(encoder.blocks), encoder.feature_dim
    assert blocks == 6
    for classes, rank in [(2, 1), (12, 1), (23, 1), (24, 2), (100, 8), (1000, 64), (8142, 512)]:
        assert default_rank("adapter", encoder, classes) == rank
        assert rank == 2 ** max(0, math.floor(math.log2(classes / (2 * blocks))))
        assert rank == 1 or 2 * rank * width * blocks <= classes * width < 4 * rank * width * blocks
    assert default_rank("lora", encoder, 1000) == 8
    assert default_rank("prompt", encoder, 1000) is None


def test_a_momentum_teacher_follows_a_tuned_encoder():
    tuned = apply_tuning(encoder_of(VIT), options("lora"), VIT)
    head = build_head("cosine", tuned.feature_dim, 3)
    teacher = MomentumTeacher(tuned, head, 0.9)
    assert torch.equal(teacher.features(images()), tuned(images()).detach())
    train_a_little(tuned)
    before = {key: value.clone() for key, value in teacher.encoder.named_parameters()}
    teacher.update(tuned, head)
    moved = {key for key, value in teacher.encoder.named_parameters() if not torch.equal(value, before[key])}
    assert moved == {key for key, value in tuned.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("kind", ["adapter", "prompt"])
def test_what_cannot_be_merged_is_described_and_loads_to_the_last_bit(kind, tmp_path):
    tuned = apply_tuning(encoder_of(VIT), options(kind), VIT)
    train_a_little(tuned)
    spec = {"encoder": VIT, "in_channels": 3, "head": "cosine", "scale": 30.0, "tuning": tuning_spec(tuned)}
    assert spec["tuning"] == (
        {"kind": "adapter", "rank": 4} if kind == "adapter" else {"kind": "prompt", "prompts": 10}
    )
    head, names, third = build_head("cosine", tuned.feature_dim, 3), ("a", "b", "c"), torch.full((3,), 1 / 3)
    frame = Framing(SIZE, 32, "bicubic")
    model = Classifier(tuned, head, names, torch.ones(3), third, [0.5] * 3, [0.2] * 3, frame, spec).eval()
    model.save(tmp_path)
    loaded = Classifier.load(tmp_path)
    raw = torch.randint(0, 256, (4, 3, *SIZE), dtype=torch.uint8)
    assert isinstance(loaded.encoder, TunedEncoder)
    assert torch.equal(loaded.logits(raw), model.logits(raw))
    program = torch.export.export(loaded.requires_grad_(False), (images(),)).module()
    assert torch.allclose(program(images()), loaded(images()), atol=1e-4)
    rest = (names, torch.ones(3), third, [0.5] * 3, [0.2] * 3, frame)
    other = build_classifier({key: value for key, value in spec.items() if key != "tuning"}, *rest)
    assert not other.state_dict().keys() >= loaded.state_dict().keys()


@pytest.mark.parametrize(
    ("tuning", "words"),
    [
        ({"kind": "adapter", "rank": -1}, "rank '-1', which must be a whole number from 1 to 65536"),
        ({"kind": "adapter", "rank": 0}, "rank '0'"),
        ({"kind": "adapter", "rank": True}, "rank 'True'"),
        ({"kind": "adapter", "rank": 2.0}, r"rank '2\.0'"),
        ({"kind": "adapter", "rank": 10**12}, "rank '1000000000000'"),
        ({"kind": "prompt", "prompts": -1}, "prompts '-1'"),
        ({"kind": "prompt", "prompts": None}, "prompts 'None'"),
        ({"kind": "prompt", "prompts": "many"}, "prompts 'many'"),
        ({"kind": "prompt", "rank": 4}, "what stays in an encoder is"),
        ({"kind": "lora", "rank": 4}, "what stays in an encoder is"),
        ({"kind": "new"}, "what stays in an encoder is"),
        ({"kind": ["adapter"]}, "what stays in an encoder is"),
        ({"kind": "adapter", "rank": 4, "lr_decay": 0.5}, "what stays in an encoder is"),
        ("adapter", "what stays in an encoder is"),
        (None, "what stays in an encoder is"),
    ],
)
def test_a_description_of_a_tuning_that_is_none_is_refused_in_a_sentence(tuning, words, tmp_path):
    spec = {"encoder": VIT, "in_channels": 3, "head": "cosine", "scale": 30.0}
    third, frame = torch.full((3,), 1 / 3), Framing(SIZE, 32, "bicubic")
    model = build_classifier(spec, ("a", "b", "c"), torch.ones(3), third, [0.5] * 3, [0.2] * 3, frame)
    model.spec["tuning"] = tuning
    model.save(tmp_path)
    with pytest.raises(UserError, match=rf"model\.json: its tuning .*{words}.*save it again"):
        Classifier.load(tmp_path)


# What is nearest to the head has depth 1; patterns as timm's own.
DEPTHS = {
    VIT: {"norm.weight": 1, "blocks.5.mlp.fc1.weight": 1, "blocks.0.attn.qkv.weight": 6, "pos_embed": 7},
    "test_resnet": {"layer4.0.conv2.weight": 1, "layer1.0.conv1.weight": 4, "conv1.0.weight": 5, "bn1.bias": 5},
    "cifar_resnet20": {"stages.2.2.conv1.weight": 1, "stages.0.0.bn1.weight": 9, "stem.weight": 10, "stem_bn.bias": 10},
    "small_net": {"layers.6.weight": 1, "layers.7.bias": 1, "layers.3.weight": 2, "layers.0.weight": 3},
    "clip": {"proj": 0, "ln_post.bias": 1, "transformer.resblocks.0.mlp.c_fc.weight": 3, "positional_embedding": 4},
}


@pytest.mark.parametrize("name", list(DEPTHS))
def test_depths_count_layers_from_the_head(name):
    if name == "clip":
        pytest.importorskip("open_clip")
    encoder = encoder_of(name)
    depths = layer_depths(encoder)
    assert depths.keys() == {key for key, _ in encoder.named_parameters()}
    assert {key: depths[key] for key in DEPTHS[name]} == DEPTHS[name]
    tuned = layer_depths(apply_tuning(encoder, options("lora"), name))
    assert tuned.keys() >= {f"encoder.{key}" for key in ("proj",) if key in depths}
    for key, depth in tuned.items():
        plain = key.removeprefix("encoder.").replace(".base_layer", "")
        assert depths.get(plain, depth) == depth


def test_depths_are_those_of_timm_with_its_classifier():
    """timm gives its classifier the whole rate; here the classifier is ours, and everything else must agree."""
    whole = timm.create_model(VIT, num_classes=5, img_size=SIZE)
    groups = param_groups_layer_decay(whole, layer_decay=0.5, weight_decay_exclude_1d=False)
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    depths = layer_depths(encoder_of(VIT))
    for name, parameter in whole.named_parameters():
        assert scales[id(parameter)] == (1 if name.startswith("head") else 0.5 ** depths[name]), name


def test_depths_of_a_clip_tower_around_a_model_of_timm_are_those_of_the_model(tmp_path):
    """As SigLIP and EVA02 have it; the projection above learns with the head."""
    open_clip = pytest.importorskip("open_clip")
    vision = {"timm_model_name": VIT, "timm_pool": "avg", "timm_proj": "linear", "image_size": SIZE[0]}
    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "tiny-trunk.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    with torch.device("meta"):
        tower = build_encoder("open_clip:tiny-trunk", 3, SIZE)
        depths = layer_depths(tower)
        tuned = layer_depths(apply_tuning(tower, options("bias"), "open_clip:tiny-trunk"))
    expected = {f"trunk.{key}": depth for key, depth in DEPTHS[VIT].items() if not key.startswith("norm.")}
    assert {key: depths[key] for key in expected} == expected
    assert depths["head.proj.weight"] == 0
    assert depths.keys() == {key.removeprefix("encoder.") for key in tuned}
    assert tuned == {f"encoder.{key}": depth for key, depth in depths.items()}


def test_an_encoder_that_does_not_tell_its_layers_is_refused():
    with pytest.raises(UserError, match=r"--tune.lr_decay needs the order of the layers.*Sequential"):
        layer_depths(nn.Sequential(nn.Conv2d(3, 4, 3)))
