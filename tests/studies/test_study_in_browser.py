"""The page of a study in headless Chromium, with names that break out of markup."""

from pathlib import Path

import numpy as np
import pytest
from tiny_studies import bars

from browser import Browser, page_problems

pytestmark = [pytest.mark.check]


@pytest.mark.parametrize("name", ["temperature", "prior"])
def test_a_study_in_browser(browser: Browser, run, name) -> None:  # type: ignore[no-untyped-def]
    evil = Path("<img src=x onerror=hacked()>.npz")
    np.savez(evil, **bars())
    run(name, data=str(evil), seeds=2)
    assert page_problems(browser, Path("study/study.html")) == []
