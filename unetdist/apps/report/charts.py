"""Curves of runs as plotly traces, and their colours; page/script.js styles them.

A trace's `meta` holds its colour on light and on dark paper; the script picks the one for the reader's system.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetdist.apps.report.run import ReportedRun

# More points than a screen has columns only make the file larger.
MAX_POINTS = 1500

# The paper colours of page/style.css.
LIGHT_PAPER, DARK_PAPER = (251, 250, 247), (21, 21, 23)

# Least contrast of lines against the paper: WCAG 2.2, criterion 1.4.11.
MIN_CONTRAST = 3.0

# On light and on dark paper. Blue and orange come first: almost everybody can tell them apart.
RUN_COLORS = (
    ("#0a62b8", "#6fb4ff"),
    ("#b04a06", "#ffa266"),
    ("#0b7358", "#4fd0a4"),
    ("#8a3a99", "#d79bea"),
    ("#6f6000", "#e0cd58"),
    ("#5a6069", "#b0b7c2"),
)

# Plotly's name and the SVG lengths of each run's line, so that runs differ by more than colour.
DASHES = (("solid", ""), ("dash", "9 6"), ("dot", "2 3"), ("dashdot", "9 4 2 4"))

Trace = dict[str, Any]
Chart = dict[str, Any]


def curves(runs: Sequence[ReportedRun]) -> list[Chart]:
    """Loss, mIoU with its interval, learning rate and speed, one line per run; charts without data are left out."""
    marks = {"mode": "markers", "marker": {"size": 7, "symbol": "circle-open"}}
    dots = [{**line, **marks, "name": f"{line['name']}, validation"} for line in _lines(runs, "val/loss")]
    losses = [*_lines(runs, "train/loss"), *dots]
    charts = [
        _chart("loss", "Loss", "training as a line, validation as dots", losses),
        _chart("miou", "mIoU", "validation, with its 95 % interval over images", _mious(runs), unit="percent"),
        _chart("lr", "Learning rate", "of the last step", _lines(runs, "train/lr")),
        _chart("speed", "Speed", "images per second, over all processes", _lines(runs, "time/images_per_s")),
    ]
    return [chart for chart in charts if chart["traces"]]


def class_curves(runs: Sequence[ReportedRun]) -> list[Chart]:
    """IoU of each class over the steps, one chart per run with at least two validations."""
    charts = []
    for index, run in enumerate(runs):
        traces = []
        for record in run.labels:
            steps, ious = run.series(f"val/iou/{record['name']}")
            if len(steps) > 1:
                traces.append(_line(steps, ious, record["name"], class_color(record["color"])))
        if traces:
            charts.append(_chart(f"classes-{index}", run.name, "", traces, unit="percent"))
    return charts


def thinned(
    steps: NDArray[np.float64], values: NDArray[np.float64], most: int = MAX_POINTS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most `most` points: means of neighbours at the last step of each group; nan only where all of them are nan."""
    if len(steps) <= most:
        return steps, values
    edges = np.linspace(0, len(steps), most + 1).round().astype(int)
    groups = [values[low:high] for low, high in pairwise(edges)]
    means = [np.nan if np.isnan(group).all() else float(np.nanmean(group)) for group in groups]
    return steps[edges[1:] - 1], np.array(means)


def run_color(index: int) -> tuple[str, str]:
    """Colour of a run's line on light and on dark paper."""
    return RUN_COLORS[index % len(RUN_COLORS)]


def run_dash(index: int) -> tuple[str, str]:
    """Dash of a run's line: plotly's name, and SVG lengths."""
    return DASHES[index % len(DASHES)]


def class_color(color: Sequence[int]) -> tuple[str, str]:
    """A class colour (r, g, b) as a line on light and on dark paper, darker or lighter where it would be invisible."""
    return to_hex(legible(color, LIGHT_PAPER)), to_hex(legible(color, DARK_PAPER))


def legible(color: Sequence[int], paper: Sequence[int]) -> Sequence[int]:
    """The colour, moved away from `paper` towards black or white until it has `MIN_CONTRAST`."""
    goal = 0 if luminance(paper) > 0.5 else 255
    shades = ([round(value + (goal - value) * step / 20) for value in color] for step in range(21))
    return next(shade for shade in shades if contrast(shade, paper) >= MIN_CONTRAST)


def contrast(a: Sequence[int], b: Sequence[int]) -> float:
    """Contrast ratio 1..21 (WCAG 2.2, "contrast ratio")."""
    lower, higher = sorted((luminance(a), luminance(b)))
    return (higher + 0.05) / (lower + 0.05)


def luminance(color: Sequence[int]) -> float:
    """Relative luminance 0..1 of an sRGB colour 0..255 (WCAG 2.2, "relative luminance")."""
    share = np.array(color) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def to_hex(color: Sequence[int]) -> str:
    """The colour as #rrggbb."""
    return "#" + "".join(f"{value:02x}" for value in color)


def _chart(id: str, title: str, note: str, traces: Sequence[Trace], unit: str = "") -> Chart:
    return {"id": id, "title": title, "note": note, "unit": unit, "traces": list(traces)}


def _lines(runs: Sequence[ReportedRun], metric: str) -> list[Trace]:
    found = [(index, run.name, run.series(metric)) for index, run in enumerate(runs)]
    return [_line(*thinned(*points), name, run_color(index), index) for index, name, points in found if len(points[0])]


def _mious(runs: Sequence[ReportedRun]) -> list[Trace]:
    bands, lines = [], []
    for index, run in enumerate(runs):
        steps, mious = run.series("val/miou")
        # A single point is a number, not a curve: the tables have it.
        if len(steps) < 2:
            continue
        lines.append({**_line(steps, mious, run.name, run_color(index), index), "mode": "lines+markers"})
        (at, low), (_, high) = run.series("val/miou_low"), run.series("val/miou_high")
        known = ~(np.isnan(low) | np.isnan(high))
        if known.sum() > 1:
            there_and_back = np.concatenate([at[known], at[known][::-1]])
            outline = np.concatenate([high[known], low[known][::-1]])
            band = {"fill": "toself", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
            bands.append({**_line(there_and_back, outline, run.name, run_color(index)), **band})
    # Plotly draws in this order: no band may cover a line.
    return [*bands, *lines]


def _line(
    steps: NDArray[np.float64], values: NDArray[np.float64], name: str, color: tuple[str, str], index: int = 0
) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [int(step) for step in steps],
        # Six digits: the page is read by people, and JSON has no nan.
        "y": [None if np.isnan(value) else float(f"{value:.6g}") for value in values],
        "line": {"dash": run_dash(index)[0], "width": 2},
        "meta": {"light": color[0], "dark": color[1]},
    }
