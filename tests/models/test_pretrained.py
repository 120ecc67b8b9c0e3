import argparse
import fractions
import logging
import pickle
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

from longtail.data import Framing
from longtail.errors import UserError
from longtail.models import build_classifier, build_encoder, choose_weights, load_weights, pretrained

RESNET, VIT = "test_resnet.r160_in1k", "test_vit.r160_in1k"
SIZE = (64, 64)


def published(name, folder, size=160, channels=3, seed=9, file="weights.safetensors"):
    """Return a model of timm with its classifier, and the file that holds all of it."""
    torch.manual_seed(seed)
    options = {"img_size": size} if "vit" in name else {}
    model = timm.create_model(name, in_chans=channels, **options).eval()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):  # other than 0 and 1, as after training
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 2)
    path = Path(folder) / file
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    return model, path


def loaded(name, weights, channels=3, size=SIZE):
    torch.manual_seed(0)
    chosen, note = choose_weights(name, str(weights), channels, size)
    assert (chosen, note) == (str(weights), None)
    encoder = build_encoder(name, channels, size)
    load_weights(encoder, name, chosen, channels)
    return encoder.eval()


def features_of(model, images):
    with torch.no_grad():
        return model.forward_head(model.forward_features(images), pre_logits=True)


def pictures(channels=3, size=SIZE):
    return torch.randn(3, channels, *size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", [RESNET, "test_convnext", "test_efficientnet", "test_nfnet"])
def test_a_file_with_classifier_gives_the_models_own_features(name, tmp_path):
    model, path = published(name, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(name, path)(pictures()), features_of(model, pictures()))


def wrapped(state):
    return {f"module.{key}": tensor for key, tensor in state.items()}


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".pth", lambda state: state),
        (".pt", wrapped),
        (".pth", lambda state: {"epoch": 3, "state_dict": wrapped(state), "args": argparse.Namespace(lr=0.1)}),
        (
            ".bin",
            lambda state: {"model": {f"backbone.{key}": t for key, t in state.items()} | {"neck.w": state["bn1.bias"]}},
        ),
        (".pth.tar", lambda state: {f"_orig_mod.module.model.{key}": tensor for key, tensor in state.items()}),
        (".pth", lambda state: {"state_dict": {key: t * 0 for key, t in state.items()}, "state_dict_ema": state}),
        (".pth", lambda state: {key: t for key, t in state.items() if not key.endswith("num_batches_tracked")}),
    ],
    ids=["plain", "module", "nested", "backbone", "compiled", "average", "no counters"],
)
def test_what_training_programs_wrap_around_is_understood(tmp_path, suffix, content):
    model, _ = published(RESNET, tmp_path)
    path = tmp_path / f"checkpoint{suffix}"
    torch.save(content(model.state_dict()), path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(RESNET, path)(pictures()), features_of(model, pictures()))


def test_a_file_of_the_old_torch_format_is_read(tmp_path):
    model, path = published(RESNET, tmp_path, file="old.pth")
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    with torch.no_grad():
        torch.testing.assert_close(loaded(RESNET, path)(pictures()), features_of(model, pictures()))


@pytest.mark.parametrize("name", [RESNET, VIT])
def test_gray_images_see_what_the_same_images_in_colour_would(name, tmp_path):
    _, path = published(name, tmp_path, size=64)
    gray, colour = loaded(name, path, channels=1), loaded(name, path)
    images = pictures(channels=1)
    with torch.no_grad():
        torch.testing.assert_close(gray(images), colour(images.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (160, 160)])
def test_position_embeddings_are_resampled_as_timm_does(tmp_path, size):
    _, path = published(VIT, tmp_path)
    expected = timm.create_model(
        VIT, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, num_classes=0, img_size=size
    ).eval()
    ours = loaded(VIT, path, size=size)
    for key, tensor in expected.state_dict().items():
        assert torch.equal(ours.state_dict()[key], tensor), key
    with torch.no_grad():
        assert torch.equal(ours(pictures(size=size)), expected(pictures(size=size)))


