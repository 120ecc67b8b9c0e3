"""A model card in Markdown, as model hubs read it, from what the run itself recorded: nothing is made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

import longtail
from longtail.data.hub_sets import HUB_SET, parse_hub_set
from longtail.deployment.run_records import RunRecords, read_records
from longtail.errors import counted
from longtail.metrics import GROUPS
from longtail.metrics.post_hoc import is_uniform
from longtail.models import Classifier
from longtail.models.brief_card import CARD_HEAD
from longtail.reporting.charts import FEW_IMAGES
from longtail.reporting.headline import group_sizes
from longtail.reporting.in_words import classes_tested, warnings
from longtail.reporting.markdown import escape, table
from longtail.reporting.report import METHODS
from longtail.reporting.reproduce import reproduce_command

CARD_FILE = "README.md"
_WORST = 5
_MOST_CLASSES = 200
"""Above this number of classes the card lists the largest and smallest only."""
_ENDS = 10


def model_card(run: Path, classifier: Classifier, usage: str = "", applied: str = "predict") -> str:
    """Return the model card of ``classifier`` from the records in ``run``, as many of them as are there.

    Args:
        run: a run folder, or one that holds the model alone.
        classifier: its model.
        usage: Python that uses what the card lies beside; "" leaves that section out.
        applied: where the logits are divided by the temperature: ``"inside"`` what the card lies beside, by
            ``"predict"`` of the folder it lies in, or ``"outside"``, by whoever uses it.

    Raises:
        UserError: a record is cut off or of another form.
    """
    records = read_records(run)
    title = f"{_data_name(records)}: {_method(records)}"
    how = f"```python\n{usage}\n```" if usage else ""
    sections = [
        ("Intended use", _intended_use(classifier)),
        ("How to use", how),
        ("Data", _data(classifier, records)),
        ("Figures", _figures(records)),
        ("What it is bad at", _weaknesses(records)),
        ("Calibration", _calibration(records, applied)),
        ("Class prior", _prior(classifier)),
        ("Training", _training(classifier, records)),
        ("Classes", _classes(classifier, records)),
    ]
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections if text)
    return f"---\n{_head(records, title, classifier.takes_features)}---\n\n# {escape(title)}\n\n{body}\n"


def _data_name(records: RunRecords) -> str:
    data = str((records.config or {}).get("data") or "")
    return _hub_set(records) or Path(data).name or "images"


def _hub_set(records: RunRecords) -> str:
    """Return ``owner/name`` of the hub's data set, "" where the data is another."""
    data = str((records.config or {}).get("data") or "")
    return parse_hub_set(data).name if data.startswith(HUB_SET) else ""


def _method(records: RunRecords) -> str:
    method = (records.config or {}).get("method")
    return METHODS.get(str(method), str(method)) if method else "image classifier"


def _head(records: RunRecords, title: str, features: bool) -> str:
    """Return the YAML that model hubs read."""
    head: dict[str, Any] = dict(CARD_HEAD)
    task = "tabular-classification" if features else "image-classification"
    if features:
        head |= {"pipeline_tag": task, "tags": [task, "long-tailed-recognition"]}
    hub_set = _hub_set(records)
    if hub_set:
        head["datasets"] = [hub_set]
    evaluation = records.evaluation
    if evaluation is not None:
        kinds = {"top1": ("accuracy", "Top-1"), "balanced_accuracy": ("balanced_accuracy", "Balanced accuracy")}
        metrics = [{"type": kind, "name": name, "value": round(evaluation[k], 4)} for k, (kind, name) in kinds.items()]
        name = hub_set or _data_name(records)
        result = {
            "task": {"type": task},
            "dataset": {"name": name, "type": name if records.data_named else "tabular" if features else "imagefolder"},
            "metrics": metrics,
        }
        head |= {
            "metrics": [kind for kind, _ in kinds.values()],
            "model-index": [{"name": title, "results": [result]}],
        }
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=False)


