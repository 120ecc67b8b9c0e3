"""Classes as directions in the space of an open_clip encoder: what its text tower says of the sentences about them.

The text tower is read from the file that the encoder starts from, used once and dropped: what is trained and deployed
is the image tower and a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from longtail.errors import UserError
from longtail.hub import quiet
from longtail.models.heads import unit_vectors
from longtail.models.open_clip_encoder import architecture_config, is_open_clip, open_clip, split_name
from longtail.models.pretrained import levels, local_file, matching
from longtail.models.weight_files import read_tensors

_BATCH = 256
_WAY_OUT = "use --start.head random"


def check_text_tower(encoder: str, weights: str) -> None:
    """Make sure that :func:`class_embeddings` can be computed; what cannot be had is told before any training.

    Args:
        encoder: name as ``build_encoder`` takes it.
        weights: what ``choose_weights`` returned for it.

    Raises:
        UserError: the encoder has no text tower, its weights hold none, or its words cannot be split into tokens here.
    """
    if not is_open_clip(encoder):
        raise UserError(
            f"--start.head text needs an encoder with a text tower, such as open_clip:ViT-B-16; {encoder} has none: "
            f"choose one, or {_WAY_OUT}."
        )
    if weights == "none":
        raise UserError(
            f"--start.head text needs weights whose texts and images belong together, but {encoder} starts from "
            f"random ones; name some with --pretrained, or {_WAY_OUT}."
        )
    with torch.device("meta"):
        tower = _build(encoder)
    _fitting_text_tensors(tower, encoder, weights)
    _tokenizer(encoder)


def class_embeddings(
    encoder: str, weights: str, prompts: Sequence[Sequence[str]], device: torch.device | None = None
) -> Tensor:
    """Return the direction of each class in the encoder's space, float32 ``[C, D]`` on the CPU, rows of length 1.

    A class's sentences are embedded, brought to length 1, averaged, and brought to length 1 again, as for CLIP's
    zero-shot classifiers (Radford et al., ICML 2021).

    Args:
        encoder: name of an open_clip encoder.
        weights: what ``choose_weights`` returned for it.
        prompts: sentences of each of C classes, one or more each.
        device: where to compute; the CPU if not given.

    Raises:
        UserError: as :func:`check_text_tower`.
    """
    device, tokenizer = device or torch.device("cpu"), _tokenizer(encoder)
    # Initial weights are drawn only to be replaced: the caller's random numbers must not move on.
    with torch.random.fork_rng(devices=[]):
        tower = _build(encoder)
    tower.load_state_dict(_fitting_text_tensors(tower, encoder, weights), strict=True)
    tower = tower.to(device).eval()
    sentences = [sentence for of_class in prompts for sentence in of_class]
    classes = torch.arange(len(prompts)).repeat_interleave(torch.tensor([len(of_class) for of_class in prompts]))
    parts = [sentences[start : start + _BATCH] for start in range(0, len(sentences), _BATCH)]
    with torch.inference_mode():
        embedded = torch.cat([unit_vectors(tower(tokenizer(part).to(device))).cpu() for part in parts])
    sums = torch.zeros(len(prompts), embedded.shape[1]).index_add_(0, classes, embedded.clone())
    return unit_vectors(sums)


def _build(encoder: str) -> nn.Module:
    """Return the text tower of an open_clip encoder, with random weights: tokens ``[B, L] -> [B, D]``."""
    from open_clip.model import _build_text_tower

    config = architecture_config(encoder)
    if "hf_model_name" in config["text_cfg"]:
        raise UserError(
            f"the text tower of {encoder} is a model of another library, which is not built here; {_WAY_OUT}, or "
            "choose another architecture."
        )
    # CoCa's towers give tokens besides; the embedding of the sentence is the same.
    text = config["text_cfg"] | {"output_tokens": False}
    with quiet():
        tower: nn.Module = _build_text_tower(config["embed_dim"], text, bool(config.get("quick_gelu", False)))
    return tower


def _fitting_text_tensors(tower: nn.Module, encoder: str, weights: str) -> dict[str, Tensor]:
    """Return a float32 value for every tensor of the text tower, which may lie on the meta device."""
    path = local_file(encoder, weights)
    expected = tower.state_dict()
    found = []
    for level in levels(read_tensors(path)):
        # Older architectures keep the tower's tensors beside the image tower's, newer ones in a part of its own.
        inner = {key.removeprefix("text."): tensor for key, tensor in level.items() if key.startswith("text.")}
        found.append({key: tensor for key, tensor in (inner or level).items() if key in expected})
    fitting = matching(
        found,
        expected,
        f"{path} does not hold the text tower of {encoder}: it differs",
        f"give a file of the whole model, or {_WAY_OUT}",
        lambda key: True,
    )
    return {key: fitting[key].float() for key in expected}


def _tokenizer(encoder: str) -> Callable[[list[str]], Tensor]:
    """Return what splits sentences into token numbers ``[B, L]``; longer ones are cut off."""
    try:
        with quiet(("huggingface_hub", "transformers", "httpx", "root")):
            tokenizer: Callable[[list[str]], Tensor] = open_clip().get_tokenizer(split_name(encoder)[0])
            tokenizer(["a photo"])
    except Exception as error:  # of several libraries and the network; they share no base class
        said = " ".join(str(error).split())[:120].rstrip(".")
        raise UserError(
            f"the words of {encoder} cannot be split into tokens here ({said or type(error).__name__}); {_WAY_OUT}, "
            "or run once with a network."
        ) from None
    return tokenizer
