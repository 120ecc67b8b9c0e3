"""Where live lines may be drawn, and that nobody else's output suffers."""

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console
from rich.file_proxy import FileProxy
from rich.text import Text

from longtail.training.live_region import NotebookRegion, TerminalRegion, region_for
from longtail.training.progress import ProgressReporter


@pytest.fixture
def terminal(monkeypatch):
    """A pseudo-terminal that nobody reads: for a few lines its buffer is enough."""
    master, slave = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    file = os.fdopen(slave, "w")
    yield file
    file.close()
    os.close(master)


def test_who_gets_what(terminal, tmp_path, monkeypatch):
    assert isinstance(region_for(Console(file=terminal)), TerminalRegion)
    assert region_for(Console(file=terminal, quiet=True)) is None
    assert isinstance(region_for(Console(file=terminal, force_jupyter=True)), NotebookRegion)
    with open(tmp_path / "log", "w") as file:
        assert region_for(Console(file=file)) is None
        monkeypatch.setenv("FORCE_COLOR", "1")
        assert region_for(Console(file=file)) is None


def test_a_job_in_the_background_leaves_the_terminal_alone(terminal, monkeypatch):
    region = region_for(Console(file=terminal))
    monkeypatch.setattr(os, "tcgetpgrp", lambda handle: os.getpgrp() + 1)
    assert region_for(Console(file=terminal)) is None
    region.draw([Text("a")])  # put there later, with Ctrl-Z and bg
    assert not isinstance(sys.stdout, FileProxy)
    monkeypatch.setattr(os, "tcgetpgrp", lambda handle: os.getpgrp())
    region.draw([Text("a")])
    assert isinstance(sys.stdout, FileProxy)
    region.close()
    assert not isinstance(sys.stdout, FileProxy)


def test_a_forked_worker_prints_past_the_panel(terminal):
    region = region_for(Console(file=terminal))
    region.draw([Text("a")])
    assert isinstance(sys.stderr, FileProxy)
    child = os.fork()
    if child == 0:
        os._exit(isinstance(sys.stdout, FileProxy) or isinstance(sys.stderr, FileProxy))
    assert os.waitpid(child, 0)[1] == 0
    assert isinstance(sys.stderr, FileProxy)
    region.close()


@pytest.fixture
def notebook(monkeypatch):
    """IPython's display, as far as it is used: outputs that can be updated."""
    outputs = []

    def display(bundle, raw, display_id):
        assert raw
        assert display_id
        outputs.append(bundle)
        place = len(outputs) - 1
        return SimpleNamespace(update=lambda bundle, raw: outputs.__setitem__(place, bundle))

    module = ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return outputs


def test_a_notebook_gets_one_output_that_is_updated(notebook, monkeypatch, capsys):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    reporter = ProgressReporter()
    assert reporter.live
    reporter.note("preparing <b>")
    reporter.note("preparing <i>")
    assert [output["text/plain"] for output in notebook] == ["preparing <i>"]
    assert "preparing &lt;i&gt;" in notebook[0]["text/html"]
    reporter.say("a note")
    reporter.stop()
    assert notebook == [{"text/plain": "", "text/html": ""}]
    assert capsys.readouterr().out == "a note\n"
