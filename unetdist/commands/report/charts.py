"""Curves of runs as plotly traces, and their colours; page/script.js styles them.

A trace's `meta` holds its colour on light and on dark paper; the script picks the one for the reader's system.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # loads torch, and the command reads the number of styles first
    from unetdist.commands.report.run import ReportedRun

# More points than a screen has columns only make the file larger.
MAX_POINTS = 1500


class LineStyle(NamedTuple):
    """How the lines of a run differ from those of another: by colour, and by dash for the colour-blind."""

    light: str
    """Colour on light paper, as #rrggbb; at least 3:1 against it (WCAG 2.2, criterion 1.4.11)."""
    dark: str
    """Colour on dark paper."""
    dash: str = "solid"
    """Dash by plotly's name."""
    lengths: str = ""
    """The same as lengths in SVG, which the legend uses."""


# Blue and orange come first: almost everybody can tell them apart. Nobody reads more columns than these;
# `unetdist ablate` makes a table of many runs.
RUN_STYLES = (
    LineStyle("#0a62b8", "#6fb4ff"),
    LineStyle("#b04a06", "#ffa266", "dash", "9 6"),
    LineStyle("#0b7358", "#4fd0a4", "dot", "2 3"),
    LineStyle("#8a3a99", "#d79bea", "dashdot", "9 4 2 4"),
    LineStyle("#6f6000", "#e0cd58"),
    LineStyle("#5a6069", "#b0b7c2", "dash", "9 6"),
    LineStyle("#0a62b8", "#6fb4ff", "dot", "2 3"),
    LineStyle("#b04a06", "#ffa266", "dashdot", "9 4 2 4"),
)

Trace = dict[str, Any]
Chart = dict[str, Any]


def curves(runs: "Sequence[ReportedRun]") -> list[Chart]:
    """Loss, mIoU with its interval, learning rate and speed, one line per run; charts without data are left out."""
    dots = {"mode": "markers", "marker": {"size": 7, "symbol": "circle-open"}}
    losses = [*_lines(runs, "train/loss"), *_lines(runs, "val/loss", ", validation", **dots)]
    # A single validation is a number, not a curve: the tables have it.
    mious = [line for line in _lines(runs, "val/miou", mode="lines+markers") if len(line["x"]) > 1]
    charts = [
        _chart("loss", "Loss", "training as a line, validation as dots", losses),
        # Plotly draws in this order: no band may cover a line.
        _chart("miou", "mIoU", "validation, with its 95 % interval over images", [*_bands(runs), *mious], "percent"),
        _chart("lr", "Learning rate", "of the last step", _lines(runs, "train/lr")),
        _chart("speed", "Speed", "images per second, over all processes", _lines(runs, "time/images_per_s")),
    ]
    return [chart for chart in charts if chart["traces"]]


def class_curves(runs: "Sequence[ReportedRun]") -> list[Chart]:
    """IoU of each class over the steps, one chart per run with at least two validations."""
    charts = []
    for index, run in enumerate(runs):
        traces = [
            _line(points, record["name"], class_style(record["color"]))
            for record in run.labels
            if len((points := run.series(f"val/iou/{record['name']}"))[0]) > 1
        ]
        if traces:
            charts.append(_chart(f"classes-{index}", run.name, "", traces, "percent"))
    return charts


def class_style(color: Sequence[int]) -> LineStyle:
    """The line of a class in its colour (r, g, b), mixed with as much black or white."""
    # That is the least which makes every colour visible: white has 3.8:1 against light paper, black 4.6:1 against dark.
    return LineStyle(to_hex([value // 2 for value in color]), to_hex([128 + value // 2 for value in color]))


def to_hex(color: Sequence[int]) -> str:
    """The colour as #rrggbb."""
    return "#" + bytes(color).hex()


def thinned(
    steps: NDArray[np.float64], values: NDArray[np.float64], most: int = MAX_POINTS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most `most` points: means of neighbours at the last step of each group; nan only where all of them are nan."""
    edges = np.linspace(0, len(steps), min(most, len(steps)) + 1).astype(int)
    known = np.isfinite(values)
    sums = np.add.reduceat(np.where(known, values, 0.0), edges[:-1])
    with np.errstate(invalid="ignore"):  # 0 / 0 is the gap of a group without a number
        return steps[edges[1:] - 1], sums / np.add.reduceat(known.astype(int), edges[:-1])


def _chart(id: str, title: str, note: str, traces: Sequence[Trace], unit: str = "") -> Chart:
    return {"id": id, "title": title, "note": note, "unit": unit, "traces": traces}


def _lines(runs: "Sequence[ReportedRun]", metric: str, suffix: str = "", **looks: Any) -> list[Trace]:
    """The metric of each run that has it, thinned."""
    found = [(run.name + suffix, run.series(metric), style) for run, style in zip(runs, RUN_STYLES, strict=False)]
    return [_line(thinned(*points), name, style, **looks) for name, points, style in found if len(points[0])]


def _bands(runs: "Sequence[ReportedRun]") -> list[Trace]:
    """The interval of each run's mIoU, as the outline of an area."""
    looks = {"fill": "toself", "hoverinfo": "skip", "showlegend": False}
    bands = []
    for run, style in zip(runs, RUN_STYLES, strict=False):
        (steps, low), (_, high) = run.series("val/miou_low"), run.series("val/miou_high")
        known = np.isfinite(low) & np.isfinite(high)
        steps, low, high = steps[known], low[known], high[known]
        if len(steps) > 1:
            outline = np.concatenate([steps, steps[::-1]]), np.concatenate([high, low[::-1]])
            bands.append({**_line(outline, run.name, style, **looks), "line": {"width": 0}})
    return bands


def _line(points: tuple[NDArray[np.float64], NDArray[np.float64]], name: str, style: LineStyle, **looks: Any) -> Trace:
    steps, values = points
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [int(step) for step in steps],
        # Six digits: the page is read by people. None is a gap in the line.
        "y": [None if np.isnan(value) else float(f"{value:.6g}") for value in values],
        "line": {"dash": style.dash, "width": 2},
        "meta": {"light": style.light, "dark": style.dark},
        **looks,
    }
