"""The lines of Python that use an exported model, for its model card."""

from __future__ import annotations

from longtail.deployment.formats import ONNX_FILE, TORCH_FILE
from longtail.deployment.graph import Form
from longtail.models import Classifier

_IMPORTS = {"onnx": "import onnxruntime", "torch": "import torch", "safetensors": "import longtail\nimport torch"}
_ONNX = """session = onnxruntime.InferenceSession("{file}")
about = session.get_modelmeta().custom_metadata_map
names = json.loads(about["class_names"])
{normalise}logits, probabilities = session.run(None, {{"images": images{prior_input}}})
print(names[probabilities[0].argmax()], probabilities[0].max())"""
_TORCH = """extra = {{"longtail.json": ""}}
model = torch.export.load("{file}", extra_files=extra).module()
about = json.loads(extra["longtail.json"])
names = json.loads(about["class_names"])
{normalise}logits, probabilities = model(torch.tensor(images){prior_input})
print(names[int(probabilities[0].argmax())], float(probabilities[0].max()))"""
_LONGTAIL = """model = longtail.load("{place}"){remark}
probabilities = model.predict(torch.tensor(pixels))
print(model.class_names[int(probabilities[0].argmax())], float(probabilities[0].max()))"""
_NORMALISE = """mean, std = (np.float32(json.loads(about[key])).reshape(-1, 1, 1) for key in ("mean", "std"))
images = ((pixels / np.float32(255) - mean) / std).astype("float32")
"""


def usage(kind: str, classifier: Classifier, form: Form, place: str = ".") -> str:
    """Return Python that classifies ``photo.jpg`` with an export of ``kind`` (onnx, torch, safetensors).

    ``place`` is what ``longtail.load`` is given.
    """
    first = "" if kind == "safetensors" else "import json\n\n"
    imports = f"{first}import numpy as np\n{_IMPORTS[kind]}"
    imports += "" if classifier.takes_features else "\nfrom PIL import Image, ImageOps"
    pixels = f"{imports}\n\n{_pixels(classifier, form.resizing)}"
    if kind == "safetensors":
        remark = "  # the folder of these files" if place == "." else ""
        return f"{pixels}\n\n{_LONGTAIL.format(place=place, remark=remark)}"
    if kind == "onnx":
        prior = ', "log_prior": log_prior' if form.prior_input else ""
        text = _ONNX.format(file=ONNX_FILE, normalise=_normalise(classifier, form), prior_input=prior)
    else:
        prior = ", torch.tensor(log_prior)" if form.prior_input else ""
        text = _TORCH.format(file=TORCH_FILE, normalise=_normalise(classifier, form), prior_input=prior)
    return f"{pixels}\n\n{text}"


def _normalise(classifier: Classifier, form: Form) -> str:
    images = "images = pixels\n" if form.preprocessing or form.resizing else _NORMALISE
    if classifier.takes_features:
        images = images.replace(".reshape(-1, 1, 1)", "").replace("pixels / np.float32(255)", "pixels")
    # The weights are a uniform prior; any others of 0 or more are used in the same way.
    prior = 'log_prior = np.log(np.full(len(names), 1 / len(names), dtype="float32"))\n' if form.prior_input else ""
    return images + prior


def _pixels(classifier: Classifier, resizing: bool) -> str:
    """Return the lines that bring an image file to ``pixels``, uint8 ``[1, channels, H, W]``."""
    if classifier.takes_features:
        return f'pixels = np.load("features.npy")  # float32 [rows, {len(classifier.mean)}], as the encoder gives them'
    gray = len(classifier.mean) == 1
    lines = [f'image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("{"L" if gray else "RGB"}")']
    if not resizing:
        height, width = classifier.image_size
        side, kind = classifier.framing.resize, classifier.framing.interpolation.upper()
        lines += [
            "short = min(image.size)",
            f"size = {side} * image.width // short, {side} * image.height // short",
            f"image = image.resize(size, Image.Resampling.{kind})",
            f"left, top = round((image.width - {width}) / 2), round((image.height - {height}) / 2)",
            f"image = image.crop((left, top, left + {width}, top + {height}))",
        ]
    array = "np.asarray(image)[None, None]" if gray else "np.asarray(image).transpose(2, 0, 1)[None]"
    return "\n".join([*lines, f"pixels = {array}"])
