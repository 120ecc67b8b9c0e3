"""What a look at the data found, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size

from longtail.errors import counted, printable
from longtail.reporting.inspect_figures import size_bins

MOST_ROWS = 30
"""Classes above which the middle of the table is left out."""
BUSY = 0.1
"""Share of the processors that other programs took, above which the timing is said to be disturbed."""
_BAR = 30
_NAME = 32

Figures = dict[str, Any]


def lines(figures: Figures) -> list[str]:
    """Return the lines to print."""
    return [
        headline(figures),
        *_listed("Look at first", figures["findings"]),
        *_listed("Notes", figures["notes"]),
        "",
        *_class_table(figures["classes"]),
        *(_histogram(figures["classes"]) if figures["class_count"] > MOST_ROWS else []),
        "",
        *_group_table(figures),
        "",
        *_pixels(figures["pixels"]),
        *_duplicates(figures),
        *_suspects(figures.get("label_suspects")),
        *_plan(figures["training"]),
    ]


def headline(figures: Figures) -> str:
    """Return the data set in a line."""
    factor = figures["imbalance_factor"]
    imbalance = "" if factor is None else f" (imbalance {factor:.3g})"
    split = f" ({figures['test_split']})" if figures["test_split"] else ""
    return (
        f"{figures['data']}: {counted(figures['train_images'], 'training image')}, "
        f"{counted(figures['class_count'], 'class', 'classes')} of {figures['largest_class']} down to "
        f"{figures['smallest_class']}{imbalance}, {counted(figures['test_images'], 'test image')}{split}"
    )


def _listed(title: str, sentences: Sequence[str]) -> list[str]:
    return ["", title, *(f"  - {sentence}" for sentence in sentences)] if sentences else []


def _class_table(classes: Sequence[Figures]) -> list[str]:
    shown, gap = list(classes), 0
    if len(classes) > MOST_ROWS:
        half = MOST_ROWS // 2
        shown, gap = [*classes[:half], *classes[-half:]], half
    names = [printable(row["class"]) for row in shown]
    wide = min(_NAME, max(5, *map(cell_len, names)))
    most = max(1, classes[0]["train_images"])
    rows = [f"{set_cell_size('class', wide)}  group    train    test"]
    for place, (row, name) in enumerate(zip(shown, names, strict=True)):
        if gap and place == gap:
            left = classes[gap:-gap]
            most_left, least_left = left[0]["train_images"], left[-1]["train_images"]
            rows.append(
                f"... left out here: {counted(len(left), 'class', 'classes')} of {most_left} down to {least_left}; the "
                "page has them all, and so has --json ..."
            )
        rows.append(
            f"{_fit(name, wide)}  {row['group']:<6} {row['train_images']:>7} {row['test_images']:>7}  "
            f"{_bar(row['train_images'], most)}".rstrip()
        )
    cut = sum(cell_len(name) > wide for name in names)
    if cut:
        rows.append(f"{counted(cut, 'name')} cut at {wide} characters (…); the page and --json have them whole")
    return rows


def _fit(name: str, wide: int) -> str:
    cut = name if cell_len(name) <= wide else f"{set_cell_size(name, wide - 1).rstrip()}…"
    return str(set_cell_size(cut, wide))


def _bar(value: int, most: int) -> str:
    """Return a bar in eighths of a character; anything above 0 shows."""
    eighths = max(round(8 * _BAR * value / most), 1) if value else 0
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]).rstrip()


def _histogram(classes: Sequence[Figures]) -> list[str]:
    bins = size_bins([row["train_images"] for row in classes])
    most = max(count for _, count in bins)
    wide = max(len(name) for name, _ in bins)
    rows = [f"{name:>{wide}} {count:>7}  {_bar(count, most)}".rstrip() for name, count in bins]
    return ["", "training images: number of classes", *rows]


def _group_table(figures: Figures) -> list[str]:
    many, few = figures["group_edges"]
    words = {"many": f"more than {many}", "medium": f"{few} to {many}", "few": f"fewer than {few}"}
    return [
        f"{group:<6}  {counted(row['classes'], 'class', 'classes')} with {words[group]} training images: "
        f"{row['train_images']} training, {row['test_images']} test images"
        for group, row in figures["groups"].items()
    ]


def _pixels(pixels: Figures) -> list[str]:
    side = pixels["shorter_side"]
    if side is None:
        return ["images: none could be read"]
    kinds = ", ".join(f"{mode} {count}" for mode, count in pixels["modes"].items())
    endings = ", ".join(f"{ending or 'no ending'} {count}" for ending, count in list(pixels["endings"].items())[:6])
    frames = f"; {pixels['several_frames']} with several frames (the first is used)" if pixels["several_frames"] else ""
    return [
        f"images: shorter side {side['min']} to {side['max']} pixels, median {side['median']:g}; longer side up to "
        f"{pixels['longer_side']['max']}",
        f"pixels: {kinds}{f'; files: {endings}' if endings else ''}{frames}",
    ]


def _duplicates(figures: Figures) -> list[str]:
    near = figures["near_duplicates"]
    exact = figures["exact_duplicates"]["groups"]
    if near is None:
        return ["duplicates: not looked for, as files were only sampled (--source.check full)"]
    left = not_compared(figures)
    return [
        f"duplicates: {counted(exact, 'group')} of equal pixels; {counted(near['pairs'], 'pair')} nearly the same, of "
        f"{near['compared']} images compared" + (f" (not compared: {', '.join(left)})" if left else "")
    ]


def not_compared(figures: Figures) -> list[str]:
    """Return why images were not looked at for near duplicates, with their number: ``3 too small``."""
    skipped = figures["near_duplicates"]["not_compared"] if figures["near_duplicates"] else {}
    return [f"{number} {reason.replace('_', ' ')}" for reason, number in skipped.items() if number]


def _suspects(suspects: Figures | None) -> list[str]:
    if not suspects or not suspects["classes"]:
        return []
    rows = ["", "labels to look at, lowest first"]
    for row in suspects["classes"][:MOST_ROWS]:
        first = row["listed"][0] if row["listed"] else None
        shown = f"  first: {first['file']}, likelier {first['likelier']}" if first else ""
        rows.append(
            f"  {row['class']}: look at {row['look_first']} of {counted(row['suspects'], 'suspect')} among "
            f"{counted(row['images'], 'image')};{shown}".rstrip(";")
        )
    more = len(suspects["classes"]) - MOST_ROWS
    return [*rows, *([f"  ... {more} more classes, see the page"] if more > 0 else [])]


def _plan(training: Figures | None) -> list[str]:
    if training is None:
        return []
    rows = ["", f"suggested: {training['command']}", f"  chosen from the data: {training['chosen']}"]
    rows += [f"  {note}" for note in training["notes"]]
    if training["stages"]:
        rows.append(f"  {expected_time(training)}")
    return rows


def expected_time(training: Figures) -> str:
    """Return the expected time in a sentence that says what it rests on."""
    stages = ", ".join(f"{stage['name']} {roughly(stage['seconds'])}" for stage in training["stages"])
    steps = sum(stage["timed_steps"] for stage in training["stages"])
    total = sum(stage["seconds"] for stage in training["stages"]) * training["runs"]
    over = f" for {training['runs']} runs" if training["runs"] > 1 else ""
    busy = ""
    if training["others"] is not None and training["others"] > BUSY:
        busy = (
            f". Other programs took {100 * training['others']:.0f} % of the processors meanwhile: undisturbed it may "
            "be several times faster, so look again when the machine is quiet"
        )
    return (
        f"about {roughly(total)} on this machine ({training['machine']}){over}: an estimate from "
        f"{counted(steps, 'timed step')} ({stages}){busy}"
    )


def roughly(seconds: float) -> str:
    """Return a duration with about two figures: ``40 s``, ``12 min``, ``3.6 h``, ``12 days``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.2g} h" if seconds < 48 * 3600 else f"{round(seconds / 86400)} days"
