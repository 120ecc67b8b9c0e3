"""``longtail embed``: every image through a frozen encoder once, so that heads can be trained in seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longtail.config import TrainConfig, replace_options, resolved
from longtail.data import DataSplits, FeatureSet, ImageFiles, ImageSet, LabelledImages, build_view
from longtail.data.feature_arrays import packed_paths
from longtail.data.feature_origin import origin_record
from longtail.data.feature_set import FeatureOrigin
from longtail.data.streaming import default_workers, view_frames
from longtail.data.views import View, check_recipe
from longtail.deployment.feature_store import FeatureStore, is_begun, written_files
from longtail.errors import UserError, counted, unknown_name
from longtail.files import check_output
from longtail.models import build_encoder, feature_dim, load_weights
from longtail.options import make_config, parse_values
from longtail.training.defaults import resolve
from longtail.training.kept_encoder import digest_of
from longtail.training.progress import ProgressReporter
from longtail.training.run_data import frame_for_run, read_splits
from longtail.training.weight_defaults import choose_pretrained

_DTYPES = {"float32": torch.float32, "float16": torch.float16}
_SHARD_IMAGES = 4096
_PLAIN = "plain"
_READ = (
    "data root backbone pretrained image_size imbalance folds val_fraction on_bad_image seed device precision "
    "loading.workers loading.resize loading.interpolation"
).split()
"""Options of a training that say something here, beside those of the data (``source``); ``folds`` and ``val_fraction``
are read to be refused."""


def embed(
    data: str | Path,
    *,
    out: str | Path = "features.safetensors",
    views: int = 1,
    view: str | None = None,
    dtype: str = "float32",
    batch_size: int = 64,
    shard_images: int = _SHARD_IMAGES,
    overwrite: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Path:
    """Embed the training and test images of a data set by a frozen encoder, for ``longtail train FEATURES``.

    What is computed is kept, a shard at a time: the same command goes on where it was cut off.

    Args:
        data: as for train: a name, a folder, a manifest, a split list or an .npz file of images.
        out: file to write, .safetensors; or a folder, in which the shards then stay.
        views: of every training image: one without augmentation, the others augmented, of which a training step draws.
        view: augmentation recipe of those others; default: what fits the images.
        dtype: float32, or float16 for half the room.
        batch_size: images at a time; speed and memory only.
        shard_images: images a shard: what is lost at most if the command is cut off.
        overwrite: replace what lies at out.
        quiet: print nothing.
        options: options of ``train`` that say how data is read (``imbalance``, ``source``, ...), which encoder
            (``backbone``, ``pretrained``, ``image_size``), and where it runs (``device``, ``precision``, ``loading``).

    Returns:
        The file or folder.

    Raises:
        UserError: an option, the data or the weights cannot be used, or ``out`` is taken.
    """
    say, target = ProgressReporter(quiet), Path(out)
    _check(target, views, view, dtype, batch_size, shard_images, overwrite)
    given = parse_values(options, "embed") | {"data": str(data)}
    read = {key: value for key, value in given.items() if _is_read(key, views, view)}
    # The plainest method, and no texts: what a training would choose beside the encoder is not looked at.
    config = make_config({"method": "cross_entropy", "start.head": "random", **read})
    unread = [f"--{key}" for key in given if key not in read]
    if unread:
        say.say(f"not read by longtail embed, so without effect: {', '.join(unread)}.")
    splits = read_splits(config, say)
    config, splits, notes = _framed(config, given, splits, say)
    encoder, origin = _encoder(config, splits)
    device = torch.device(config.device)
    recipe = view or resolved(config.views.classifier)
    mean, std = origin.mean, origin.std
    made = {_PLAIN: build_view("none", mean, std)}
    made |= {f"view {number}": build_view(recipe, mean, std) for number in range(1, views)}
    plan = {
        "data": [splits.train.fingerprint(), splits.test.fingerprint()],
        "encoder": origin_record(origin),
        "views": [views, recipe if views > 1 else None, config.seed],
        "type": [dtype, config.precision],
        "shard_images": shard_images,
    }
    store = FeatureStore(target, plan, overwrite)
    for note in (*splits.notes, *notes):
        say.say(note)
    say.say(
        f"{splits.name}: {len(splits.train)} training and {counted(len(splits.test), 'test image')} by "
        f"{origin.encoder} ({origin.weights}), {feature_dim(encoder)} values each"
        + (f", {views} views" if views > 1 else "")
    )
    tensors = {name: tensor.cpu() for name, tensor in encoder.state_dict().items()}
    run = _Embedding(encoder.to(device).to(memory_format=torch.channels_last), device, config, batch_size, dtype)
    show, total, stems = say.counter("embedding"), len(splits.train) + len(splits.test), []
    done = 0
    try:
        for part, images, wanted in (("train", splits.train, made), ("test", splits.test, {_PLAIN: made[_PLAIN]})):
            for stem, count in run.shards(store, part, images, wanted, shard_images):
                stems.append(stem)
                done += count
                show(done, total)
    except KeyboardInterrupt:
        say.say(f"{done} of {total} images are embedded and kept in {store.folder}; the same command goes on.")
        raise
    record = {
        "class_names": list(splits.train.class_names),
        "test_split": splits.test_split,
        "notes": list(splits.notes),
        "source": str(data),
        "origin": origin_record(origin),
    }
    store.finish(stems, tensors, record)
    say.say(f"{target}: train heads on it with longtail train {target}")
    return target


class _Embedding:
    """An encoder at work."""

    def __init__(
        self, encoder: nn.Module, device: torch.device, config: TrainConfig, batch_size: int, dtype: str
    ) -> None:
        self.encoder, self.device, self.config = encoder, device, config
        self.batch_size, self.dtype = batch_size, _DTYPES[dtype]
        workers = config.loading.workers
        self.workers = default_workers(device) if workers is None else workers

    def shards(
        self, store: FeatureStore, part: str, images: LabelledImages, views: Mapping[str, View], size: int
    ) -> Iterator[tuple[str, int]]:
        """Compute the shards of ``images`` that are not there; yield the name of each and how many images it holds."""
        stems = [f"{part}-{number:05d}" for number in range(-(-len(images) // size))]
        batches: Iterator[Tensor] | None = None
        waiting = torch.empty(0)
        for number, stem in enumerate(stems):
            start = number * size
            count = min(size, len(images) - start)
            if store.has(stem):
                # The batches that follow are of images that are embedded already.
                batches = None
                yield stem, count
                continue
            if batches is None:
                batches, waiting = self._features(images, views, start), torch.empty(0)
            gathered = [waiting] if len(waiting) else []
            while sum(map(len, gathered)) < count:
                gathered.append(next(batches))
            whole = torch.cat(gathered)
            waiting = whole[count:]
            rows = torch.arange(start, start + count)
            tensors = {"features": whole[:count].contiguous(), "labels": images.labels[rows]}
            if images.paths is not None:
                tensors["paths"] = packed_paths(images.paths.select(rows.tolist()))
            store.save(stem, tensors, part)
            yield stem, count

    def _features(self, images: LabelledImages, views: Mapping[str, View], start: int) -> Iterator[Tensor]:
        """Yield ``[B, V, D]`` of the images from ``start`` on, batch by batch, on the CPU."""
        for made in self._views(images, views, start):
            yield torch.stack([self._encode(view) for view in made], 1)

    def _views(self, images: LabelledImages, views: Mapping[str, View], start: int) -> Iterator[Iterator[Tensor]]:
        """Yield the normalised views of each batch, one after the other."""
        seed = self.config.seed
        if isinstance(images, ImageFiles):
            for frames in view_frames(images, views, self.batch_size, self.workers, seed, start):
                yield (views[name].normalise(made.to(self.device)) for name, made in frames.items())
            return
        assert isinstance(images, ImageSet)
        for ids in torch.split(torch.arange(start, len(images)), self.batch_size):
            pixels, keys = images.images[ids].to(self.device), ids.to(self.device)
            yield (view(pixels, keys, seed, 0, name) for name, view in views.items())

    @torch.inference_mode()
    def _encode(self, images: Tensor) -> Tensor:
        low = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=low):
            features: Tensor = self.encoder(images).float()
        if not bool(torch.isfinite(features).all()):
            raise UserError(
                f"the encoder {self.config.backbone} gives values that are not finite; try --precision float32, or "
                "other weights."
            )
        kept: Tensor = features.to(self.dtype)
        if not bool(torch.isfinite(kept).all()):
            raise UserError(
                f"the encoder {self.config.backbone} gives values up to {float(features.abs().max()):.3g}, which does "
                "not fit float16; use --dtype float32."
            )
        return kept.cpu()


def _framed(
    config: TrainConfig, given: dict[str, Any], splits: DataSplits, say: ProgressReporter
) -> tuple[TrainConfig, DataSplits, list[str]]:
    """Fill in what is open and bring the images to the encoder's size."""
    if isinstance(splits.train, FeatureSet):
        raise UserError(f"{config.data} holds features already; train on it: longtail train {config.data}.")
    if config.folds is not None or config.val_fraction:
        raise UserError("--folds and --val_fraction are for the training on the features, not for longtail embed.")
    if config.backbone is None:
        raise UserError("say with --backbone which encoder embeds the images, such as --backbone resnet50.")
    asked = config.precision
    config, _ = resolve(config, splits)  # its notes are on a training that does not take place
    notes = [f"precision {config.precision} is used."] if asked == "fastest" else []
    # Files are read as a stream: each is needed once.
    config = replace_options(config, {"loading.resident": False}) if isinstance(splits.train, ImageFiles) else config
    config, weight_notes = choose_pretrained(config, splits)
    if config.pretrained == "none" and given.get("pretrained") != "none":
        why = weight_notes[0] if weight_notes else f"--backbone {config.backbone} has no published weights."
        raise UserError(
            f"{why.rstrip('.').split(': give')[0]}; features of random weights say little, so name some with "
            "--pretrained FILE or --pretrained RUN."
        )
    return config, frame_for_run(config, splits, say), [*notes, *weight_notes]


