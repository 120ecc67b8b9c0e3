"""A segmenter as files for other programs: batch, height and width are free; each file is checked as it is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import longtail
from longtail.deployment.formats import CHATTY, ONNX_FILE, OPSET, TORCH_FILE, TORCH_RECORD, need_onnx
from longtail.deployment.graph import TOLERANCE
from longtail.errors import UserError
from longtail.hub import quiet
from longtail.segmentation.models import Segmenter
from longtail.segmentation.models.segmenter import normalised

_TRACED = (2, 75, 107)
"""Images, height and width of the example: neither equal nor multiples of 32, so that none looks fixed."""
_CHECKED = ((1, 64, 96), (3, 45, 122))


class DeployedSegmenter(nn.Module):
    """A segmenter as others run it: ``images [B, channels, H, W]`` -> ``logits [B, C, H, W]``.

    Args:
        segmenter: shares its tensors.
        preprocessing: images are uint8 and are normalised inside.
    """

    def __init__(self, segmenter: Segmenter, preprocessing: bool) -> None:
        super().__init__()
        self.segmenter, self.preprocessing = segmenter, preprocessing

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        if self.preprocessing:
            images = normalised(images, self.segmenter.mean, self.segmenter.std)
        logits: Tensor = self.segmenter(images)
        return logits


def write_segmenter_onnx(folder: Path, segmenter: Segmenter, preprocessing: bool = False) -> list[str]:
    """Write ``model.onnx`` (weights beyond 2 GB beside it) and compare ONNX Runtime with torch at two sizes.

    Input ``images``, output ``logits``; names, palette and statistics are in the metadata (see ``description``).

    Returns:
        Sentences on how well the two agree.

    Raises:
        UserError: packages are missing, the model cannot be exported, or the two do not agree.
    """
    need_onnx()
    module, example = _to_trace(segmenter, preprocessing)
    axes = {0: "batch", 2: "height", 3: "width"}
    with quiet(CHATTY):
        try:
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=(axes,),
                opset_version=OPSET,
                verbose=False,
            )
        except Exception as error:  # whatever an operation without translation leads to
            raise _cannot(segmenter, "ONNX", error) from error
        assert program is not None
        program.model.metadata_props.update(description(segmenter, preprocessing))
        program.save(folder / ONNX_FILE)
        runtime: Any = import_module("onnxruntime")
        try:
            session = runtime.InferenceSession(str(folder / ONNX_FILE), providers=["CPUExecutionProvider"])
            return _compared(
                lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]),
                segmenter,
                preprocessing,
                f"ONNX Runtime {metadata.version('onnxruntime')}",
            )
        except UserError:
            raise
        except Exception as error:  # of kinds that onnxruntime does not share with anyone
            raise _cannot(segmenter, "ONNX", error) from error


def write_segmenter_torch(folder: Path, segmenter: Segmenter, preprocessing: bool = False) -> list[str]:
    """Write ``model.pt2`` by ``torch.export``, load it again and compare at two sizes.

    Returns:
        Sentences on how well the two agree.

    Raises:
        UserError: the model cannot be exported, or does not come back the same.
    """
    module, example = _to_trace(segmenter, preprocessing)
    axes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with quiet(CHATTY):
        try:
            program = torch.export.export(module, (example,), dynamic_shapes=(axes,))
            record = json.dumps(description(segmenter, preprocessing))
            torch.export.save(program, folder / TORCH_FILE, extra_files={TORCH_RECORD: record})
            loaded = torch.export.load(folder / TORCH_FILE).module()
            return _compared(loaded, segmenter, preprocessing, "the file, loaded again,")
        except (UserError, OSError):
            raise
        except Exception as error:
            raise _cannot(segmenter, "torch.export", error) from error


def description(segmenter: Segmenter, preprocessing: bool) -> dict[str, str]:
    """Return what the files say of themselves; every value is JSON."""
    pixels = "uint8, 0..255" if preprocessing else "float32, (pixel / 255 - mean) / std"
    facts = {
        "longtail_version": longtail.__version__,
        "task": "segmentation",
        "images": f"[batch, {len(segmenter.mean)}, height, width], {pixels}; batch, height and width are free",
        "logits": f"float32 [batch, {segmenter.num_classes}, height, width]",
        "class_names": list(segmenter.class_names),
        "class_counts": segmenter.class_counts.tolist(),
        "logit_prior": segmenter.logit_prior.tolist(),
        "palette": segmenter.palette.tolist(),
        "mean": segmenter.mean.tolist(),
        "std": segmenter.std.tolist(),
        "preprocessing": preprocessing,
        "size": None if segmenter.size is None else list(segmenter.size),
        "spec": segmenter.spec,
    }
    return {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()}


def _to_trace(segmenter: Segmenter, preprocessing: bool) -> tuple[DeployedSegmenter, Tensor]:
    module = DeployedSegmenter(segmenter, preprocessing).eval().requires_grad_(False)
    pixels = _sample(segmenter, _TRACED)
    return module, pixels if preprocessing else segmenter.preprocess(pixels)


def _sample(segmenter: Segmenter, shape: tuple[int, int, int]) -> Tensor:
    count, height, width = shape
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, len(segmenter.mean), height, width), generator=generator, dtype=torch.uint8)


def _compared(run: Callable[[Tensor], Tensor], segmenter: Segmenter, preprocessing: bool, what: str) -> list[str]:
    """Compare an exported model with ``Segmenter.logits`` on noise of two sizes, and say how far they are apart."""
    worst = 0.0
    for shape in _CHECKED:
        pixels = _sample(segmenter, shape)
        expected = segmenter.logits(pixels)
        with torch.no_grad():
            logits = run(pixels if preprocessing else segmenter.preprocess(pixels))
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        gap = float((logits - expected).abs().max()) if logits.shape == expected.shape else float("inf")
        if not gap <= allowed:
            raise UserError(
                f"{what} and torch do not agree on this model: logits differ by {gap:.2g} ({allowed:.2g} is let pass) "
                f"on images of {shape[1]} x {shape[2]} pixels; nothing was written. Try another format or version of "
                f"{what}."
            )
        worst = max(worst, gap)
    sizes = " and ".join(f"{height} x {width}" for _, height, width in _CHECKED)
    return [f"{what} and torch agree on images of {sizes} pixels: logits differ by at most {worst:.1g}."]


def _cannot(segmenter: Segmenter, what: str, error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(". ")
    spec = segmenter.spec
    return UserError(
        f"{what} cannot express the encoder {spec['encoder']} with the decoder {spec['decoder']} at free sizes "
        f"({reason}); nothing was written. Try another --format; a ResNet with the decoder fpn, "
        "upernet, segformer, unet or ocr can be exported as both onnx and torch."
    )
