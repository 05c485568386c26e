"""The curves of runs as figures of plotly: what they show; page/script.js gives them their look.

A trace's `meta` holds its colour on light paper and on dark, which the script sets as the reader's system asks.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetdist.apps.report import colors
from unetdist.apps.report.run import Run

MOST_POINTS = 1500
"""Of a line: more than a screen has columns."""

Trace = dict[str, Any]
Chart = dict[str, Any]


def curves(runs: Sequence[Run]) -> list[Chart]:
    """Loss, mIoU with its interval, learning rate, speed: each with a line per run, those that were logged."""
    charts = [
        _chart(
            "loss", "Loss", "training, and validation as dots", [*_lines(runs, "train/loss"), *_dots(runs)]
        ),
        _chart(
            "miou", "mIoU", "validation, with its 95 % interval over images", _mious(runs), unit="percent"
        ),
        _chart("lr", "Learning rate", "of the last step", _lines(runs, "train/lr")),
        _chart("speed", "Speed", "images per second, over all processes", _lines(runs, "time/images_per_s")),
    ]
    return [chart for chart in charts if chart["traces"]]


def class_curves(runs: Sequence[Run]) -> list[Chart]:
    """IoU of each class over the steps, a chart per run; none of runs with fewer than two validations."""
    charts = []
    for number, run in enumerate(runs):
        traces = []
        for record in run.labels:
            steps, ious = run.series(f"val/iou/{record['name']}")
            if len(steps) > 1:
                traces.append(_line(steps, ious, record["name"], colors.of_class(record["color"])))
        if traces:
            charts.append(_chart(f"classes-{number}", run.name, "", traces, unit="percent"))
    return charts


def thinned(
    steps: NDArray[np.float64], values: NDArray[np.float64], most: int = MOST_POINTS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most `most` points: the means of neighbours, at the last step of each; nan only where all of them are."""
    if len(steps) <= most:
        return steps, values
    edges = np.linspace(0, len(steps), most + 1).round().astype(int)
    parts = [values[low:high] for low, high in pairwise(edges)]
    means = [np.nan if np.isnan(part).all() else float(np.nanmean(part)) for part in parts]
    return steps[edges[1:] - 1], np.array(means)


def _chart(id: str, title: str, note: str, traces: Sequence[Trace], unit: str = "") -> Chart:
    return {"id": id, "title": title, "note": note, "unit": unit, "traces": list(traces)}


def _lines(runs: Sequence[Run], name: str) -> list[Trace]:
    traces = []
    for number, run in enumerate(runs):
        steps, values = run.series(name)
        if len(steps):
            traces.append(_line(*thinned(steps, values), run.name, colors.of_run(number), number))
    return traces


def _dots(runs: Sequence[Run]) -> list[Trace]:
    """Validation losses."""
    traces = []
    for number, run in enumerate(runs):
        steps, losses = run.series("val/loss")
        if len(steps):
            name = f"{run.name}, validation"
            trace = _line(steps, losses, name, colors.of_run(number), number)
            traces.append({**trace, "mode": "markers", "marker": {"size": 7, "symbol": "circle-open"}})
    return traces


def _mious(runs: Sequence[Run]) -> list[Trace]:
    """Bands first, so that no line is below one."""
    bands, lines = [], []
    for number, run in enumerate(runs):
        steps, mious = run.series("val/miou")
        if len(steps) < 2:  # a point alone is a number, and stands elsewhere
            continue
        lines.append(
            {**_line(steps, mious, run.name, colors.of_run(number), number), "mode": "lines+markers"}
        )
        (at, low), (_, high) = run.series("val/miou_low"), run.series("val/miou_high")
        there = ~(np.isnan(low) | np.isnan(high))
        if there.sum() > 1:
            bands.append(_band(at[there], low[there], high[there], run.name, colors.of_run(number)))
    return [*bands, *lines]


def _line(
    steps: NDArray[np.float64],
    values: NDArray[np.float64],
    name: str,
    color: tuple[str, str],
    number: int = 0,
) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [int(step) for step in steps],
        "y": [None if np.isnan(value) else float(f"{value:.6g}") for value in values],
        "line": {"dash": colors.dash_of_run(number)[0], "width": 2},
        "meta": _colored(color),
    }


def _band(
    steps: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    name: str,
    color: tuple[str, str],
) -> Trace:
    outline = _line(np.concatenate([steps, steps[::-1]]), np.concatenate([high, low[::-1]]), name, color)
    return {**outline, "fill": "toself", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}


def _colored(color: tuple[str, str]) -> Mapping[str, str]:
    return {"light": color[0], "dark": color[1]}
