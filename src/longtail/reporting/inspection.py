"""``longtail inspect``: a look at images before anything is trained on them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, replace
from json import dumps
from pathlib import Path
from typing import Any

from longtail.config import TrainConfig
from longtail.data import DataSplits, ImageFiles
from longtail.data.check_cache import default_cache
from longtail.data.file_splits import FileChecks
from longtail.data.sources import is_features
from longtail.data.streaming import default_workers
from longtail.data.survey import Survey, survey
from longtail.errors import UserError
from longtail.files import check_output, write_bytes
from longtail.methods import get_method
from longtail.options import make_config, parse_values
from longtail.reporting.inspect_figures import data_figures, suspect_labels
from longtail.reporting.inspect_findings import findings
from longtail.reporting.inspect_page import is_ours, render
from longtail.reporting.inspect_text import lines
from longtail.reporting.reproduce import as_text
from longtail.training.defaults import describe, resolve
from longtail.training.devices import pick_device
from longtail.training.framing_defaults import chosen_framing
from longtail.training.held_out import held_out
from longtail.training.progress import ProgressReporter
from longtail.training.run_folder import environment
from longtail.training.time_estimate import OtherPrograms, estimate_time

_SECONDS_TO_TIME = 15.0


def inspect(
    data: str | Path,
    *,
    root: str | Path | None = None,
    out: str | Path | None = None,
    run: str | Path | None = None,
    json: bool = False,
    quiet: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Look at images before training: classes, sizes, broken files, duplicates, leaks, and what training would do.

    Nothing is trained and nothing is changed. What would stop or spoil a training is told, not raised. Returned is what
    ``--json`` prints; ``findings`` holds the sentences that matter most, the most serious first.

    Args:
        data: whatever ``train`` takes: a name, a folder of images, a manifest, a split list, arrays or a
            hub set.
        root: folder that listed paths are relative to, or that holds a published data set.
        out: the page to write, or a folder for it; default ``inspect-DATA.html`` in the current folder, and with --json
            none.
        run: folder of a finished run on this data, whose doubts show labels that may be wrong. Best is one with folds,
            which has tested every image.
        json: print one JSON object and nothing else.
        quiet: print nothing.
        options: options of ``train``, such as ``source={"group_pattern": "..."}``: how the data is read and split, and
            what the suggested training and its expected time are for.

    Raises:
        UserError: there is nothing of that name, a table cannot be read, the page would replace another file, or
            ``run`` is not a finished run on this data.
    """
    say = ProgressReporter(quiet or json)
    given = parse_values(options, "inspect") | {"data": str(data)} | ({} if root is None else {"root": str(root)})
    config = make_config(given)
    page = None if json and out is None else _page_path(str(data), out)
    if is_features(config.data):
        raise UserError(
            f"{config.data} holds features, in which there is nothing to look at; inspect the images that they are of."
        )
    many, few = config.group_edges
    found = survey(
        config.data,
        imbalance=config.imbalance,
        root=config.root,
        folds=config.folds,
        source=config.source,
        checks=FileChecks(
            "skip",
            default_workers(None),
            default_cache(),
            say.counter("looking at every image"),
            say.counter("writing images as files"),
        ),
    )
    figures = data_figures(found, (many, few))
    if run is not None:
        figures["label_suspects"] = suspect_labels(found, held_out(Path(run), config.data, config.root, say), str(run))
        if figures["label_suspects"] is None:
            raise UserError(f"--run {run} was tested on none of these images; name a run on {data}.")
    figures["training"] = None
    if found.splits is not None:
        say.say("timing a few steps of training ...")
        try:
            figures["training"] = _training(config, given, found, found.splits)
        except UserError as error:
            figures["refusal"] = str(error)
    figures["findings"] = findings(figures)
    for line in lines(figures):
        say.say(line)
    if page is not None:
        _write(page, render(figures, found), say)
    if json and not quiet:
        print(dumps(figures, indent=2, ensure_ascii=False, allow_nan=False))
    return figures


def _training(config: TrainConfig, given: Mapping[str, Any], found: Survey, splits: DataSplits) -> dict[str, Any]:
    """Return the suggested command, what it would choose, and how long that takes here.

    Raises:
        UserError: training would refuse an option.
    """
    extra = {"on_bad_image": "skip"} if found.facts.errors else {}
    words = [f"--{key} {shlex.quote(as_text(value))}" for key, value in {**given, **extra}.items() if key != "data"]
    config, notes = resolve(config, splits)
    train = splits.train
    train = replace(train, framed=chosen_framing(config)) if isinstance(train, ImageFiles) else train
    get_method(config.method).check(config, train)
    device = pick_device(config.device)
    hardware = environment(device)["hardware"]
    others = OtherPrograms()
    stages = [asdict(stage) for stage in estimate_time(config, splits, _SECONDS_TO_TIME)]
    return {
        "command": " ".join(["longtail train", shlex.quote(config.data), *words]),
        "chosen": describe(config, set(given)),
        "notes": notes,
        "stages": stages,
        "runs": (config.folds or 1) * config.source.repeats,
        "machine": f"{hardware['processor'] if device.type == 'cpu' else hardware['device']}, "
        f"{hardware['threads']} threads",
        "others": others.share(),
    }


def _page_path(data: str, out: str | Path | None) -> Path:
    """Return where the page goes.

    Raises:
        UserError: there is a file that is not such a page.
    """
    name = f"inspect-{Path(data).expanduser().resolve().stem or 'data'}.html"
    place = Path(name) if out is None else Path(out).expanduser()
    if place.is_dir() or (out is not None and place.suffix.lower() not in (".html", ".htm")):
        place = place / name
    if place.exists() and not is_ours(place):
        raise UserError(f"{place} is there and no page of longtail inspect; choose another --out.")
    return check_output(place, overwrite=True)


def _write(page: Path, text: str, say: ProgressReporter) -> None:
    try:
        write_bytes(page, text.encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"the page {page} cannot be written ({error.strerror}); choose another --out.") from None
    say.say(f"page: {page}")
