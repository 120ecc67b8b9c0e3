"""Docstrings as the reference shows them: examples as code, Sphinx's roles as plain names."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class HouseStyle(Extension):
    """Words our docstrings use that Google's style does not know."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            text = re.sub(r":(?:class|func|meth|mod|attr):(`)~?", r"\1", obj.docstring.value)
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