@pytest.mark.parametrize(("name", "channels"), [("small_net", 1), (RESNET, 3), (VIT, 3)])
@pytest.mark.parametrize("which", ["folder", "file"])
def test_what_another_run_trained_is_taken(tmp_path, name, channels, which):
    spec = {"encoder": name, "in_channels": channels, "head": "linear"}
    statistics = [0.5] * channels
    framing = Framing(SIZE, resize=64)
    torch.manual_seed(5)
    run = build_classifier(spec, ("a", "b"), torch.ones(2), torch.ones(2), statistics, statistics, framing)
    run.save(tmp_path)
    weights = tmp_path if which == "folder" else tmp_path / "model.safetensors"
    encoder = loaded(name, weights, channels)
    images = pictures(channels)
    with torch.no_grad():
        assert torch.equal(encoder(images), run.eval().encoder(images))


def test_another_architecture_names_the_first_tensors_and_changes_nothing(tmp_path):
    _, path = published(RESNET, tmp_path)
    encoder = build_encoder(VIT, 3, SIZE)
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    words = (
        rf"--pretrained {path} does not fit encoder {VIT} in \d+ tensors, first cls_token \(file: missing; "
        r"encoder: \[1, 1, 64\]\), pos_embed \(file: missing; encoder: \[1, 17, 64\]\), .*choose the encoder"
    )
    with pytest.raises(UserError, match=words) as caught:
        choose_weights(VIT, str(path), 3, SIZE)
    assert str(caught.value).count("(file: ") == 3
    with pytest.raises(UserError, match=words):
        load_weights(encoder, VIT, str(path), 3)
    assert all(torch.equal(tensor, before[key]) for key, tensor in encoder.state_dict().items())


def test_other_shapes_are_told_with_both_and_counted(tmp_path):
    model, path = published(RESNET, tmp_path)
    state = model.state_dict()
    state["bn1.bias"], state["layer1.0.bn1.weight"] = torch.ones(5), torch.ones(7, 2)
    save_file(state, path)
    words = (
        r"in 2 tensors, first bn1.bias \(file: \[5\]; encoder: \[32\]\), "
        r"layer1.0.bn1.weight \(file: \[7, 2\]; encoder: \[\d+\]\); "
    )
    with pytest.raises(UserError, match=words):
        choose_weights(RESNET, str(path), 3, SIZE)


