"""The pages of compare and inspect in headless Chromium, with names that break out of markup or fit no line."""

from pathlib import Path

import pytest
from test_compare import make_run
from test_report_in_browser import ARABIC, LONG

from browser import Browser, page_problems

pytestmark = [pytest.mark.check, pytest.mark.usefixtures("one_thread")]

TAG = "<img src=x onerror=hacked()>"


@pytest.mark.parametrize("names", [("a", LONG), (TAG, ARABIC, *(f"run {k}" for k in range(7)))], ids=len)
def test_a_comparison_in_browser(browser: Browser, desk, names) -> None:  # type: ignore[no-untyped-def]
    for seed, name in enumerate(names):
        make_run(Path("runs") / name, "gml" if seed % 2 else "cross_entropy", seed, epochs=3 + seed, predictions=True)
    desk.run("compare", "runs/*", "--out", "page.html")
    assert page_problems(browser, Path("page.html")) == []


def test_a_look_at_data_in_browser(browser: Browser, desk, make_photos, paint) -> None:  # type: ignore[no-untyped-def]
    make_photos(desk.folder / "photos", {TAG: 30, ARABIC: 12, LONG: 9, "cat": 3})
    paint(desk.folder / "photos" / "cat" / "copy of a bar.png", 1, 1)
    (desk.folder / "photos" / "cat" / f"{LONG}.png").write_bytes(b"")
    desk.run("inspect", "photos")
    page = Path("inspect-photos.html")
    assert page_problems(browser, page) == []
    assert all(part in page.read_text() for part in ("Equal pixels", "Broken files", "copy of a bar"))
    desk.run("inspect", "photos", "--source.check", "sample")
    assert page_problems(browser, page) == []
