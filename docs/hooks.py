"""What these pages need beyond MkDocs: pictures drawn by code, equations as MathML."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor

sys.path.append(str(Path(__file__).parent / "pictures"))
import circle
import street

_AFTER_CODE = 185  # between Python-Markdown's patterns for `code` (190) and for backslashes (180)


class _Equation(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:  # noqa: N802
        block, inline = m.groups()
        mathml = convert((block or inline).strip(), display="block" if block else "inline")
        mathml = mathml.replace("<mi>&#x02032;</mi>", "<mo>&#x02032;</mo>")  # a prime is no italic letter
        # TeX's thin space after a function's name, unless a bracket follows.
        mathml = re.sub(r"(<mi>(?:log|exp)</mi>)(?!<mo|<mrow><mo)", r'\1<mspace width="0.167em"/>', mathml)
        mathml = mathml.replace("<mo>&#x02016;</mo>", '<mo stretchy="false">&#x02016;</mo>')  # bars of a norm
        return self.md.htmlStash.store(mathml), m.start(0), m.end(0)


class Equations(Extension):
    """``$...$`` and ``$$...$$`` as MathML, which browsers show without a script."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Register the pattern."""
        pattern = r"\$\$(.+?)\$\$|(?<![\\\w$])\$(?=[^\s$])([^$\n]+?)(?<=\S)\$(?![\w$])"
        md.inlinePatterns.register(_Equation(pattern, md), "equation", _AFTER_CODE)


def on_config(config: Any) -> Any:
    """Add the equations."""
    config.markdown_extensions.append(Equations())
    return config


def on_files(files: Any, config: Any) -> Any:
    """Draw the pictures."""
    from mkdocs.structure.files import File

    for name, svg in {**circle.pictures(), **street.pictures()}.items():
        files.append(File.generated(config, f"pictures/{name}", content=svg))
    return files
