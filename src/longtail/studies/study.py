"""``longtail study``: many runs that answer one question, resumed where they were, told in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtail.errors import UserError, counted, unknown_name
from longtail.studies.catalog import STUDIES, get_study

if TYPE_CHECKING:
    from longtail.studies.plan import Plan

_CODE = ("keep", "anew")


@dataclass(frozen=True)
class StudyResult:
    """What a study came to.

    Attributes:
        folder: ``results.json``, ``study.md``, ``study.html`` and every run lie in it.
        results: the content of ``results.json``.
    """

    folder: Path
    results: dict[str, Any]

    @property
    def exit_code(self) -> int:
        """1 if a cell failed, else 0."""
        return int(self.results["failed"] > 0)


def study(
    name: str = "",
    *,
    data: str | None = None,
    methods: Sequence[str] | None = None,
    seeds: int = 3,
    jobs: int = 1,
    recipe: str | None = None,
    against: str | None = None,
    out: str | None = None,
    code: str | None = None,
    quiet: bool = False,
    **options: Any,
) -> StudyResult | None:
    """Run a study, or go on with it; without a name, list the studies.

    Cells that are finished are never run again; one that was stopped goes on where it was; one that failed is told in
    the tables, the others go on, and the same command tries it again. More seeds, methods or epochs in the same folder
    add cells to it.

    Args:
        name: of the study; without one they are listed.
        data: a data set's name or a path, in place of the study's own.
        methods: names of methods, in place of the study's own.
        seeds: how many; cells have the seeds 0, 1, ...
        jobs: processes that train cells side by side, the processor's cores shared out among them.
        recipe: options of a recipe for all cells, in place of the one that fits the data.
        against: name of the row that all others are compared with, in place of the study's own.
        out: folder; default runs/study-NAME or runs/study-NAME-DATA.
        code: what to do with finished cells that another version of the code trained: keep them, or train them anew.
        quiet: print nothing.
        options: of training, for every cell.

    Raises:
        UserError: one sentence that says what to mend; nothing that was there is lost.
        Interrupted: cells in training have written their state; the same command goes on.
    """
    if not name:
        print(listed())
        return None
    chosen = get_study(name)
    if seeds < 1 or jobs < 1:
        raise UserError(f"--{'seeds' if seeds < 1 else 'jobs'} must be 1 or more, got {min(seeds, jobs)}.")
    if code is not None and code not in _CODE:
        raise unknown_name("--code", code, _CODE)
    if methods is not None and not methods:
        raise UserError("--methods names no method; leave it out for the study's own.")
    # Torch takes seconds to load, and the list above must not wait for it.
    from longtail.options import parse_values
    from longtail.reporting.terminal import print_table
    from longtail.studies.ledger import Ledger
    from longtail.studies.page import write_study
    from longtail.studies.plan import make_plan
    from longtail.studies.runner import run_cells
    from longtail.training.guard import Interrupted
    from longtail.training.progress import ProgressReporter

    say = ProgressReporter(quiet)
    given = parse_values(options, "study")
    if given.get("task") == "segmentation":
        raise UserError(
            "studies are of classification; train runs on masks one by one and put them side by side: longtail compare "
            "RUN RUN."
        )
    plan = make_plan(
        chosen, given, data=data, methods=methods or (), recipe=recipe, against=against, seeds=seeds, say=say
    )
    folder = Path(out or default_folder(name, data))
    with Ledger(folder, name) as ledger:
        ledger.settle_code([cell.folder for cell in plan.cells], code)
        for line in _introduction(plan):
            say.say(line)
        try:
            run_cells(plan.cells, ledger, jobs, say)
        except Interrupted:
            write_study(plan, ledger, jobs)
            raise
        results, tables = write_study(plan, ledger, jobs)
    for table in tables:
        print_table(say, table.title, list(table.head), [[cell.text for cell in row] for row in table.rows])
        for line in table.notes:
            say.say(line)
    if results["failed"]:
        say.say(f"{counted(results['failed'], 'cell')} failed; the same command tries again.")
    say.say(f"study: {folder / 'study.html'}")
    return StudyResult(folder, results)


def listed() -> str:
    """Return the list of studies, a line each."""
    lines = [f"{each.name:<18} {each.text}" for each in STUDIES.values()]
    return "\n".join(
        [*lines, "", "longtail study NAME runs one or goes on with it; longtail study --help has options."]
    )


def default_folder(name: str, data: str | None) -> str:
    """Return ``runs/study-NAME``, with the data's name if it is not the study's own."""
    return f"runs/study-{name}" + ("" if data is None else f"-{Path(data).stem}")


def _introduction(plan: Plan) -> list[str]:
    """Return what is about to be run, in a few lines."""
    runs = len({cell.folder for cell in plan.cells})
    rows = ", ".join(dict.fromkeys(row.name for panel in plan.panels for row in panel.rows))
    shared = [shared.key for cell in plan.cells for shared in cell.shares]
    lines = [*(panel.facts.text for panel in plan.panels), *(note for p in plan.panels for note in p.facts.notes)]
    lines.append(f"{rows}; {counted(len(plan.seeds), 'seed')}: {counted(runs, 'cell')}")
    if len(set(shared)) < len(shared):
        serve = counted(len(set(shared)), "first stage serves", "first stages serve")
        lines.append(
            f"{serve} {len(shared)} cells: a teacher or representation of the same seed and options is the same, "
            "and is trained once."
        )
    return list(dict.fromkeys(lines))
