"""The report in headless Chromium: nothing on the console, no request, nothing out of reach, at two widths.

A page of another kind is checked by one line, ``assert page_problems(browser, path) == []``, in a test marked ``check``
whose name ends in ``in_browser``: `make check-report` runs those.
"""

from pathlib import Path

import pytest
from test_report import COUNTS, EVIL, full, make_folds, make_run, write_report

from browser import Browser, page_problems

pytestmark = pytest.mark.check

ARABIC = "\u0623\u0631\u0646\u0628 \u0628\u0631\u064a"
LONG = "Rhinolophus_" + "hipposideros" * 8
NAMES = [EVIL, ARABIC, LONG, *(f"class {k}" for k in range(3, 30))]


def open_run(folder: Path) -> Path:
    """Write a run whose names break out of markup, run from right to left, and do not fit a line."""
    counts = [max(2, round(400 / 1.2**k)) for k in range(30)]
    make_run(folder, counts, [20] * 25 + [9, 2, 1, 0, 0], NAMES)
    return folder


@pytest.mark.parametrize("optional", [False, True])
def test_hostile_names_in_browser(browser: Browser, tmp_path: Path, optional: bool) -> None:
    if optional:
        make_run(tmp_path, COUNTS, [30] * 8 + [9, 0], NAMES[:10])
        full(tmp_path)
    else:
        open_run(tmp_path)
    path = write_report(tmp_path)
    assert page_problems(browser, path) == []
    assert browser.run("window.hacked === undefined && document.querySelectorAll('script').length") == 2
    # A name from right to left is set apart, so that the words and figures around it keep their order.
    every = "[...document.querySelectorAll('td, th, dd')].filter(n => n.textContent.includes('\u0623'))"
    assert browser.run(f"{every}.length && {every}.every(n => n.querySelector('bdi') !== null)")


def test_tables_sort_and_filter_in_browser(browser: Browser, tmp_path: Path) -> None:
    open_run(tmp_path)
    browser.open(write_report(tmp_path))
    names = "[...document.querySelectorAll('#classes-table tbody th')].map(n => n.textContent)"
    assert browser.run(names) == NAMES
    press = "document.querySelectorAll('#{} thead button')[{}].click()"
    browser.run(press.format("classes-table", 2))
    assert browser.run(names) != NAMES
    images = "[...document.querySelectorAll('#classes-table tbody tr')].map(row => +row.cells[2].textContent)"
    found = browser.run(images)
    assert found == sorted(found)
    browser.run(press.format("classes-table", 2))
    assert browser.run(images) == sorted(found, reverse=True)
    assert browser.run("document.querySelector('#classes-table [aria-sort]').ariaSort") == "descending"
    browser.run("filter.value = 'CLASS 1'; filter.dispatchEvent(new Event('input'))")
    assert sorted(browser.run(names)) == sorted(name for name in NAMES if "class 1" in name)
    assert browser.run("found.textContent") == "10 of 30 classes"

    cells = "[...document.querySelectorAll('#pairs-table tbody tr')].filter(row => !row.hidden).map(row => {})"
    browser.run(press.format("pairs-table", 3))
    of = browser.run(cells.format("+row.cells[3].dataset.value"))
    assert of == sorted(of)
    assert of[0] < of[-1]
    script = "const box = document.getElementById('pairs-table-filter'); box.value = 'class 9'; "
    browser.run(f"{{ {script} box.dispatchEvent(new Event('input')) }}")
    shown = browser.run(cells.format("row.textContent"))
    assert shown
    assert len(shown) < len(of)
    assert all("class 9" in text for text in shown)


def test_folds_and_a_real_run_in_browser(browser: Browser, desk, one_thread) -> None:  # type: ignore[no-untyped-def]
    make_folds(desk.folder / "folds", folds=3, repeats=2)
    for folder in [*(desk.folder / "folds").glob("fold-*"), desk.folder / "folds"]:
        write_report(folder)
    assert page_problems(browser, desk.folder / "folds" / "report.html") == []
    desk.run("train", "digits-lt", "--epochs", "2", "--val_fraction", "0.3", "--device", "cpu", "--out", "run")
    assert page_problems(browser, desk.folder / "run" / "report.html") == []
    assert browser.run("document.querySelectorAll('.gallery img').length") > 4
    assert browser.run("document.querySelector('#calibration').textContent.includes('temperature was fitted')")


def test_thousands_of_classes_in_browser(browser: Browser, tmp_path: Path) -> None:
    classes = 8142
    counts = [max(2, int(1000 / (k + 1) ** 0.7)) for k in range(classes)]
    names = [f"Genusname speciesname {k}" for k in range(classes)]
    make_run(tmp_path, counts, [3] * classes, names)
    assert page_problems(browser, write_report(tmp_path), widths=(1280,)) == []
    assert browser.run("document.querySelectorAll('#classes-table tbody tr').length") == 100
    browser.run("on.click()")
    assert browser.run("document.querySelector('#classes-table tbody th').textContent") == names[100]


def test_the_check_sees_what_is_wrong_in_browser(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><title>x</title><h1>a</h1><h3>b</h3><p style='width:2000px'>wide</p><img src='data:,'>"
        "<p style='color:#aaa'>pale</p><table><tr><th>c</table><button></button><input>"
        "<script>console.error('no'); fetch('http://127.0.0.1:9/x').catch(() => 0); boom()</script>"
    )
    told = "\n".join(page_problems(browser, page, widths=(390,)))
    for part in (
        "overflow: the page is",
        "overflow: <p",
        "no alt",
        "not an image",
        "no caption",
        "no scope",
        "no name",
        "no label",
        "heading skips a level",
        "contrast 2.",
        "console:",
        "request: http://127.0.0.1:9/x",
        "exception:",
    ):
        assert part in told, (part, told)
