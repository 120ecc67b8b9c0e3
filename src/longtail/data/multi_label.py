"""Recognise data with several labels an image, which one-label training must refuse."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from longtail.errors import UserError

_LIST = re.compile(r"[\[({].*,.*[\])}]", re.DOTALL)


def multi_label_error(where: str, evidence: str) -> UserError:
    """Return the error for multi-label data: ``evidence`` completes the sentence "``where``: ..."."""
    return UserError(
        f"{where}: {evidence}, which is multi-label data, and one label an image is needed: keep the main label of "
        "each image, or train one binary manifest a label (if such a label is a single name, add --source.labels "
        "names)."
    )


def refuse_multi_label(where: str, labels: set[str]) -> None:
    """Raise ``UserError`` if distinct ``labels`` are written as lists, or joined by ``|``, ``;`` or ``,``.

    A separator alone proves nothing ("Rose, red" is one class). Joined labels show themselves by parts
    that are labels on their own, or that stand at another place in another joined label; at least half of the
    labels with the separator must show it, because single names happen to share words too. ``|`` is hardly
    ever part of a name, so there any part found twice counts.
    """
    lists = sorted(label for label in labels if _LIST.fullmatch(label))
    if lists:
        raise multi_label_error(where, f"label {lists[0]!r} is a list")
    for separator in "|;,":
        joined = sorted(label for label in labels if separator in label)
        shown = [label for label in _reused(joined, labels, separator) if label]
        if shown and 2 * len(shown) >= len(joined):
            example = shown[0]
            raise multi_label_error(
                where, f"label {example!r} joins labels that other images have too by {separator!r}"
            )


def _reused(joined: list[str], labels: set[str], separator: str) -> Iterable[str]:
    """Give each joined label whose parts show that they are labels of their own."""
    parts = {label: [part.strip() for part in label.split(separator)] for label in joined}
    places: dict[str, set[int]] = defaultdict(set)
    found: dict[str, int] = defaultdict(int)
    for label in joined:
        for place, part in enumerate(parts[label]):
            places[part].add(place)
            found[part] += 1
    for label in joined:
        own = [part for part in parts[label] if part]
        alone = [part in labels for part in own]
        moved = any(len(places[part]) > 1 for part in own)
        repeated = separator == "|" and any(found[part] > 1 for part in own)
        if own and (moved or repeated or all(alone) or (separator == "|" and any(alone))):
            yield label
