"""A study told: ``results.json``, ``study.md`` and one self-contained ``study.html``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import longtail
from longtail.errors import counted
from longtail.files import as_json, write_bytes
from longtail.reporting import markdown
from longtail.reporting.compare_page import HUES
from longtail.reporting.in_words import duration
from longtail.reporting.reproduce import as_text
from longtail.reporting.templates import templates
from longtail.studies.addition import Addition
from longtail.studies.additions import ADDITIONS
from longtail.studies.ledger import Ledger
from longtail.studies.plan import Plan
from longtail.studies.results import read_results, record
from longtail.studies.tables import Table, as_markdown, panel_tables


def write_study(plan: Plan, ledger: Ledger, jobs: int) -> tuple[dict[str, Any], list[Table]]:
    """Write what there is so far of a study into its folder; return what ``results.json`` holds, and the tables."""
    panels = read_results(plan, ledger)
    some = any(cell.done for panel in panels for row in panel.rows for cell in row.cells)
    added = ADDITIONS[plan.study.adds](panels, ledger) if plan.study.adds and some else Addition()
    found = {**record(plan, panels, ledger, added.record), "jobs": jobs}
    tables = [table for panel in panels for table in panel_tables(panel)] + added.tables
    facts, warnings = run_facts(plan, found), [*_warnings(found), *added.notes]
    write_bytes(ledger.path / "results.json", as_json(found))
    text = study_markdown(plan, tables, facts, warnings)
    write_bytes(ledger.path / "study.md", text.encode("utf-8", "replace"))
    page = templates().get_template("study.html")
    html = page.render(
        study=plan.study,
        tables=tables,
        figures=added.figures,
        facts=facts,
        warnings=warnings,
        hues=HUES,
        version=longtail.__version__,
    )
    write_bytes(ledger.path / "study.html", html.encode("utf-8", "replace"))
    return found, tables


def _warnings(found: dict[str, Any]) -> list[str]:
    open_cells = found["cells"] - found["finished"] - found["failed"]
    told = []
    if found["failed"]:
        told.append(
            f"{found['failed']} of {counted(found['cells'], 'cell')} failed; the same command tries them again."
        )
    if open_cells:
        told.append(f"{open_cells} of {counted(found['cells'], 'cell')} are not finished; the same command goes on.")
    if len(found["code"]) > 1:
        told.append(f"Cells were trained by {len(found['code'])} versions of the code: {', '.join(found['code'])}.")
    return told


def run_facts(plan: Plan, found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what was run, on what and for how long, as (name, text)."""
    facts = [("data", panel.facts.text) for panel in plan.panels]
    facts += [("data note", note) for panel in plan.panels for note in panel.facts.notes]
    facts.append(("seeds", ", ".join(map(str, plan.seeds))))
    facts.append(("interval", found["interval"]))
    facts.append(
        ("time", f"{duration(found['seconds'])} over all cells, {counted(found['jobs'], 'process', 'processes')}")
    )
    facts += [("hardware", _pairs(each)) for each in found["hardware"]]
    facts += [("versions", _pairs(each)) for each in found["versions"]]
    facts.append(("code", ", ".join(found["code"]) or "-"))
    facts.append(("options of all cells", ", ".join(f"{k} {as_text(v)}" for k, v in found["protocol"].items())))
    return facts


def _pairs(record: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in record.items())


def study_markdown(
    plan: Plan, tables: Sequence[Table], facts: Sequence[tuple[str, str]], warnings: Sequence[str]
) -> str:
    """Return the study as Markdown."""
    parts = [f"# Study: {plan.study.name}", markdown.escape(f"{plan.study.text}. {plan.study.reading}")]
    parts += [f"**{markdown.escape(line)}**" for line in warnings]
    parts += [as_markdown(table) for table in tables]
    lines = (f"- {markdown.escape(name)}: {markdown.escape(text)}" for name, text in facts)
    return "\n\n".join([*parts, "## How it was run", "\n".join(lines)]) + "\n"
