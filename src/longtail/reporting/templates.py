"""The templates in ``pages/``: of the report, the look at the data and the comparison, with one style sheet."""

from __future__ import annotations

import jinja2

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
    pages.filters.update(percent=percent, number=number)
    return pages