def test_a_deeper_network_of_the_same_kind_is_refused(tmp_path):
    # Every tensor of the shallow one is found in its file, with its shape.
    save_file(build_encoder("cifar_resnet32", 3).state_dict(), tmp_path / "deep.safetensors")
    with pytest.raises(UserError, match=r"does not fit encoder cifar_resnet20 .*stages\.0\.3.*encoder: missing"):
        choose_weights("cifar_resnet20", str(tmp_path / "deep.safetensors"), 3, (32, 32))


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("w.safetensors", cut, "cannot be read as a file of weights.*cut off"),
        ("w.pth", cut, "cannot be read as a file of weights.*cut off"),
        ("w.safetensors", lambda path: path.write_bytes(b""), "cannot be read as a file of weights"),
        ("w.pt", lambda path: path.write_bytes(b""), "cannot be read as a file of weights.*empty"),
        ("w.pt", lambda path: path.write_text("hello, this is a text"), "cannot be read as a file of weights"),
        ("w.bin", lambda path: path.write_text("<!DOCTYPE html>"), "cannot be read as a file of weights"),
        ("w.bin", lambda path: path.write_bytes(bytes(range(256)) * 8), "cannot be read as a file of weights"),
        ("w.safetensors", lambda path: path.write_text("hello, this is a text"), "cannot be read"),
        ("w.pth", lambda path: torch.save(torch.nn.Linear(2, 2), path), "more than tensors.*convert it to safetensors"),
        (
            "w.pth",
            lambda path: torch.save({"a": fractions.Fraction(1)}, path, _use_new_zipfile_serialization=False),
            "more than tensors.*convert it to safetensors",
        ),
        ("w.pth", lambda path: path.write_bytes(pickle.dumps(fractions.Fraction(1, 2))), "more than tensors"),
        ("w.pth", lambda path: torch.save({"epoch": 3}, path), "holds no tensors with names"),
        ("w.pth", lambda path: torch.save(torch.ones(3), path), "holds no tensors with names"),
        ("w.pth", lambda path: path.unlink(), "there is no file"),
    ],
)
def test_files_that_cannot_be_read_are_one_sentence(tmp_path, recwarn, file, damage, words):
    _, path = published(RESNET, tmp_path, file=file)
    damage(path)
    with pytest.raises(UserError, match=words) as caught:
        choose_weights(RESNET, str(path), 3, SIZE)
    assert not recwarn.list
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class TouchesAFile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_code_in_a_file_is_run(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1)}, "extra": TouchesAFile(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="more than tensors"):
        choose_weights(RESNET, str(tmp_path / "w.pth"), 3, SIZE)
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_a_model_is_told(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*model\.safetensors"):
        choose_weights("small_net", str(tmp_path), 1, (8, 8))


@pytest.fixture
def hub(monkeypatch):
    """A hub that tests fill: full name of weights to local file, or to the error to raise."""
    files, asked = {}, []

    def hub_file(weights):
        asked.append(weights)
        found = files.get(weights, OSError("[Errno -2] Name or service not known"))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(pretrained, "hub_file", hub_file)
    files["asked"] = asked
    return files


@pytest.mark.parametrize("wanted", [None, "auto", "hub", "r160_in1k", RESNET])
def test_hub_weights_by_every_name_are_the_same(tmp_path, hub, wanted):
    model, hub[RESNET] = published(RESNET, tmp_path)
    chosen, note = choose_weights("test_resnet", wanted, 3, SIZE)
    assert (chosen, note) == (RESNET, None)
    assert choose_weights("test_resnet", chosen, 3, SIZE) == (chosen, None)
    encoder = build_encoder("test_resnet", 3, SIZE).eval()
    load_weights(encoder, "test_resnet", chosen, 3)
    with torch.no_grad():
        torch.testing.assert_close(encoder(pictures()), features_of(model, pictures()))


def test_what_else_timm_publishes_in_a_file_is_let_be(tmp_path, hub):
    model, path = published(RESNET, tmp_path)
    save_file(model.state_dict() | {"attn_pool.weight": torch.ones(3)}, path)
    hub[RESNET] = path
    assert choose_weights("test_resnet", "hub", 3, SIZE) == (RESNET, None)
    with pytest.raises(UserError, match=r"in 1 tensors, first attn_pool.weight \(file: \[3\]; encoder: missing\)"):
        choose_weights("test_resnet", str(path), 3, SIZE)


def test_any_repository_of_the_hub_is_taken(tmp_path, hub):
    name = "hf-hub:someone/their-resnet"
    _, hub[name] = published(RESNET, tmp_path)
    assert choose_weights("test_resnet", name, 3, SIZE) == (name, None)
    hub[name] = published(VIT, tmp_path)[1]
    with pytest.raises(UserError, match="does not fit encoder test_resnet"):
        choose_weights("test_resnet", name, 3, SIZE)
    with pytest.raises(UserError, match=r"small_net.*no weights on the hub"):
        choose_weights("small_net", name, 3, SIZE)


def test_without_a_network_auto_starts_from_scratch_and_says_so(hub):
    chosen, note = choose_weights("test_resnet", None, 3, SIZE)
    assert chosen == "none"
    assert "test_resnet" in note
    assert "no network" in note
    assert "Name or service not known" not in note  # words of a resolver help nobody who knows there is no network
    assert "from scratch" in note
    assert choose_weights("test_resnet", chosen, 3, SIZE) == ("none", None)


@pytest.mark.parametrize("wanted", ["hub", "r160_in1k", RESNET, "hf-hub:timm/test_resnet"])
def test_without_a_network_a_hub_name_is_an_error(hub, wanted):
    full = wanted if ":" in wanted else RESNET
    words = rf"--pretrained {full}: no network for this hub name .*--pretrained FILE, .*--pretrained none\.$"
    with pytest.raises(UserError, match=words):
        choose_weights("test_resnet", wanted, 3, SIZE)
    with pytest.raises(UserError, match=words):
        load_weights(build_encoder("test_resnet", 3, SIZE), "test_resnet", full, 3)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (errors.GatedRepoError, "logged in"),
        (errors.RepositoryNotFoundError, "no such repository"),
        (errors.RevisionNotFoundError, "no such repository or revision"),
    ],
)
def test_what_the_hub_refuses_is_told(hub, kind, words):
    error = kind.__new__(kind)
    Exception.__init__(error, "401 Client Error; see the page\n\nfor more")
    hub[RESNET] = error
    with pytest.raises(UserError, match=words) as caught:
        choose_weights("test_resnet", "hub", 3, SIZE)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_no_missing_network(hub):
    hub[RESNET] = OSError(28, "No space left on device")
    with pytest.raises(UserError, match=r"cannot be stored here .*No space left"):
        choose_weights("test_resnet", "hub", 3, SIZE)


