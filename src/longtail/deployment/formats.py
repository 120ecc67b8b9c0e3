"""The files that an exported model is made of, each read back and checked as soon as it is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longtail.deployment.graph import (
    DeployedClassifier,
    Form,
    Runner,
    check_against_torch,
    description,
    measure_resizing,
    model_inputs,
    sample_images,
)
from longtail.errors import UserError
from longtail.hub import quiet
from longtail.models import Classifier

ONNX_FILE = "model.onnx"
TORCH_FILE = "model.pt2"
TORCH_RECORD = "longtail.json"
OPSET = 18
"""The first with antialiased resizing; runtimes of 2023 and later read it."""
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CHATTY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def need_onnx() -> None:
    """Raise unless the packages that write and check ONNX are installed."""
    for name in _ONNX_PACKAGES:
        try:
            import_module(name)
        except ImportError:
            raise UserError(
                f"--format onnx needs the package {name}, which is not installed: pip install 'longtail[onnx]'."
            ) from None


def write_onnx(folder: Path, classifier: Classifier, form: Form) -> list[str]:
    """Write ``model.onnx`` (weights beyond 2 GB beside it) and compare ONNX Runtime with torch.

    Returns:
        Sentences on how well the two agree.

    Raises:
        UserError: packages are missing, the model cannot be exported, or the two do not agree.
    """
    need_onnx()
    module, example, shapes = _to_trace(classifier, form, str)
    with quiet(CHATTY):
        try:
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                input_names=form.input_names,
                output_names=["logits", "probabilities"],
                dynamic_shapes=shapes,
                opset_version=OPSET,
                verbose=False,
            )
        except Exception as error:  # whatever an operation without translation leads to
            raise _cannot(classifier, "ONNX", error) from error
        assert program is not None
        program.model.metadata_props.update(description(classifier, form))
        program.save(folder / ONNX_FILE)
    name = f"ONNX Runtime {metadata.version('onnxruntime')}"
    return _compared(onnx_runner(folder / ONNX_FILE), classifier, form, name)


def onnx_runner(file: Path) -> Any:
    """Return a function from input tensors to the outputs of an ONNX file, run on the processor."""
    runtime: Any = import_module("onnxruntime")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        arrays: list[np.ndarray] = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
        return torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1])

    return run


def write_torch(folder: Path, classifier: Classifier, form: Form) -> list[str]:
    """Write ``model.pt2`` by ``torch.export``, load it again and compare.

    Returns:
        Sentences on how well the two agree.

    Raises:
        UserError: the model cannot be exported, or does not come back the same.
    """
    module, example, shapes = _to_trace(classifier, form)
    with quiet(CHATTY):
        try:
            program = torch.export.export(module, example, dynamic_shapes=shapes)
            record = description(classifier, form)
            torch.export.save(program, folder / TORCH_FILE, extra_files={TORCH_RECORD: json.dumps(record)})
            loaded = torch.export.load(folder / TORCH_FILE).module()
            return _compared(lambda inputs: loaded(*inputs), classifier, form, "the file, loaded again,")
        except (UserError, OSError):
            raise
        except Exception as error:
            raise _cannot(classifier, "torch.export", error) from error


def _compared(run: Runner, classifier: Classifier, form: Form, name: str) -> list[str]:
    difference = check_against_torch(run, classifier, form, name)
    same = f"{name} and torch agree on the same tensors: logits differ by at most {difference:.1g}."
    return [same, *([measure_resizing(run, classifier, form)] if form.resizing else [])]


def write_tensors(folder: Path, classifier: Classifier) -> list[str]:
    """Write ``model.safetensors`` and ``model.json``, and load them again.

    Raises:
        UserError: they do not come back the same.
    """
    classifier.save(folder)
    loaded, pixels = Classifier.load(folder), sample_images(classifier, 2)
    if not torch.equal(loaded.logits(pixels), classifier.logits(pixels)):
        raise UserError("the model was written but does not load as the same; nothing was kept. Try it again.")
    return ["the files were loaded again and give the same logits to the last bit."]


def _to_trace(
    classifier: Classifier, form: Form, free: Callable[[str], Any] = lambda _: torch.export.Dim.DYNAMIC
) -> tuple[DeployedClassifier, tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    """Return the module, example inputs and which of their axes may change: those are what ``free`` makes of a name."""
    module = DeployedClassifier(classifier, form).eval().requires_grad_(False)
    side = classifier.framing.resize
    # Neither square nor the framing's own: a size that may change must not look fixed.
    pixels = sample_images(classifier, 2, (2 * side + 3, side + 5) if form.resizing else None)
    axes: dict[int, Any] = {0: free("batch")}
    if form.resizing:
        axes |= {2: free("height"), 3: free("width")}
    prior = torch.full((classifier.num_classes,), 1 / classifier.num_classes, dtype=torch.float64)
    inputs = model_inputs(classifier, form, pixels, prior)
    return module, inputs, (axes, *({} for _ in inputs[1:]))


def _cannot(classifier: Classifier, what: str, error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(". ")
    return UserError(
        f"{what} cannot express the encoder {classifier.spec.get('encoder')} ({reason}); nothing was written. "
        "Try another --format."
    )
