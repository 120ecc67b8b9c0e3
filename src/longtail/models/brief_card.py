"""The card of a classifier that goes to the hub without the records of its run: what it is, and how to use it."""

from __future__ import annotations

from collections.abc import Sequence

CARD_HEAD = (
    ("library_name", "longtail"),
    ("pipeline_tag", "image-classification"),
    ("tags", ["image-classification", "long-tailed-recognition"]),
)
"""What hubs read at the top of every card of this package."""
_MOST = 100


def brief_card(repository: str, class_names: Sequence[str], class_counts: Sequence[int]) -> str:
    """Return a model card in Markdown, with the YAML at its top that model hubs read.

    Args:
        repository: ``owner/name``.
        class_names, class_counts: of C classes.
    """
    head = "".join(
        f"{key}:\n" + "".join(f"- {tag}\n" for tag in value) if isinstance(value, list) else f"{key}: {value}\n"
        for key, value in CARD_HEAD
    )
    listed = "".join(
        f"    {name}: {count}\n" for name, count in list(zip(class_names, class_counts, strict=True))[:_MOST]
    )
    more = f"    ... and {len(class_names) - _MOST} more\n" if len(class_names) > _MOST else ""
    return (
        f"---\n{head}---\n\n# {repository}\n\nA classifier of {len(class_names)} classes, trained with longtail.\n\n"
        f'```python\nimport longtail\n\nmodel = longtail.load("hf-hub:{repository}")\n```\n\n'
        f"Classes and their training images:\n\n{listed}{more}"
    )
