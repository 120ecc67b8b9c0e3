"""Tar shards of samples, as WebDataset writes them, to a list of labelled images that are read out of the shards."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from longtail.data.folder import SPLIT_WORDS
from longtail.data.listing import Listing
from longtail.data.scanning import scan
from longtail.data.shard_index import ShardIndex, index_shards, split_texts
from longtail.data.shard_scan import scan_shard
from longtail.data.tar_members import Member, Members
from longtail.errors import UserError, counted
from longtail.option_groups import DataOptions

TAR = ".tar"
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 1_000_000
"""Shards that a pattern may name: a slip of the keyboard must not fill the memory."""
_WORD = re.compile("({})(?![a-z])".format("|".join(sorted(SPLIT_WORDS, key=len, reverse=True))))


def is_shards(data: str) -> bool:
    """Return whether ``data`` names tar shards: a file, a pattern, or a folder that holds them and no class folders."""
    if data.lower().endswith((TAR, *_PACKED)):
        return not Path(data).expanduser().is_dir()
    try:
        return bool(data) and Path(data).expanduser().is_dir() and bool(_in_folder(Path(data).expanduser()))
    except (OSError, UserError):  # told of by who opens it
        return False


def read_shards(
    data: str,
    source: DataOptions,
    training: bool = True,
    workers: int = 1,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Listing:
    """Return the images of tar shards with their labels; they stay where they are.

    A shard is of the split that its file's name starts with (``train-000.tar``, ``val_3.tar``), or else that of its
    folder. Without test shards the validation shards are the test set; where both are, they are left aside. Images are
    listed by the names of their members, so that another sharding of the same files, or a folder of them, gives the
    same run; by shard and member where a name occurs in several shards.

    Args:
        data: a tar file, a folder of them, or a pattern with ``{000..099}``, ``{a,b}``, ``*``, ``?`` or ``[]``.
        source: which fields of JSON members hold label and group; where test shards are (``test``).
        training: whether something is to be trained on it: there must then be training shards.
        workers: threads that index.
        cache: folder that keeps the index; None = nothing is kept.
        progress: called with (shards read, of how many).

    Raises:
        UserError: a shard is missing, damaged, or its samples cannot be used; the message names shard and member.
    """
    shards = _find(data)
    splits, notes = _splits(data, shards)
    if source.test is not None:
        shards = [shard for shard, split in zip(shards, splits, strict=True) if split in ("train", "")]
        if len(shards) < len(splits):
            notes = [f"{data}: {counted(len(splits) - len(shards), 'shard')} not named train left aside."]
        if not is_shards(source.test):
            raise UserError(f"--source.test {source.test} names no tar shards as the training data does; give such.")
        tests = _find(source.test)
        both = {os.path.realpath(shard) for shard in shards} & {os.path.realpath(shard) for shard in tests}
        if both:
            raise UserError(f"{min(both)} is a training shard and a shard of --source.test; a shard is one of them.")
        splits, shards = ["train"] * len(shards) + ["test"] * len(tests), shards + tests
    elif "" not in splits:
        used = "test" if "test" in splits else "val"
        aside = [shard for shard, split in zip(shards, splits, strict=True) if split not in ("train", used)]
        if aside:
            notes.append(
                f"{data}: {counted(len(aside), 'validation shard')} left aside, because there are test shards."
            )
        shards = [shard for shard in shards if shard not in set(aside)]
        splits = ["train" if split == "train" else "test" for split in splits if split in ("train", used)]
    if training and "train" not in splits and "" not in splits:
        raise UserError(f"{data} holds no training shard (first {shards[0]}); name training shards train-... .")
    root = Path(os.path.commonpath([os.path.dirname(shard) or "." for shard in shards]))
    inner = [os.path.relpath(shard, root) for shard in shards]
    index = index_shards(root, inner, source.label_column, source.group_column, workers, cache, progress)
    return _listing(data, root, inner, splits, notes, index, source.group_column)


def _listing(
    data: str, root: Path, inner: list[str], splits: list[str], notes: list[str], index: ShardIndex, group_column: str
) -> Listing:
    if not len(index.spans):
        raise UserError(
            f"{data}: no sample in {counted(len(inner), 'shard')} (first {root / inner[0]}); a sample is KEY.jpg, .png "
            "or the like with KEY.cls or KEY.json."
        )
    texts, names, shard_of = split_texts(index.texts), split_texts(index.names), index.shard_of()
    if len(set(names)) < len(names):
        names = [f"{inner[shard]}/{name}" for shard, name in zip(shard_of.tolist(), names, strict=True)]
    others = int(index.shards[:, 3].sum())
    if others:
        first = int(np.flatnonzero(index.shards[:, 3])[0])
        notes.append(
            f"{data}: {counted(others, 'member')} that are no image, .cls or .json of a sample left aside, first "
            f"{split_texts(index.others)[first]} in {inner[first]}."
        )
    groups = (
        [texts[code] for code in index.groups.tolist()]
        if any(texts[code] for code in set(index.groups.tolist()))
        else None
    )
    spans = torch.from_numpy(np.column_stack([shard_of, index.spans]))
    listing = Listing(
        data,
        root,
        names,
        [texts[code] for code in index.labels.tolist()],
        None if set(splits) <= {"", "train"} else [splits[shard] for shard in shard_of.tolist()],
        groups,
        notes=tuple(notes),
        members=Members(tuple(inner), spans),
    )
    if groups is not None and "" in groups:
        title = listing.title(groups.index(""))
        raise UserError(f"{title} has no {group_column!r} in its JSON, but other samples have; add it there.")
    return listing


def shard_images(data: str) -> list[str]:
    """Return the images of tar shards, labelled or not, shard by shard, as texts that ``tar_members`` opens.

    Raises:
        UserError: a shard is missing or damaged.
    """
    places = []
    for shard in _find(data):
        found = scan_shard(shard, "", "", labelled=False)
        spans = zip(found.offsets, found.lengths, found.names, strict=True)
        places += [Member(shard, offset, length, name).place() for offset, length, name in spans]
    return places


def _find(data: str) -> list[str]:
    place = Path(data).expanduser()
    if data.lower().endswith(_PACKED):
        raise UserError(f"{data}: compressed shards cannot be read image by image; uncompress them to .tar files.")
    if place.is_dir():
        return [str(place / shard) for shard in _in_folder(place)]
    if place.is_file():
        return [str(place)]
    named = list(_expanded(str(place)))
    found: list[str] = []
    for name in named:
        found += (
            sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) and not os.path.exists(name) else [name]
        )
    found = list(dict.fromkeys(found))
    missing = [name for name in found if not os.path.isfile(name)]
    if missing and len(found) > 1:
        raise UserError(
            f"{data}: of the {len(found)} shards that it names {len(missing)} cannot be found, first {missing[0]}; "
            "copy them, or name fewer."
        )
    if missing:
        raise UserError(f"no such shard: {missing[0]}")
    if not found:
        raise UserError(f"no file matches {data}; name tar shards, a folder of them or another pattern.")
    return found


def _expanded(pattern: str) -> Iterator[str]:
    """Yield what a pattern names with each ``{a..b}`` and ``{x,y}`` written out, as a shell does."""
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    numbers = _RANGE.fullmatch(found[1])
    if numbers is not None:
        first, last = int(numbers[1]), int(numbers[2])
        if abs(last - first) >= _MOST:
            raise UserError(f"{pattern} names {abs(last - first) + 1} shards, more than {_MOST}; correct it.")
        width = max(map(len, numbers.groups())) if any(n[0] == "0" and len(n) > 1 for n in numbers.groups()) else 0
        step = 1 if last >= first else -1
        parts: Sequence[str] = [f"{number:0{width}d}" for number in range(first, last + step, step)]
    elif "," in found[1]:
        parts = found[1].split(",")
    else:
        raise UserError(f"{pattern}: {found[0]} is neither a range such as {{000..099}} nor a choice such as {{a,b}}.")
    for part in parts:
        yield from _expanded(pattern[: found.start()] + part + pattern[found.end() :])


def _in_folder(folder: Path) -> list[str]:
    """Return the tar files in a folder, or in its split folders, if it holds nothing that is a folder of images."""
    folders, images, files = scan(str(folder))
    tars = [file for file in files if file.lower().endswith(TAR)]
    if tars and not folders and not images:
        return tars
    if tars or images or not folders or any(name.lower() not in SPLIT_WORDS for name in folders):
        return []
    found: list[str] = []
    for name in folders:
        below, images, files = scan(str(folder / name))
        if below or images:
            return []
        found += [f"{name}/{file}" for file in files if file.lower().endswith(TAR)]
    return found


def _splits(data: str, shards: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return ``train``, ``test`` or ``val`` of each shard ("" for all where no name says it), and notes."""
    splits = []
    for shard in shards:
        folder, name = os.path.split(shard.lower())
        found = _WORD.match(name)
        splits.append(SPLIT_WORDS[found[1]] if found else SPLIT_WORDS.get(os.path.basename(folder), ""))
    without = [shard for shard, split in zip(shards, splits, strict=True) if not split]
    if without and len(without) < len(shards):
        raise UserError(
            f"{data}: the name of {without[0]} says no split, but that of "
            f"{next(shard for shard, split in zip(shards, splits, strict=True) if split)} does; let every shard's name "
            "start with train, test or val, or none."
        )
    return splits, []
