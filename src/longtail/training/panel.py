"""What a person sees of a stage: the lines of the live panel, and the one line that goes into a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.text import Text

from longtail.training.pace import clock
from longtail.training.trend import Trend

_WORDS = {"top1": "top-1", "balanced_accuracy": "balanced accuracy"}
_LOOKS = {"val": "validation", "test": "test"}
_GAP = "   "


@dataclass
class StageView:
    """The state of a stage, as it is shown.

    Attributes:
        run: what the run is called.
        stage: the stage's name; ``place`` is its place in the run, such as ``stage 1 of 2``, or "".
        epochs, epoch: of how many; the one under way or just ended, from 1.
        steps, step: of the epoch: of how many; taken.
        done: share of the stage's steps that are taken.
        figures: means over the epoch so far, and their ``trends``.
        looks: ``val`` and ``test``: the epoch that was looked at, and its figures; ``best`` is the highest
            ``val_balanced_accuracy`` so far with its epoch.
        learning_rate: of the last step.
        speed: images a second, or None if it is not known yet.
        elapsed, left, run_left: seconds: gone in the stage; left of it; left of the run, or None if that is the same.
        report: where the report will be.
        note: what is done between two steps, or "".
    """

    run: str
    stage: str
    place: str
    epochs: int
    steps: int
    report: str
    epoch: int = 1
    step: int = 0
    done: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)
    trends: dict[str, Trend] = field(default_factory=dict)
    looks: dict[str, tuple[int, dict[str, float]]] = field(default_factory=dict)
    best: tuple[float, int] | None = None
    learning_rate: float | None = None
    speed: float | None = None
    elapsed: float = 0.0
    left: float | None = None
    run_left: float | None = None
    note: str = ""


def plain_line(view: StageView) -> str:
    """Return the state as one line of text."""
    parts = [view.stage, f"epoch {view.epoch}/{view.epochs}"]
    if view.step < view.steps:
        parts[1] += f" step {view.step}/{view.steps}"
    parts += [f"{name} {value:.4g}" for name, value in view.figures.items()]
    looks = [figures for epoch, figures in view.looks.values() if epoch == view.epoch and view.step == view.steps]
    parts += [f"{name} {value:.4g}" for figures in looks for name, value in figures.items()]
    if view.speed is not None:
        parts.append(f"{_speed(view.speed)} images/s")
    if view.done >= 1:
        parts.append(f"took {clock(view.elapsed)}")
    elif view.left is not None:
        run = "" if view.run_left is None else f" (run {clock(view.run_left)})"
        parts.append(f"left {clock(view.left)}{run}")
    return "  ".join(parts)


def panel_lines(view: StageView, width: int, height: int, ascii_only: bool = False) -> list[Text]:
    """Return the panel's lines, each at most ``width`` cells, at most ``height`` of them.

    Where they do not fit, the figures lose their course, then what is least worth goes.
    """
    head = [_title(view, width, ascii_only), *_bars(view, width, ascii_only)]
    tail = [*_packed(_looks(view), width), *_packed(_times(view), width), _report(view, width, ascii_only)]
    if view.note:
        tail.append(Text(view.note, "italic"))
    rows = _figure_rows(view, width, ascii_only)
    if len(head) + len(rows) + len(tail) > height:
        rows = _packed([f"{name} {value:.4g}" for name, value in view.figures.items()], width)
    lines = [*head, *rows, *tail]
    if len(lines) > height:
        lines = [head[0], head[1], *_packed(_times(view)[:2], width), *rows][: max(height, 1)]
    for line in lines:
        line.truncate(width, overflow="crop" if ascii_only else "ellipsis")
        line.no_wrap = True
    return lines


def _title(view: StageView, width: int, ascii_only: bool) -> Text:
    stage = f"{view.stage}, {view.place}" if view.place else view.stage
    run = shortened(view.run, width - cell_len(stage) - len(_GAP), ascii_only)
    return Text.assemble((run, "bold"), _GAP if run else "", (stage, "cyan"))


def _bars(view: StageView, width: int, ascii_only: bool) -> list[Text]:
    """Return the bar of the stage's epochs and that of the epoch's steps, aligned."""
    counts = [("epoch", view.epoch, view.epochs), ("step", view.step, view.steps)]
    shares = [view.done, view.step / max(view.steps, 1)]
    labels = [f"{name} {at}/{of}" for name, at, of in counts]
    column = max(len(label) for label in labels)
    length = min(width - column - 7, 50)
    if length < 5:
        return [Text(f"{label} {share:4.0%}") for label, share in zip(labels, shares, strict=True)]
    return [
        Text.assemble(f"{label:<{column}} ", *bar(share, length, ascii_only), f" {share:4.0%}")
        for label, share in zip(labels, shares, strict=True)
    ]


def bar(share: float, length: int, ascii_only: bool) -> list[tuple[str, str]]:
    """Return a bar of ``length`` cells as pieces with their styles; it can be read without colour too."""
    filled = min(int(share * length), length)
    full, rest = ("#", "-") if ascii_only else ("━", "─")
    return [(full * filled, "cyan"), (rest * (length - filled), "bright_black")]


def _figure_rows(view: StageView, width: int, ascii_only: bool) -> list[Text]:
    names = max((len(name) for name in view.figures), default=0)
    course = min(width - names - 9 - 1 - 9, 32)
    rows = []
    for name, value in view.figures.items():
        trend = view.trends.get(name, Trend())
        bars = "" if ascii_only else trend.bars(course)
        row = Text.assemble(f"{name:<{names}} ", (f"{value:>8.4g} ", "bold"))
        rows.append(row.append(f"{bars} " if bars else "", "cyan").append(trend.word(), "bright_black"))
    return rows


def _looks(view: StageView) -> list[str]:
    phrases = []
    for kind, (epoch, figures) in view.looks.items():
        named = [(_WORDS.get(name.removeprefix(f"{kind}_")), value) for name, value in figures.items()]
        shown = [f"{word} {100 * value:.1f} %" for word, value in named if word is not None]
        phrases += [f"{_LOOKS[kind]} (epoch {epoch}) {shown[0]}", *shown[1:]] if shown else []
        if kind == "val" and view.best is not None and view.best[1] != epoch:
            phrases.append(f"best balanced {100 * view.best[0]:.1f} % at epoch {view.best[1]}")
    return phrases


def split_looks(figures: dict[str, float]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Split an epoch's figures into those of the training and those of ``val`` and ``test`` images."""
    looks: dict[str, dict[str, float]] = {}
    training = {}
    for name, value in figures.items():
        kind = name.partition("_")[0]
        if kind in _LOOKS:
            looks.setdefault(kind, {})[name] = value
        else:
            training[name] = value
    return training, looks


