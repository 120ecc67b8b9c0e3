"""The model card of a segmenter: what it is, what it is good at, what not, and how it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longtail.files import read_json
from longtail.reporting.markdown import escape
from longtail.segmentation.models import Segmenter

CARD_FILE = "README.md"


def segmenter_card(run: Path, segmenter: Segmenter, format: str, preprocessing: bool, place: str = ".") -> str:
    """Return the model card, Markdown, of the segmenter of the run in ``run``.

    Figures are there as far as the run's ``evaluation.json`` is.

    Args:
        run: the run's folder, or one with its model alone.
        segmenter: the run's.
        format: of the export: onnx, torch, safetensors or card.
        preprocessing: whether the exported model takes uint8 images.
        place: how the card says that the model is loaded.
    """
    figures = read_json(run / "evaluation.json") if (run / "evaluation.json").exists() else {}
    spec = segmenter.spec
    lines = [
        "---",
        "library_name: longtail",
        "pipeline_tag: image-segmentation",
        "---",
        "",
        f"# Segmentation of {segmenter.num_classes} classes",
        "",
        f"Encoder {spec['encoder']}, decoder {spec['decoder']}, {spec['head']} classifier; a class for every pixel.",
        "",
        *_figures(figures),
        "## Classes",
        "",
        "| index | class | colour | training pixels | training images | IoU |",
        "|---|---|---|---|---|---|",
    ]
    ious = figures.get("iou") or [None] * segmenter.num_classes
    whole = max(int(segmenter.class_counts.sum()), 1)
    for index, name in enumerate(segmenter.class_names):
        colour = "#" + "".join(f"{value:02x}" for value in segmenter.palette[index].tolist())
        share, images = int(segmenter.class_counts[index]) / whole, int(segmenter.image_counts[index])
        iou = "" if ious[index] is None else f"{ious[index]:.1%}"
        lines.append(f"| {index} | {escape(name)} | {colour} | {share:.2%} | {images} | {iou} |")
    lines += ["", "## Use", "", *_usage(segmenter, format, preprocessing, place), ""]
    return "\n".join(lines)


def _figures(figures: dict[str, Any]) -> list[str]:
    if not figures:
        return []
    interval, rare = figures.get("miou_interval") or {}, figures.get("rarest_four") or {}
    lines = [
        "## Figures",
        "",
        f"On {figures.get('test_images')} test images ({figures.get('inference', 'whole images')}):",
        "",
        f"- mean IoU {figures['miou']:.1%}"
        + (f" ({interval['low']:.1%} to {interval['high']:.1%})" if interval.get("low") is not None else ""),
    ]
    if rare.get("miou") is not None:
        names = ", ".join(str(name) for name in rare["classes"])
        lines.append(f"- of the rarest classes ({names}) {rare['miou']:.1%}")
    lines += [f"- pixel accuracy {figures['pixel_accuracy']:.1%}, mean class recall {figures['balanced_accuracy']:.1%}"]
    return [*lines, ""]


def _usage(segmenter: Segmenter, format: str, preprocessing: bool, place: str) -> list[str]:
    size = "any size" if segmenter.size is None else f"brought to {segmenter.size[0]} x {segmenter.size[1]} pixels"
    takes = "uint8 in 0..255" if preprocessing else "float32, divided by 255, less the mean, over the deviation below"
    statistics = [
        f"Mean {[round(value, 5) for value in segmenter.mean.tolist()]}, deviation "
        f"{[round(value, 5) for value in segmenter.std.tolist()]}.",
    ]
    if format == "onnx":
        code = [
            "import numpy, onnxruntime",
            'session = onnxruntime.InferenceSession("model.onnx")',
            'logits, = session.run(["logits"], {"images": images})  # [batch, 3, height, width]',
            "classes = logits.argmax(1)",
        ]
    elif format == "torch":
        code = ["import torch", 'model = torch.export.load("model.pt2").module()', "classes = model(images).argmax(1)"]
    else:
        code = [
            "import longtail",
            f'model = longtail.load("{place}")',
            "classes = model.predict(images).argmax(1)  # uint8 [batch, 3, height, width]",
        ]
        takes = "uint8 in 0..255"
    return [f"Images are RGB, {takes}, {size}.", *statistics, "", "```python", *code, "```"]
