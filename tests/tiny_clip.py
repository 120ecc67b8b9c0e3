"""CLIP models of open_clip's own making that take milliseconds: their architectures and files of random weights."""

import json

import open_clip
import torch
from safetensors.torch import save_file

_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
_VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
ARCHITECTURES = {
    "tiny-ViT": {"embed_dim": 24, "vision_cfg": _VIT, "text_cfg": _TEXT},
    "tiny-ViT-quickgelu": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": _VIT, "text_cfg": _TEXT},
    "tiny-RN": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
        "text_cfg": _TEXT,
    },
    # A text tower in a part of its own, and another pooling.
    "tiny-custom": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": _VIT | {"pool_type": "avg", "output_tokens": True},
        "text_cfg": _TEXT | {"pool_type": "last", "no_causal_mask": True, "proj_bias": True},
    },
    "tiny-timm": {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64},
        "text_cfg": _TEXT,
    },
}


def register(folder):
    """Make the architectures known to open_clip."""
    for name, config in ARCHITECTURES.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def model_and_file(architecture, folder, seed=0, file="clip.safetensors"):
    """Return open_clip's model of random weights, none of them 0 or 1 throughout, and the file that holds all of it."""
    torch.manual_seed(seed)
    model = open_clip.create_model(architecture).eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *(t for t in model.buffers() if t.is_floating_point() and t.ndim == 1)]:
            tensor += 0.05 * torch.randn_like(tensor).abs()
    path = folder / file
    if path.suffix == ".safetensors":
        save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, path)
    else:
        torch.save(model.state_dict(), path)
    return model, path