def _times(view: StageView) -> list[str]:
    phrases = []
    if view.left is not None:
        phrases.append(f"{clock(view.elapsed)} gone, {clock(view.left)} left")
    if view.run_left is not None:
        phrases.append(f"whole run about {clock(view.run_left)}")
    if view.speed is not None:
        phrases.append(f"{_speed(view.speed)} images/s")
    if view.learning_rate is not None:
        phrases.append(f"learning rate {view.learning_rate:.3g}")
    return phrases


def _report(view: StageView, width: int, ascii_only: bool) -> Text:
    label = "report at the end: "
    return Text.assemble((label, "bright_black"), shortened(view.report, width - len(label), ascii_only))


def _packed(phrases: Sequence[str], width: int) -> list[Text]:
    """Put phrases into as few lines as hold them."""
    lines: list[str] = []
    for phrase in phrases:
        if lines and cell_len(lines[-1]) + len(_GAP) + cell_len(phrase) <= width:
            lines[-1] += _GAP + phrase
        else:
            lines.append(phrase)
    return [Text(line) for line in lines]


def shortened(text: str, width: int, ascii_only: bool) -> str:
    """Return ``text``, or its end if it is wider than ``width`` cells: of a path the end tells most."""
    if cell_len(text) <= width:
        return text
    dots = "..." if ascii_only else "…"
    return next((dots + text[k:] for k in range(len(text)) if cell_len(dots + text[k:]) <= width), "")


def _speed(speed: float) -> str:
    return f"{speed:.0f}" if speed >= 10 else f"{speed:.2g}"