def _encoder(config: TrainConfig, splits: DataSplits) -> tuple[nn.Module, FeatureOrigin]:
    """Return the encoder with its weights, in eval mode, and what is to be known of it."""
    name, channels, weights = resolved(config.backbone), splits.train.channels, config.pretrained or "none"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = build_encoder(name, channels, splits.train.image_size).eval()
    load_weights(encoder, name, weights, channels)
    words = {"none": "random weights"}.get(weights, weights)
    digest = digest_of(encoder.state_dict())
    return encoder, FeatureOrigin(name, channels, splits.mean, splits.std, splits.train.framing, words, digest=digest)


def _is_read(option: str, views: int, view: str | None) -> bool:
    """Return whether embedding reads an option of a training; the recipe of views is read where there are several."""
    if option == "views.classifier":
        return views > 1 and view is None
    return option in _READ or option.startswith("source.")


def _check(
    out: Path, views: int, view: str | None, dtype: str, batch_size: int, shard_images: int, overwrite: bool
) -> None:
    for name, value in (("views", views), ("batch_size", batch_size), ("shard_images", shard_images)):
        if value < 1:
            raise UserError(f"--{name} must be 1 or more, got {value}.")
    if dtype not in _DTYPES:
        raise unknown_name("--dtype", dtype, _DTYPES)
    if view is not None:
        check_recipe(view, "--view")
    if view is not None and views == 1:
        raise UserError(f"--view {view} is for further views; say how many with --views 4 or so.")
    if out.suffix:
        # Shards that are there are of a command that could write the file: it, cut off while it wrote, goes on.
        check_output(out, overwrite or is_begun(out), (".safetensors",))
        taken = [path for path in written_files(out)[1:] if os.path.lexists(path)]
        if taken and not (overwrite or is_begun(out)):
            raise UserError(
                f"--out {out} would also write {taken[0]}, which exists; add --overwrite or choose another file."
            )
    elif out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file without .safetensors; name a .safetensors file or a folder.")
    elif (out / "features.json").exists() and not overwrite:
        raise UserError(f"--out {out} holds features; add --overwrite or choose another folder.")
