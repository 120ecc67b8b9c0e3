"""``longtail predict``: a table of what a finished run's classifier says of new images."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from longtail.data.feature_origin import origin_of
from longtail.data.streaming import default_workers
from longtail.deployment.answers import AnswerForm, Tally
from longtail.deployment.image_inputs import ArrayImages, Source, find_features, find_images
from longtail.deployment.logit_stream import ScoredBatch, score_images
from longtail.deployment.predict_notes import (
    estimate_notes,
    estimate_trial_notes,
    probability_notes,
    shortlist_notes,
    summary,
)
from longtail.deployment.priors import find_prior, write_prior
from longtail.deployment.result_table import SET_MARK, ResultTable, choose_format
from longtail.deployment.run_records import find_run, load_classifier
from longtail.errors import UserError, counted, unknown_name
from longtail.files import check_output
from longtail.metrics import CONFORMAL_KINDS, estimate_prior
from longtail.models import Classifier, with_crops
from longtail.training.devices import pick_device
from longtail.training.kept_encoder import check_same_encoder
from longtail.training.progress import ProgressReporter
from longtail.training.shortlists import HeldOut, Shortlist, calibrate_shortlist, read_held_out

_WORDS = ("none", "uniform", "train", "estimate")
_SHOWN = 5


@dataclass(frozen=True)
class Predictions:
    """What :func:`predict` did.

    Attributes:
        images: how many were given.
        unreadable: how many of them could not be read.
        prior: class prior that the probabilities hold for, by class name; None = the model's own.
        out: the table; None where it went to standard output.
    """

    images: int
    unreadable: int
    prior: dict[str, float] | None
    out: Path | None


def predict(
    run: str | Path,
    images: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    format: str | None = None,
    top_k: int = 1,
    prior: str = "none",
    prior_out: str | Path | None = None,
    reject_below: float | None = None,
    crops: int = 1,
    coverage: float | None = None,
    conformal: str | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    quiet: bool = False,
) -> Predictions:
    """Write a table with a row for each image: class, probability, and what cannot be read.

    Args:
        run: the run's folder, or hf-hub:owner/name.
        images: files, folders (with all below), patterns such as 'photos/*.jpg', .npz files with an array images, or -
            for one path a line on standard input.
        out: file of the table: .csv, .jsonl or .parquet; default: CSV on standard output.
        format: csv, jsonl or parquet; default: by the ending of --out.
        top_k: how many classes are told of each image, the most probable first.
        prior: how frequent the classes are among these images: none (as the model has learned to expect), uniform,
            train (as in the training data), a table with the columns class and prior, or estimate (found from the
            images themselves, which are then all read before the first row is written).
        prior_out: file for the estimated prior, CSV that --prior reads.
        reject_below: say 'not sure', in a column decision, of an image whose class is less probable than this (0..1).
        crops: look at 5 crops of every image, or 10 with their mirror images, and average; default: its centre alone.
        coverage: give a shortlist of classes, in a column set, that holds the right one in this share of cases (such as
            0.9); needs a run trained with --val_fraction.
        conformal: what the coverage is of: marginal (of all images, shortest lists; the default), class (of each class;
            rare classes together) or prevalence (of all images, misses spread over frequent and rare classes).
        batch_size: images at a time; speed and memory only.
        workers: processes that decode images; 0 = none beside this one; default: by the number of cores.
        device: where to compute.
        overwrite: replace --out and --prior_out if they exist.
        quiet: print nothing but the table.

    Raises:
        UserError: an option, the run or a prior cannot be used, or no image at all could be read.
    """
    path, file, kept = find_run(run), _path(out), _path(prior_out)
    kind = choose_format(file, format)
    for option, wanted in (("--out", file), ("--prior_out", kept)):
        if wanted is not None:
            check_output(wanted, overwrite, option=option)
    if file is not None and kept is not None and file.resolve() == kept.resolve():
        raise UserError(f"--out and --prior_out are the same file, {file}; name two.")
    _check_numbers(top_k, reject_below, coverage, batch_size, workers)
    _check_prior(prior, kept, coverage, conformal)
    # The reporter keeps to what is standard output when it is made; where the table goes there, it must not.
    with redirect_stdout(sys.stderr if file is None else sys.stdout):
        say = ProgressReporter(quiet)
    listed = _listed(images)
    features = find_features(listed)
    classifier = load_classifier(path, features is not None)
    _check_kind(path, classifier, features, listed)
    classifier = with_crops(classifier, crops)
    if crops > 1 and any(str(word).lower().endswith(".npz") for word in listed):
        raise UserError("--crops are cut out of image files, but arrays are of just the model's size; leave it out.")
    if top_k > classifier.num_classes:
        raise UserError(f"--top_k {top_k} is more than the model's {classifier.num_classes} classes.")
    new = None if prior in ("none", "estimate") else find_prior(prior, classifier)
    form = AnswerForm(classifier.class_names, top_k, _shift(classifier, new), reject_below)
    notes = probability_notes(path, classifier, prior)
    if coverage is not None:
        _check_names(classifier, kind)
        form = replace(form, shortlist=_shortlist(path, classifier, conformal or "marginal", coverage, form.shift, new))
        notes += shortlist_notes(form.shortlist, coverage, prior)
    sources = features or find_images(listed, int(classifier.spec["in_channels"]), classifier.image_size)
    where = pick_device(device)
    for note in notes:
        say.say(note)
    workers = default_workers(where) if workers is None else workers
    scored = score_images(classifier.to(where), sources, batch_size, workers)
    batches: Iterable[ScoredBatch] = _with_progress(scored, classifier.temperature or 1.0, sum(map(len, sources)), say)
    tally = Tally()
    with ResultTable(file, kind, form.columns) as table:
        if prior == "estimate":
            batches = list(batches)
            new = _estimated(batches, classifier, read_held_out(path), say)
            form = replace(form, shift=_shift(classifier, new))
        for batch in batches:
            rows = form.rows(batch)
            tally.add(rows)
            table.write(rows)
        if tally.unreadable == tally.images:
            raise UserError(f"none of {counted(tally.images, 'image')} can be read, first {tally.first_bad}.")
        if kept is not None and new is not None:
            write_prior(kept, classifier.class_names, new)
    say.say(summary(tally, form, file))
    by_name = None if new is None else dict(zip(classifier.class_names, new.tolist(), strict=True))
    return Predictions(tally.images, tally.unreadable, by_name, file)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path).expanduser()


def _listed(images: Sequence[str | Path]) -> Sequence[str | Path]:
    return [images] if isinstance(images, str | Path) else images


def _check_numbers(
    top_k: int, reject_below: float | None, coverage: float | None, batch_size: int, workers: int | None
) -> None:
    for name, number, least in (("top_k", top_k, 1), ("batch_size", batch_size, 1), ("workers", workers, 0)):
        if number is not None and number < least:
            raise UserError(f"--{name} must be {least} or more, got {number}.")
    if reject_below is not None and not 0 < reject_below <= 1:
        raise UserError(f"--reject_below is a probability, above 0 and at most 1, got {reject_below:g}.")
    if coverage is not None and not 0 < coverage < 1:
        raise UserError(f"--coverage is a share between 0 and 1, such as 0.9, got {coverage:g}.")


def _check_prior(prior: str, kept: Path | None, coverage: float | None, conformal: str | None) -> None:
    if prior not in _WORDS and not Path(prior).suffix and not Path(prior).exists():
        raise unknown_name("prior", prior, (*_WORDS, "FILE.csv"))
    if kept is not None and prior != "estimate":
        raise UserError(f"--prior_out {kept} saves an estimated prior; add --prior estimate.")
    if conformal is not None and coverage is None:
        raise UserError("--conformal says what shortlists are calibrated for; add --coverage, such as 0.9.")
    if conformal is not None and conformal not in CONFORMAL_KINDS:
        raise unknown_name("--conformal", conformal, CONFORMAL_KINDS)
    if coverage is not None and prior == "estimate":
        raise UserError(
            "--coverage does not hold with a prior that is estimated from the same images; save one from other images "
            "(--prior estimate --prior_out prior.csv) and give it here (--prior prior.csv)."
        )


def _check_kind(
    run: Path, classifier: Classifier, features: Sequence[Source] | None, words: Sequence[str | Path]
) -> None:
    """Raise :class:`UserError` unless the model takes what it is to be given, images or features."""
    files = [Path(word).expanduser() for word in words if str(word).lower().endswith((".npz", ".safetensors"))]
    if classifier.takes_features and features is None and files:
        what = "there is no such file" if not files[0].exists() else "it holds no array 'features'"
        raise UserError(f"the model in {run} takes features, but {files[0]}: {what}.")
    if classifier.takes_features and features is None:
        raise UserError(
            f"the model in {run} takes features, and the encoder that makes them of images is not kept there; embed "
            "the images with it and give that file, or train on what longtail embed wrote."
        )
    if features is not None and not classifier.takes_features:
        raise UserError(f"the model in {run} takes images, not features; give it the images.")
    for source in features or ():
        assert isinstance(source, ArrayImages)
        if source.images.shape[1] != classifier.spec["in_channels"]:
            raise UserError(
                f"{source.file}: features have width {source.images.shape[1]}, but the model in {run} takes "
                f"{classifier.spec['in_channels']}; they must come from the encoder that made those of the training."
            )
        check_same_encoder(run, source.file, origin_of(source.file))


def _check_names(classifier: Classifier, kind: str) -> None:
    marked = [name for name in classifier.class_names if SET_MARK in name]
    if kind == "csv" and marked:
        raise UserError(
            f"class {marked[0]!r} holds the sign that parts the classes of a shortlist in CSV; add --format jsonl."
        )


def _shift(classifier: Classifier, prior: Tensor | None) -> Tensor | None:
    return None if prior is None else classifier.prior_shift(prior)


def _shortlist(
    folder: Path, classifier: Classifier, kind: str, coverage: float, shift: Tensor | None, prior: Tensor | None
) -> Shortlist:
    held_out = read_held_out(folder)
    if held_out is None:
        raise UserError(
            f"--coverage needs validation images: there is no validation.safetensors in {folder} (train with "
            "--val_fraction 0.1 or so, or use the run itself)."
        )
    counts = classifier.class_counts.cpu()
    return calibrate_shortlist(held_out, kind, coverage, counts, classifier.prior_shift("train"), shift, prior)


def _with_progress(
    batches: Iterable[ScoredBatch], temperature: float, total: int, say: ProgressReporter
) -> Iterator[ScoredBatch]:
    """Yield the batches, logits divided by the temperature."""
    show, done = say.counter("predicting"), 0
    for batch in batches:
        done += len(batch.names)
        show(done, total)
        yield replace(batch, logits=batch.logits / temperature)


def _estimated(
    batches: Sequence[ScoredBatch], classifier: Classifier, held_out: HeldOut | None, say: ProgressReporter
) -> Tensor | None:
    logits = torch.cat([batch.logits for batch in batches])
    if len(logits) == 0:  # told of when the rows are counted
        return None
    found = estimate_prior(logits, classifier.logit_prior.cpu())
    frequent = found.prior.argsort(descending=True, stable=True)[:_SHOWN].tolist()
    shown = ", ".join(f"{classifier.class_names[index]} {100 * float(found.prior[index]):.1f} %" for index in frequent)
    more = f" and {classifier.num_classes - _SHOWN} others" if classifier.num_classes > _SHOWN else ""
    say.say(f"prior estimated from {counted(len(logits), 'image')}: {shown}{more}.")
    if not found.settled:
        say.say("the estimate had not settled when it was stopped; more images, or calibrated probabilities, help.")
    for note in [*estimate_notes(found.prior, len(logits)), *estimate_trial_notes(held_out, classifier)]:
        say.say(note)
    return found.prior