def _intended_use(classifier: Classifier) -> str:
    counts = classifier.class_counts
    if classifier.takes_features:
        return (
            f"Sorts a vector of {len(classifier.mean)} features, as one encoder gives them, into one of "
            f"{classifier.num_classes} classes, which were learned from {int(counts.max())} down to "
            f"{int(counts.min())} rows each. Every row gets one of these classes. The figures below hold for rows like "
            "the test rows; the run says nothing about others, nor about licence and purpose: who publishes the model "
            "adds that."
        )
    return (
        f"Sorts an image into one of {classifier.num_classes} classes, which were learned from {int(counts.max())} "
        f"down to {int(counts.min())} training images each. Every image gets one of these classes, also an image of "
        "something else. The figures below hold for images like the test images; the run says nothing about others, "
        "nor about licence and purpose: who publishes the model adds that."
    )


def _data(classifier: Classifier, records: RunRecords) -> str:
    height, width = classifier.image_size
    framing, channels = classifier.framing, len(classifier.mean)
    lines = [
        f"Features of {channels} values, of the encoder that made those of the training; then (feature - mean) / std "
        "with the mean and deviation that the files hold."
        if classifier.takes_features
        else f"Images: {'gray' if channels == 1 else 'RGB'}, the shorter side resized to {framing.resize} pixels "
        f"({framing.interpolation}), the centre of {height} x {width} cut out, then (pixel / 255 - mean) / std with "
        f"mean {_numbers(classifier.mean)} and std {_numbers(classifier.std)}."
    ]
    record = records.data
    if record is not None:
        lines.append(
            f"{counted(record.train_images, 'training image')}, {counted(record.test_images, 'test image')}; test set: "
            f"{escape(record.test_split)}."
        )
        lines += [f"- {escape(note)}" for note in record.notes]
        if record.skipped_count and not any("cannot be read" in note for note in record.notes):
            lines.append(f"- {counted(record.skipped_count, 'file')} could not be read and were left out.")
    else:
        lines.append(f"{int(classifier.class_counts.sum())} training images.")
    return "\n".join([lines[0], "", *lines[1:]])


def _figures(records: RunRecords) -> str:
    evaluation = records.evaluation
    if evaluation is None:
        return "None: there is no evaluation.json beside the model."
    bounds = evaluation["intervals"]
    sizes = group_sizes(evaluation["group_edges"])
    named = [("Top-1", evaluation["top1"], "top1", "all test images")]
    named.append(("Balanced", evaluation["balanced_accuracy"], "balanced_accuracy", "every class weighs the same"))
    for group in GROUPS:
        figures = evaluation["groups"][group]
        word = "class" if figures["classes"] == 1 else "classes"
        about = f"{classes_tested(figures)} {word} with {sizes[group]} training images"
        named.append((group.capitalize(), evaluation["groups"][group]["accuracy"], group, about))
    rows = [[name, about, _percent(value), _interval(bounds.get(key))] for name, value, key, about in named]
    chosen = evaluation.get("selected")
    selection = "The last epoch was evaluated; the test images selected nothing."
    if evaluation.get("selection") == "best" and isinstance(chosen, dict):
        selection = (
            f"Epoch {chosen['epoch']} of {chosen['of']} was evaluated: the best by {escape(str(chosen['figure']))} on "
            f"{counted(chosen['images'], 'validation image')}; the test images selected nothing."
        )
    text = table(["figure", "of", "per cent", "95 % interval"], rows)
    method = escape(str(bounds.get("method", "not recorded")))
    return (
        f"On {counted(evaluation['test_images'], 'test image')}. {selection}\n\n{text}\n\nIntervals: {method}. They "
        "say what other test images of the same classes would change, not another training run."
    )


def _weaknesses(records: RunRecords) -> str:
    tested = [row for row in records.classes if row.accuracy is not None]
    if not tested:
        return ""
    worst = sorted(tested, key=lambda row: (row.accuracy or 0.0, row.high))[:_WORST]
    rows = [
        [
            *(escape(row.name), str(row.train_images), f"{row.correct} of {row.test_images}"),
            _interval((row.low, row.high)),
            f"{escape(row.confused_with)} ({row.confused_count})" if row.confused_count else "-",
        ]
        for row in worst
    ]
    lines = [*(escape(line) + "\n" for line in warnings(records.evaluation or {}))]
    lines += [table(["worst class", "training images", "right", "95 % interval", "most often taken for"], rows), ""]
    untested = [row.name for row in records.classes if row.test_images == 0]
    thin = [row for row in tested if row.test_images < FEW_IMAGES]
    if untested:
        shown = ", ".join(map(escape, untested[:20])) + (", ..." if len(untested) > 20 else "")
        lines.append(f"- No test image, so nothing is known of {counted(len(untested), 'class', 'classes')}: {shown}.")
    if thin:
        classes = counted(len(thin), "class", "classes")
        lines.append(f"- Fewer than {FEW_IMAGES} test images, too few to tell: {classes}.")
    return "\n".join(lines).rstrip()


