"""Which columns of a Parquet or hub table hold its images and its labels, told by the schema."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtail.errors import UserError
from longtail.option_groups import DataOptions

_LABEL_NAMES = (
    "label labels fine_label class class_id class_name class_label category category_id target species y".split()
)
_USUAL = DataOptions()


@dataclass(frozen=True)
class EmbeddedColumns:
    """Where images and labels are.

    Attributes:
        image: the column of encoded images, binary or ``struct{bytes, path}``.
        label: the column of labels.
    """

    image: str
    label: str


def holds_images(file: Path, path_column: str) -> bool:
    """Return whether a Parquet file holds images themselves, not their paths; False for what is no Parquet.

    A text column of the name ``path_column`` says that it holds paths, unless another column is declared to be images:
    by ``datasets``, or as ``struct{bytes, path}``.
    """
    try:
        schema = importlib.import_module("pyarrow.parquet").read_schema(file)
    except Exception:  # whatever broken bytes lead to: the reader of manifests has the sentence for it
        return False
    levels = _image_levels(schema)
    if path_column in schema.names and not _is_image(schema.field(path_column).type):
        return path_column == _USUAL.path_column and bool(levels[0] or levels[1])
    return any(levels)


def find_columns(schema: Any, where: str, path_column: str, label_column: str) -> EmbeddedColumns:
    """Return the columns of images and labels.

    The options' defaults, ``path`` and ``label``, mean that they are to be found: images by what ``datasets`` declares
    (``Image``), then ``struct{bytes, path}``, then binary columns; labels by their default name, then ``ClassLabel``,
    then by the names that tables mostly use.

    Args:
        schema: a ``pyarrow.Schema``.
        where: file or data set, for sentences.
        path_column, label_column: options of ``--source``.

    Raises:
        UserError: a named column is not there or holds no images, or there are none or several to choose from; the
            message lists the columns.
    """
    shown = ", ".join(f"{field.name} ({field.type})"[:60] for field in list(schema)[:10])
    shown += f" and {len(schema) - 10} more" if len(schema) > 10 else ""

    def one(found: Sequence[str], kind: str, option: str) -> str:
        if len(found) == 1:
            return found[0]
        what = f"several columns may hold the {kind}s ({', '.join(found)})" if found else f"no column of {kind}s found"
        raise UserError(f"{where}: {what}; it has {shown}; say which one holds them by --source.{option}.")

    def named(name: str, kind: str, option: str) -> str:
        if name not in schema.names:
            raise UserError(f"{where}: no column {name!r} of {kind}s; it has {shown}; name one by --source.{option}.")
        return name

    if path_column == _USUAL.path_column:
        levels = _image_levels(schema)
        image = one(next((level for level in levels if level), []), "image", "path_column")
    else:
        image = named(path_column, "image", "path_column")
        if not _is_image(schema.field(image).type):
            raise UserError(
                f"{where}: column {image!r} holds {schema.field(image).type}, not encoded images; it has {shown}; name "
                "another by --source.path_column."
            )
    classes = {name: feature for name, feature in _features(schema).items() if feature.get("_type") == "ClassLabel"}
    if label_column != _USUAL.label_column:
        label = named(label_column, "label", "label_column")
    elif label_column in schema.names:
        label = label_column
    else:
        plain = [name for name in schema.names if name.lower() in _LABEL_NAMES and name != image]
        label = one([*classes] or plain, "label", "label_column")
    return EmbeddedColumns(image, label)


def class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """Return the classes by number where the schema names those of a column (``ClassLabel``), else None."""
    feature = _features(schema).get(label, {})
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    return tuple(map(str, names)) if names else None


def is_text(kind: Any) -> bool:
    """Return whether a pyarrow type is text, also where its values are numbered (a dictionary of text)."""
    types: Any = importlib.import_module("pyarrow").types
    if types.is_dictionary(kind):
        return is_text(kind.value_type)
    views = getattr(types, "is_string_view", lambda _: False)
    return bool(types.is_string(kind) or types.is_large_string(kind) or views(kind))


def _image_levels(schema: Any) -> tuple[list[str], list[str], list[str]]:
    """Return the columns that are declared as images, those of bytes with a path, and those of bytes alone."""
    features = _features(schema)
    fitting = [field.name for field in schema if _is_image(field.type)]
    types: Any = importlib.import_module("pyarrow").types
    declared = [name for name in fitting if features.get(name, {}).get("_type") == "Image"]
    structs = [name for name in fitting if types.is_struct(schema.field(name).type)]
    return declared, structs, [name for name in fitting if name not in structs]


def _is_image(kind: Any) -> bool:
    types: Any = importlib.import_module("pyarrow").types
    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_binary(types, kind.field(index).type)
    return _is_binary(types, kind)


def _is_binary(types: Any, kind: Any) -> bool:
    views = getattr(types, "is_binary_view", lambda _: False)
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or views(kind))


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return what ``datasets`` wrote of each column beside the schema; {} where it wrote nothing."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
