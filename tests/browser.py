"""A headless Chromium, spoken to over its DevTools pipe: opens a page and tells what is wrong with it.

No package is needed for it: messages are JSON, each ended by a NUL byte, on file descriptors 3 and 4.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --disable-quic --disable-sync "
    "--disable-background-networking --disable-component-update"
)
START = "import os, sys; [os.dup2(int(sys.argv[k]), 2 + k) for k in (1, 2)]; os.execv(sys.argv[3], sys.argv[3:])"
"""Puts the two pipes where the browser looks for them, descriptors 3 and 4, and becomes the browser."""
WIDTHS = (390, 1280)
PATIENCE = 60.0
"""Seconds after which a silent browser is taken for hung."""

# What a reader cannot get at: content past the right edge that no box scrolls, images and charts without words,
# tables without a caption, headings that skip a level, controls without a name.
LOOK = """(() => {
  const told = [], wide = document.documentElement.clientWidth;
  const say = (what, node) => told.push(`${what}: ${node.outerHTML.slice(0, 120)}`);
  if (document.documentElement.scrollWidth > wide)
    told.push(`overflow: the page is ${document.documentElement.scrollWidth} px wide in a window of ${wide}`);
  const seen = node => node.checkVisibility() && node.getBoundingClientRect().width > 1;
  const scrolls = node => node.closest(".box, pre") !== null;
  for (const node of document.querySelectorAll("body *")) {
    const box = node.getBoundingClientRect();
    const shown = seen(node) && !node.closest("svg") && !scrolls(node);
    if (shown && box.right > wide + 1 && box.left >= 0) say("overflow", node);
  }
  for (const node of document.querySelectorAll("img")) {
    if (!node.hasAttribute("alt")) say("no alt", node);
    if (node.complete && node.naturalWidth === 0) say("not an image", node);
  }
  for (const node of document.querySelectorAll("svg[role=img]"))
    if (!node.querySelector("title")) say("no title", node);
  for (const node of document.querySelectorAll("table")) if (!node.caption) say("no caption", node);
  for (const node of document.querySelectorAll("th")) if (!node.scope) say("no scope", node);
  for (const node of document.querySelectorAll("button"))
    if (!(node.ariaLabel || node.textContent).trim()) say("no name", node);
  for (const node of document.querySelectorAll("input"))
    if (!node.labels.length && !node.ariaLabel) say("no label", node);
  for (const node of document.querySelectorAll(".box"))
    if (node.scrollWidth > node.clientWidth + 1 && node.tabIndex < 0) say("scrolls but takes no focus", node);
  let level = 1;
  for (const node of document.querySelectorAll("h1, h2, h3, h4")) {
    if (+node.tagName[1] > level + 1) say("heading skips a level", node);
    level = +node.tagName[1];
  }
  return told;
})()"""

# Contrast of every piece of text with what lies behind it, by the formula of WCAG 2; 4.5 is its level AA.
CONTRAST = """(() => {
  const parts = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = parts(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.99) return colour;
    }
    return [255, 255, 255];
  };
  const told = new Set();
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own || !node.checkVisibility() || node.closest("[disabled], .hide, .on, script, title, desc")) continue;
    const style = getComputedStyle(node);
    const [a, b] = [light(parts(node.closest("svg") ? style.fill : style.color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) told.add(`contrast ${ratio.toFixed(2)}: ${node.tagName} ${node.textContent.trim().slice(0, 40)}`);
  }
  return [...told];
})()"""


def find_chromium() -> str | None:
    """Return the path of a Chromium or Chrome, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One browser with one tab. Every page is loaded anew; what it logged and asked for is kept."""

    def __init__(self, program: str, profile: str) -> None:
        ours, write = os.pipe()
        read, self._out = os.pipe()
        # Above 9, so that neither is in the way where the other goes.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read, write)]
        words = [program, *FLAGS.split(), f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, *map(str, ends), *words],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (read, write, *ends):
            os.close(end)
        self._in, self._rest = ours, b""
        self._numbers, self._session = itertools.count(1), ""
        self.events: list[dict[str, Any]] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        tab = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return what the DevTools method answers; events that come in between are kept."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        os.write(
            self._out, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])

    def _read(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"the browser said nothing for {PATIENCE:.0f} s"
            data = os.read(self._in, 1 << 20)
            assert data, "the browser ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, page: Path, width: int = 1280, scheme: str = "light", media: str = "screen") -> None:
        """Load a file in a window ``width`` px wide, in these colours and medium, and wait until it is drawn."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._read()
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression (of a promise, what it comes to)."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """Return what the open page wrote to the console as an error, and what it asked of the network."""
        told = []
        for event in self.events:
            method, params = event["method"], event["params"]
            if method == "Runtime.exceptionThrown":
                told.append(f"exception: {params['exceptionDetails']}")
            elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                told.append(f"console: {params['args']}")
            elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                told.append(f"log: {params['entry']['text']}")
            elif method == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith("data:") and params.get("type") != "Document":
                    told.append(f"request: {url}")
        return told

    def screenshot(self, path: Path, start: float = 0.0, height: float | None = None) -> None:
        """Write a PNG of the open page from ``start`` px down, all of it if no ``height`` is given."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": start, "width": size["width"], "height": height or size["height"] - start, "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path: Path) -> None:
        """Write the open page as it prints."""
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"]))

    def close(self) -> None:
        """End the browser."""
        with contextlib.suppress(OSError, AssertionError):
            self._session = ""
            self.call("Browser.close")
        os.close(self._out)
        os.close(self._in)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def running_browser(program: str) -> Iterator[Browser]:
    """Start a browser with an empty profile, and end it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            yield browser
        finally:
            browser.close()


def page_problems(browser: Browser, page: Path, widths: tuple[int, ...] = WIDTHS) -> list[str]:
    """Return all that is wrong with a page, in light and dark at each of ``widths``, and as printed."""
    told = []
    for scheme in ("light", "dark"):
        for width in widths:
            browser.open(page, width, scheme)
            found = [*browser.run(LOOK), *browser.run(CONTRAST), *browser.complaints()]
            told += [f"{width} px, {scheme}: {problem}" for problem in found]
    browser.open(page, 794, media="print")
    return told + [f"print: {problem}" for problem in browser.run(LOOK)]