def _calibration(records: RunRecords, applied: str) -> str:
    lines = []
    if records.evaluation is not None:
        lines.append(
            "Expected calibration error (mean gap between confidence and accuracy) of the softmax as it is, on the "
            f"test images: {_percent(records.evaluation['ece'])} %."
        )
    fitted = records.calibration
    if fitted is not None and fitted["temperature"] != 1:
        temperature = f"{fitted['temperature']:.4g}"
        where = {
            "inside": "The logits that come out are divided by it inside.",
            "predict": "`longtail predict` and `predict` of the loaded model divide the logits by it.",
            "outside": f"It is not applied in this file: divide the logits by {temperature} first.",
        }[applied]
        if "ece" in fitted and "images" in fitted:
            before, after = (100 * value for value in fitted["ece"])
            lines.append(
                f"A temperature of {temperature} was fitted on {counted(fitted['images'], 'validation image')} (never "
                f"on test images). {where} On the validation images it takes the expected calibration error from "
                f"{before:.1f} to {after:.1f} %."
            )
        else:
            lines.append(f"A temperature of {temperature} was fitted. {where}")
        calibrated = (records.evaluation or {}).get("calibrated")
        if isinstance(calibrated, dict) and "ece" in calibrated:
            lines.append(f"With it that of the test images is {_percent(calibrated['ece'])} %.")
    elif lines:
        lines.append("No temperature was fitted: these probabilities are not calibrated.")
    return " ".join(lines)


def _prior(classifier: Classifier) -> str:
    prior, counts = classifier.logit_prior.double(), classifier.class_counts.double()
    if is_uniform(prior):
        what = "that all classes are equally frequent (uniform prior)"
    elif torch.allclose(prior, counts / counts.sum(), atol=1e-6):
        what = "that classes are as frequent as in the training images"
    else:
        what = "the class frequencies in its logit_prior"
    return (
        f"The softmax assumes {what}. Where classes come at other rates, add log(their rates) - log(logit\\_prior) to "
        "the logits before the softmax."
    )


def _training(classifier: Classifier, records: RunRecords) -> str:
    parts = [f"Encoder {escape(str(classifier.spec['encoder']))}, {classifier.spec['head']} classifier."]
    config = records.config
    if config is not None:
        command = reproduce_command(config, short_paths=True)
        parts = [
            f"{parts[0]} Method: {escape(_method(records))}, {config.get('epochs')} epochs, seed {config.get('seed')}."
        ]
        parts.append(f"```sh\n{command}\n```")
    environment = records.environment
    versions = ", ".join(f"{escape(str(name))} {escape(str(v))}" for name, v in environment["versions"].items())
    hardware = ", ".join(f"{escape(str(name))} {escape(str(v))}" for name, v in environment["hardware"].items())
    seconds = sum(value for value in environment["seconds"].values() if isinstance(value, int | float))
    if versions:
        parts.append(f"Versions: {versions}.")
    if hardware:
        parts.append(f"Hardware: {hardware}; {seconds / 60:.1f} minutes.")
    parts.append(f"This card was written by longtail {longtail.__version__} from the run's own records.")
    return "\n\n".join(parts)


def _classes(classifier: Classifier, records: RunRecords) -> str:
    counts = classifier.class_counts.tolist()
    by_name = {row.name: row for row in records.classes}
    order = sorted(range(len(counts)), key=lambda index: -counts[index])
    note = ""
    if len(order) > _MOST_CLASSES:
        note = f"The {_ENDS} largest and the {_ENDS} smallest of {len(order)} classes.\n\n"
        order = [*order[:_ENDS], *order[-_ENDS:]]
    rows = []
    for index in order:
        name = classifier.class_names[index]
        row = by_name.get(name)
        right = f"{row.correct} of {row.test_images}" if row is not None and row.test_images else "-"
        rows.append([escape(name), str(index), str(counts[index]), right])
    return note + table(["class", "index", "training images", "test images right"], rows)


def _numbers(values: torch.Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values.tolist())


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _interval(bounds: Any) -> str:
    return "-" if not bounds else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"
