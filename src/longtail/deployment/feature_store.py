"""Features on disk while they are computed: shards that are whole or not there, so that a run cut off goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtail.data.feature_arrays import INDEX, join_parts, shards_of
from longtail.errors import UserError
from longtail.files import load_meta, load_tensors, save_tensors

_PLAN = "plan"
_INDEX = INDEX.removesuffix(".json")
_OWN = re.compile(rf"({_PLAN}|{_INDEX}|encoder|(train|test)-\d{{5,}})\.(json|safetensors)")
_CUT_OFF = re.compile(rf"\.{_OWN.pattern}\.\d+\.tmp")  # what a write that was killed leaves


def written_files(out: Path) -> list[Path]:
    """Return the files that become of shards where ``out`` is one file: itself, its record, and the encoder's two."""
    stems = (out.stem, f"{out.stem}.encoder")
    return [out.with_name(f"{stem}{ending}") for stem in stems for ending in (".safetensors", ".json")]


def is_begun(out: Path) -> bool:
    """Return whether there are shards of what is to become the file ``out``."""
    return (shards_of(out) / f"{_PLAN}.json").exists()


class FeatureStore:
    """The shards of one ``longtail embed``.

    Args:
        out: the file that they become in the end, or the folder in which they stay.
        plan: what is computed, JSON-able: shards of another plan are not gone on with.
        overwrite: delete what an earlier embedding left in the folder first, and nothing else that lies there.

    Raises:
        UserError: shards of something else, or other files, lie there.
    """

    def __init__(self, out: Path, plan: dict[str, Any], overwrite: bool) -> None:
        plan = json.loads(json.dumps(plan))  # as it is read again, to be compared
        self.out, self.single = out, out.suffix == ".safetensors"
        self.folder = shards_of(out) if self.single else out
        begun = (self.folder / f"{_PLAN}.json").exists()
        if begun and self._is_same(plan, overwrite):
            return
        if begun:
            # The plan is replaced, never gone: cut off here, the folder is still known for one of features.
            self._remove(but=_PLAN)
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder} is not empty and holds no features; choose another --out.")
        save_tensors(self.folder, _PLAN, {"none": torch.empty(0)}, plan)

    def _is_same(self, plan: dict[str, Any], overwrite: bool) -> bool:
        """Return whether the shards that are there are gone on with, so that ``overwrite`` too goes on when cut off.

        Raises:
            UserError: they are not, and nobody said that they may be replaced.
        """
        if overwrite and not self.single and (self.folder / INDEX).exists():
            return False  # they are finished, and to be replaced
        try:
            begun = load_meta(self.folder, _PLAN)
        except UserError as error:
            if overwrite:
                return False
            raise UserError(f"{str(error).rstrip('.')}; add --overwrite to start anew.") from None
        differs = [key for key in plan if begun.get(key) != plan[key]]
        if differs and not overwrite:
            raise UserError(
                f"{self.folder} holds features of another {differs[0].replace('_', ' ')}; add --overwrite to start "
                "anew, or choose another --out."
            )
        return not differs

    def has(self, stem: str) -> bool:
        """Return whether that shard is there, whole and as it was written; its record is written last."""
        if not (self.folder / f"{stem}.json").exists():
            return False
        try:
            load_tensors(self.folder, stem)
        except UserError:  # a damaged one is computed anew
            return False
        return True

    def save(self, stem: str, tensors: dict[str, Tensor], part: str) -> None:
        """Write a shard of ``train`` or ``test``."""
        save_tensors(self.folder, stem, tensors, {"part": part})

    def finish(self, stems: list[str], tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Make the file, or the folder's index, of all shards.

        Args:
            stems: of the shards, in order.
            tensors: of the encoder, which is written beside them.
            record: of what lies in them; its ``origin`` is that encoder's too.

        Raises:
            UserError: a shard was cut off or changed.
        """
        encoder = f"{self.out.stem}.encoder" if self.single else "encoder"
        place = self.out.parent if self.single else self.folder
        if self.single:
            # What was there goes only now, its record first: without it, and beside shards, a file counts as cut off.
            self.out.with_suffix(".json").unlink(missing_ok=True)
        origin = {**record["origin"], "file": f"{encoder}.safetensors"}
        record = {**record, "origin": origin}
        save_tensors(place, encoder, tensors, {"origin": origin})
        if not self.single:
            save_tensors(self.folder, _INDEX, {"none": torch.empty(0)}, {**record, "shards": stems})
            return
        joined: dict[str, list[Tensor]] = {}
        for part, found in self._shards(stems):
            for name, tensor in found.items():
                joined.setdefault(f"{part}_{name}", []).append(tensor)
        whole = {name: join_parts(name, joined.pop(name)) for name in list(joined)}
        save_tensors(place, self.out.stem, whole, record)
        self._remove()

    def _shards(self, stems: list[str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for stem in stems:
            tensors, meta = load_tensors(self.folder, stem)
            yield str(meta["part"]), tensors

    def _remove(self, but: str | None = None) -> None:
        """Delete what embeddings write into the folder, by name: whatever else lies there is the user's."""
        found = [path for path in self.folder.iterdir() if _OWN.fullmatch(path.name) or _CUT_OFF.fullmatch(path.name)]
        # Without the index nobody takes the rest for whole, and with the plan the same command goes on.
        for path in sorted(found, key=lambda path: (path.stem == _PLAN, path.stem != _INDEX)):
            if path.stem != but:
                path.unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()