def test_a_model_without_published_weights(hub):
    name = next(n for n in timm.list_models("resnet*") if not timm.get_pretrained_cfg(n).has_weights)
    chosen, note = choose_weights(name, None, 3, SIZE)
    assert chosen == "none"
    assert "publishes no weights" in note
    with pytest.raises(UserError, match="publishes no weights"):
        choose_weights(name, "hub", 3, SIZE)
    assert hub["asked"] == []


@pytest.mark.parametrize(
    ("encoder", "wanted", "words"),
    [
        ("resnet50", "a9_in1k", r"unknown --pretrained weights of resnet50 'a9_in1k'; did you mean .*'a\d_in1k'"),
        ("resnet50", "atuo", "did you mean 'auto'"),
        ("resnet50", "resnet18.a1_in1k", "are weights of resnet18, but the encoder is resnet50"),
        ("resnet50", "timm/resnet50", "no such file or folder .*hf-hub:"),
        ("small_net", "a1_in1k", "no such file or folder"),
        ("small_net", "hub", "'small_net' has no weights on the hub"),
        ("resnet5000", None, "unknown encoder 'resnet5000'; did you mean"),
        ("vit_tiny_patch16_224", "none", "cannot take images of 8x8"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_hub_is_asked(hub, encoder, wanted, words):
    with pytest.raises(UserError, match=words):
        choose_weights(encoder, wanted, 3, (8, 8))
    assert hub["asked"] == []


def test_our_own_encoders_start_from_scratch_without_a_word(hub):
    for wanted in (None, "auto", "none"):
        assert choose_weights("cifar_resnet20", wanted, 3, (32, 32)) == ("none", None)
    assert choose_weights("test_resnet", "none", 3, SIZE) == ("none", None)
    encoder = build_encoder("small_net", 1)
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    load_weights(encoder, "small_net", "none", 1)
    assert all(torch.equal(tensor, before[key]) for key, tensor in encoder.state_dict().items())


def test_choosing_draws_no_random_number_and_is_repeatable(tmp_path):
    _, path = published(VIT, tmp_path)
    torch.manual_seed(1)
    choose_weights(VIT, str(path), 3, (48, 48))
    moved = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(moved, torch.rand(1))


@pytest.fixture
def client(monkeypatch, tmp_path):
    """The hub's client with a cache and a remote side that tests fill; it never reaches out."""
    state = {"cache": set(), "remote": set(), "calls": []}

    def download(filename, repo_id, revision=None, local_files_only=False):
        state["calls"].append(("cache" if local_files_only else "download", repo_id, revision, filename))
        if local_files_only and filename not in state["cache"]:
            raise errors.LocalEntryNotFoundError("not in the cache")
        return str(tmp_path / filename)

    def metadata(url, timeout):
        assert timeout <= 10
        logging.getLogger("huggingface_hub.utils").warning("a warning about tokens")
        if not state["remote"]:
            raise ConnectionError("unreachable")
        if url.rsplit("/", 1)[-1] not in state["remote"]:
            error = errors.EntryNotFoundError.__new__(errors.EntryNotFoundError)
            Exception.__init__(error, "404")
            raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    return state


def test_the_cache_is_asked_before_the_network(client, tmp_path):
    client["cache"] = {"pytorch_model.bin"}
    assert pretrained.hub_file(RESNET) == tmp_path / "pytorch_model.bin"
    assert [call[0] for call in client["calls"]] == ["cache", "cache"]
    assert {call[1:3] for call in client["calls"]} == {("timm/test_resnet.r160_in1k", None)}


def test_safetensors_are_preferred_and_a_revision_is_kept(client, tmp_path):
    client["remote"] = {"model.safetensors", "pytorch_model.bin"}
    assert pretrained.hub_file("hf-hub:someone/model@v2") == tmp_path / "model.safetensors"
    assert client["calls"][-1] == ("download", "someone/model", "v2", "model.safetensors")
    client["remote"] = {"pytorch_model.bin"}
    assert pretrained.hub_file(RESNET) == tmp_path / "pytorch_model.bin"


def test_without_a_network_nothing_is_tried_twice_or_printed(client, capfd):
    with pytest.raises(ConnectionError):
        pretrained.hub_file(RESNET)
    assert [call[0] for call in client["calls"]] == ["cache", "cache"]
    with pytest.raises(UserError, match=r"no network for this hub name \(unreachable\)"):
        choose_weights("test_resnet", "hub", 3, SIZE)
    client["remote"] = {"README.md"}
    with pytest.raises(UserError, match="has no weight file"):
        choose_weights("test_resnet", "hub", 3, SIZE)
    assert capfd.readouterr() == ("", "")


def test_weights_at_a_plain_address_lie_where_torch_keeps_them(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: (tmp_path / "reached").open("w"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, path: Path(path).write_text(url))
    config = timm.get_pretrained_cfg("legacy_seresnet18.in1k")
    assert not config.hf_hub_id
    path = pretrained.hub_file("legacy_seresnet18.in1k")
    assert path.parent == tmp_path / "checkpoints"
    assert path.read_text() == config.url
    (tmp_path / "reached").unlink()
    assert pretrained.hub_file("legacy_seresnet18.in1k") == path
    assert not (tmp_path / "reached").exists()


def test_files_of_open_clip_go_by_their_own_names(client, tmp_path):
    pytest.importorskip("open_clip")
    client["remote"] = {"model.safetensors", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"}
    assert pretrained.hub_file("open_clip:hf-hub:someone/model@v2") == tmp_path / "open_clip_model.safetensors"
    assert client["calls"][-1] == ("download", "someone/model", "v2", "open_clip_model.safetensors")
    assert pretrained.hub_file("open_clip:ViT-B/16.openai") == tmp_path / "open_clip_model.safetensors"
    assert client["calls"][-1][1] == "timm/vit_base_patch16_clip_224.openai"
    client["remote"] = {"pytorch_model.bin"}
    assert pretrained.hub_file("open_clip:ViTamin-S.datacomp1b") == tmp_path / "pytorch_model.bin"
    assert client["calls"][-1][1] == "jienengchen/ViTamin-S"
