"""Docstrings as the reference shows them: what our style says otherwise than Google's, put in Google's words."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class HouseStyle(Extension):
    """Rewrites docstrings before they are read into sections."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = in_googles_words(obj.docstring.value)


def in_googles_words(text: str) -> str:
    """Return a docstring with ``Examples`` for ``Example``, an entry for each of ``a, b: ...`` and no Sphinx roles."""
    text = re.sub(r":(?:class|func|meth|mod|attr):(`)~?", r"\1", text)
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    shared = re.compile(r"^    (\w+(?:, \w+)+): (.*(?:\n {8}.*)*)", re.MULTILINE)
    return shared.sub(lambda m: "\n".join(f"    {name}: {m[2]}" for name in m[1].split(", ")), text)
