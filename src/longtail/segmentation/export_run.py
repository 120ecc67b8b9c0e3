"""``longtail export`` for a run on masks."""

from __future__ import annotations

import json
from pathlib import Path

from longtail.deployment.export import default_folder, file_size
from longtail.deployment.formats import ONNX_FILE, TORCH_FILE, need_onnx
from longtail.deployment.push import check_repository, upload
from longtail.deployment.run_records import find_run
from longtail.deployment.whole_folder import check_replaceable, whole_folder
from longtail.errors import unknown_name
from longtail.files import write_bytes
from longtail.segmentation.card import CARD_FILE, segmenter_card
from longtail.segmentation.export import write_segmenter_onnx, write_segmenter_torch
from longtail.segmentation.result import load_segmenter
from longtail.training.progress import ProgressReporter

_FORMATS = ("onnx", "torch", "safetensors", "card")
_OURS = {
    "onnx": {ONNX_FILE, f"{ONNX_FILE}.data", CARD_FILE},
    "torch": {TORCH_FILE, "longtail.json", CARD_FILE},
    "safetensors": {"model.safetensors", "model.json", CARD_FILE},
    "card": {CARD_FILE},
}


def export_segmenter(
    run: str | Path,
    *,
    format: str = "onnx",
    out: str | Path | None = None,
    preprocessing: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Export the segmenter of a run into a folder of its own, with a model card beside it.

    Args:
        run: the run's folder, or one that holds its model.safetensors and model.json alone.
        format: onnx, torch (torch.export), safetensors (a folder that longtail.load reads), or card (the model card
            alone). Batch, height and width are free in onnx and torch.
        out: folder to write; default: RUN/export/FORMAT.
        preprocessing: take uint8 images and normalise them inside; default: normalised images.
        overwrite: replace an earlier export at out.
        quiet: print nothing.

    Returns:
        The folder.

    Raises:
        UserError: no model, packages are missing, the folder is taken, or the export does not agree with torch.
    """
    path, say = find_run(run), ProgressReporter(quiet)
    if format not in _FORMATS:
        raise unknown_name("format", format, _FORMATS)
    if format == "onnx":
        need_onnx()
    target = Path(out) if out is not None else default_folder(run, path) / format
    check_replaceable(target, _OURS[format], overwrite)
    segmenter = load_segmenter(path)
    checked: list[str] = []
    with whole_folder(target) as folder:
        if format == "onnx":
            checked = write_segmenter_onnx(folder, segmenter, preprocessing)
        elif format == "torch":
            checked = write_segmenter_torch(folder, segmenter, preprocessing)
        elif format == "safetensors":
            segmenter.save(folder)
        write_bytes(
            folder / CARD_FILE, segmenter_card(path, segmenter, format, preprocessing).encode("utf-8", "replace")
        )
    for file in sorted(target.iterdir()):
        say.say(f"{file}  {file_size(file)}")
    if format in ("onnx", "torch"):
        kind = "uint8, 0..255" if preprocessing else f"float32, normalised by mean {_list(segmenter.mean)}"
        say.say(f"input images: [batch, 3, height, width], {kind}; batch, height and width are free")
        say.say(f"output logits: float32 [batch, {segmenter.num_classes}, height, width]")
    for line in checked:
        say.say(line)
    return target


def _list(values: object) -> str:
    return json.dumps([round(float(value), 4) for value in values])  # type: ignore[attr-defined]


def push_segmenter(
    run: str | Path,
    repository: str,
    *,
    private: bool = False,
    token: str | None = None,
    quiet: bool = False,
) -> str:
    """Upload the segmenter of a run with its card, for ``longtail.load("hf-hub:owner/name")`` to read.

    Args:
        run: the run's folder, or one that holds its model.safetensors and model.json alone.
        repository: owner/name on the hub; made if need be.
        private: a new repository is seen by its owners only.
        token: of the hub; default: that of who is logged in (hf auth login), or HF_TOKEN.
        quiet: print nothing.

    Returns:
        The repository's address.

    Raises:
        UserError: no model, no such name, no network, not logged in, or not allowed.
    """
    path = find_run(run)
    check_repository(repository)
    segmenter = load_segmenter(path)

    def write(folder: Path, place: str) -> None:
        segmenter.save(folder)
        card = segmenter_card(path, segmenter, "safetensors", False, place)
        write_bytes(folder / CARD_FILE, card.encode("utf-8", "replace"))

    return upload(repository, write, private, token, ProgressReporter(quiet))
