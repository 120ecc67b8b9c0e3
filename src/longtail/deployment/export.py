"""``longtail export``: a run's model as files for other programs, checked as they are written, with a model card."""

from __future__ import annotations

from pathlib import Path

from longtail.deployment.formats import ONNX_FILE, TORCH_FILE, need_onnx, write_onnx, write_tensors, write_torch
from longtail.deployment.graph import Form
from longtail.deployment.model_card import CARD_FILE, model_card
from longtail.deployment.run_records import find_run, load_classifier
from longtail.deployment.usage import usage
from longtail.deployment.whole_folder import check_replaceable, whole_folder
from longtail.errors import UserError, counted, unknown_name
from longtail.files import write_bytes
from longtail.hub import HUB
from longtail.models import Classifier
from longtail.training.calibration import CALIBRATION, VALIDATION
from longtail.training.progress import ProgressReporter

_FORMATS = ("onnx", "torch", "safetensors", "card")
_BESIDE = (CALIBRATION, f"{VALIDATION}.safetensors", f"{VALIDATION}.json")
"""What ``longtail predict`` reads beside the model."""
_OURS = {
    "onnx": {ONNX_FILE, f"{ONNX_FILE}.data", CARD_FILE},
    "torch": {TORCH_FILE, CARD_FILE},
    "safetensors": {"model.safetensors", "model.json", *_BESIDE, CARD_FILE},
    "card": {CARD_FILE},
}


def export(
    run: str | Path,
    *,
    format: str = "onnx",
    out: str | Path | None = None,
    prior_input: bool = False,
    preprocessing: bool = False,
    resizing: bool = False,
    uncalibrated: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Export the model of a run into a folder of its own, with a model card beside it.

    Args:
        run: the run's folder, one that holds its model.safetensors and model.json alone, or hf-hub:owner/name.
        format: onnx, torch (torch.export), safetensors (a folder that longtail.load reads), or card (the model card
            alone).
        out: folder to write; default: RUN/export/FORMAT, and of a model of the hub export/NAME/FORMAT.
        prior_input: a second input, log_prior [classes]: the class prior expected where the model is used, in
            logarithms.
        preprocessing: take uint8 images of the model's size and normalise them inside; default: normalised images.
        resizing: take uint8 images of any size and bring them to the model's size inside too; says how far this is from
            Pillow, which the model was trained with.
        uncalibrated: leave out the temperature of calibration.json.
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
    if format in ("safetensors", "card") and (prior_input or preprocessing or resizing or uncalibrated):
        raise UserError(
            f"--format {format} holds the model as it is; --prior_input, --preprocessing, --resizing and "
            "--uncalibrated are for onnx and torch."
        )
    if format == "onnx":
        need_onnx()
    target = Path(out) if out is not None else default_folder(run, path) / format
    check_replaceable(target, _OURS[format], overwrite)
    classifier = load_classifier(path)
    temperature = None if uncalibrated else classifier.temperature
    if resizing and classifier.takes_features:
        raise UserError("--resizing is for images, but this model takes features; leave it out.")
    form = Form(preprocessing, resizing, prior_input, temperature)
    with whole_folder(target) as folder:
        if format == "onnx":
            checked = write_onnx(folder, classifier, form)
        elif format == "torch":
            checked = write_torch(folder, classifier, form)
        elif format == "safetensors":
            checked = write_model_folder(folder, path, classifier)
        else:
            checked = []
        if format != "safetensors":
            code = "" if format == "card" else usage(format, classifier, form)
            applied = "predict" if format == "card" else "outside" if temperature is None else "inside"
            card = model_card(path, classifier, code, applied)
            write_bytes(folder / CARD_FILE, card.encode("utf-8", "replace"))
    for file in sorted(target.iterdir()):
        say.say(f"{file}  {file_size(file)}")
    if format in ("onnx", "torch"):
        say.say(f"input images: {form.describe_images(classifier)}")
        if prior_input:
            say.say(f"input log_prior: float32 [{classifier.num_classes}], logarithms of class weights")
        classes = counted(classifier.num_classes, "class", "classes")
        divided = "" if temperature is None else f"; logits are divided by the temperature {temperature:.4g}"
        say.say(f"outputs logits and probabilities: float32 [batch, {classes}]{divided}")
    for line in checked:
        say.say(line)
    return target


def write_model_folder(folder: Path, run: Path, classifier: Classifier, place: str = ".") -> list[str]:
    """Write what ``longtail.load`` and ``longtail predict`` read of the run in ``run``, with its card.

    Args:
        folder: where to.
        run: where from.
        classifier: the run's.
        place: how the card says it is loaded.

    Returns:
        Sentences on how it was checked.
    """
    checked = write_tensors(folder, classifier)
    for name in _BESIDE:
        if (run / name).exists():
            write_bytes(folder / name, (run / name).read_bytes())
    card = model_card(run, classifier, usage("safetensors", classifier, Form(), place), "predict")
    write_bytes(folder / CARD_FILE, card.encode("utf-8", "replace"))
    return checked


def default_folder(run: str | Path, path: Path) -> Path:
    """Return the folder of exports: inside the run, but not inside the cache of the hub."""
    if not str(run).startswith(HUB):
        return path / "export"
    return Path("export") / Path(str(run).removeprefix(HUB).partition("@")[0]).name


def file_size(file: Path) -> str:
    """Return the size of a file in words."""
    size = file.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
