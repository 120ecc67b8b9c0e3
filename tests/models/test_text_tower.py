"""Class embeddings against open_clip's own text encoder and zero-shot classifier."""

import open_clip
import pytest
import torch
from safetensors.torch import save_file

import tiny_clip
from longtail.errors import UserError
from longtail.models import build_encoder, check_text_tower, class_embeddings, class_prompts, load_weights
from longtail.models.heads import CosineHead
from longtail.models.prompts import TEMPLATES

NAMES = ("dog", "great_white_shark", "teapot")
EVERY = list(tiny_clip.ARCHITECTURES)


@pytest.fixture(scope="module", autouse=True)
def _architectures(tmp_path_factory):
    tiny_clip.register(tmp_path_factory.mktemp("architectures"))


@pytest.mark.parametrize("architecture", EVERY)
def test_one_sentence_a_class_is_what_open_clip_encodes(architecture, tmp_path):
    model, path = tiny_clip.model_and_file(architecture, tmp_path)
    ours = class_embeddings(f"open_clip:{architecture}", str(path), class_prompts("simple", NAMES))
    tokens = open_clip.get_tokenizer(architecture)([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    with torch.no_grad():
        theirs = model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    assert (ours[0] - ours[1]).abs().max() > 1e-3
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(3))


def test_logits_are_those_of_the_zero_shot_classifier(tmp_path, monkeypatch):
    model, path = tiny_clip.model_and_file("tiny-ViT", tmp_path)
    monkeypatch.setattr("longtail.models.text_tower._BATCH", 5)  # parts that cut through a class
    name, tokenizer = "open_clip:tiny-ViT", open_clip.get_tokenizer("tiny-ViT")
    names = [name.replace("_", " ") for name in NAMES]
    theirs = open_clip.build_zero_shot_classifier(model, tokenizer, names, TEMPLATES["ensemble"])
    head = CosineHead(24, 3, scale=float(model.logit_scale.detach().exp()))
    head.load_state_dict({"weight": class_embeddings(name, str(path), class_prompts("ensemble", NAMES))})
    encoder = build_encoder(name, 3).eval()
    load_weights(encoder, name, str(path), 3)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.logit_scale.exp() * model.encode_image(images, normalize=True) @ theirs
        torch.testing.assert_close(head(encoder(images)), expected, atol=1e-5, rtol=1e-5)


def test_classes_with_more_sentences_weigh_no_more(tmp_path):
    _, path = tiny_clip.model_and_file("tiny-ViT", tmp_path)
    sentences = ["a dog", "a small dog", "a loud dog"]
    one_by_one = torch.cat([class_embeddings("open_clip:tiny-ViT", str(path), [[said]]) for said in sentences])
    both = class_embeddings("open_clip:tiny-ViT", str(path), [sentences, ["a cat"]])
    torch.testing.assert_close(both[0], torch.nn.functional.normalize(one_by_one.mean(0), dim=0))
    alone = class_embeddings("open_clip:tiny-ViT", str(path), [["a cat"]])
    torch.testing.assert_close(both[1], alone[0])


def test_files_of_training_programs_are_understood(tmp_path):
    model, path = tiny_clip.model_and_file("tiny-ViT", tmp_path)
    expected = class_embeddings("open_clip:tiny-ViT", str(path), [["a dog"]])
    state = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "epoch_1.pt")
    assert torch.equal(class_embeddings("open_clip:tiny-ViT", str(tmp_path / "epoch_1.pt"), [["a dog"]]), expected)


def test_no_random_number_is_drawn(tmp_path):
    _, path = tiny_clip.model_and_file("tiny-ViT", tmp_path)
    torch.manual_seed(1)
    class_embeddings("open_clip:tiny-ViT", str(path), [["a dog"]])
    moved = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(moved, torch.rand(1))


def test_what_has_no_text_tower_is_told(tmp_path):
    _, path = tiny_clip.model_and_file("tiny-ViT", tmp_path)
    check_text_tower("open_clip:tiny-ViT", str(path))
    encoder = build_encoder("open_clip:tiny-ViT", 3)
    save_file(encoder.state_dict(), tmp_path / "visual.safetensors")
    with pytest.raises(UserError, match=r"visual.safetensors does not hold the text tower of open_clip:tiny-ViT.*\["):
        check_text_tower("open_clip:tiny-ViT", str(tmp_path / "visual.safetensors"))
    with pytest.raises(UserError, match=r"an encoder with a text tower.*resnet18 has none"):
        check_text_tower("resnet18", str(path))
    with pytest.raises(UserError, match=r"starts from random ones; name some with --pretrained"):
        check_text_tower("open_clip:tiny-ViT", "none")
    with pytest.raises(UserError, match=r"the text tower of open_clip:roberta-ViT-B-32 is a model of another library"):
        check_text_tower("open_clip:roberta-ViT-B-32", str(path))


def test_a_tokenizer_that_cannot_be_had_is_told(tmp_path, monkeypatch):
    _, path = tiny_clip.model_and_file("tiny-ViT", tmp_path)

    def no_network(name):
        raise OSError("We couldn't connect to the hub\n to load the files.")

    monkeypatch.setattr(open_clip, "get_tokenizer", no_network)
    with pytest.raises(UserError, match=r"cannot be split into tokens here \(We couldn't connect to the hub to load"):
        check_text_tower("open_clip:tiny-ViT", str(path))
