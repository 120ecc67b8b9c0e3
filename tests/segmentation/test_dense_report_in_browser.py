"""The report of a run on masks in headless Chromium: see ``test_report_in_browser.py``."""

from pathlib import Path

import pytest
from test_report_page import EVIL, NAMES, full, make_run

from browser import Browser, page_problems
from longtail.segmentation.report import write_dense_report

pytestmark = pytest.mark.check


@pytest.mark.parametrize("optional", [False, True])
def test_dense_report_in_browser(browser: Browser, tmp_path: Path, optional: bool) -> None:
    make_run(tmp_path)
    if optional:
        full(tmp_path)
    path = write_dense_report(tmp_path)
    assert page_problems(browser, path) == []
    browser.open(path)
    names = "[...document.querySelectorAll('#dense-classes tbody th')].map(n => n.textContent)"
    press = "document.querySelectorAll('#dense-classes thead button')[{}].click()"
    assert browser.run(names) == NAMES
    browser.run(press.format(5))
    assert browser.run(names) == ["never", NAMES[3], EVIL, "road", "sky"]
    browser.run(press.format(2))
    browser.run(press.format(2))
    assert browser.run(names) == NAMES
