"""The templates in ``pages/``: of report, look at the data, comparison and study, with one style sheet."""

from __future__ import annotations

import base64
import hashlib

import jinja2
from markupsafe import Markup

from longtail.reporting.svg import number, percent


def templates() -> jinja2.Environment:
    """Return what makes pages of templates: it escapes all text, and a name it is not given is an error."""
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("longtail.reporting", "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(percent=percent, number=number, csp_hash=_csp_hash)
    return pages


def _csp_hash(script: Markup) -> str:
    """Return the source expression by which a security policy allows exactly this inline script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()
