import json
import re

import numpy as np
import pytest

from tests.commands.report.runs import write_run
from unetdist.commands.report.charts import RUN_STYLES, class_curves, class_style, curves, thinned
from unetdist.commands.report.page import _file
from unetdist.commands.report.run import read_runs
from unetdist.commands.report.tables import course


@pytest.fixture
def runs(tmp_path):
    return read_runs([write_run(tmp_path / name) for name in ("x", "y")])


def test_every_chart_is_one_that_plotly_draws(runs):
    go = pytest.importorskip("plotly.graph_objects", reason="needs the extra `report`")
    for chart in [*curves(runs), *class_curves(runs)]:
        figure = go.Figure(json.loads(json.dumps(chart["traces"], allow_nan=False)))
        assert len(figure.data) == len(chart["traces"])


def test_each_run_has_a_line_of_its_own_colour_and_dash(runs):
    charts = {chart["id"]: chart for chart in curves(runs)}
    assert list(charts) == ["loss", "miou", "lr", "speed"]
    first, second = charts["lr"]["traces"]
    assert (first["name"], second["name"]) == ("x", "y")
    assert first["meta"] != second["meta"]
    assert first["line"]["dash"] != second["line"]["dash"]
    kinds = [trace.get("fill", trace["mode"]) for trace in charts["miou"]["traces"]]
    assert kinds == ["toself", "toself", "lines+markers", "lines+markers"]


def test_the_band_goes_there_and_back(runs):
    band = next(trace for trace in curves(runs)[1]["traces"] if "fill" in trace)
    assert band["x"] == [10, 20, 30, 40, 40, 30, 20, 10]
    assert band["y"] == pytest.approx([0.15, 0.25, 0.35, 0.45, 0.35, 0.25, 0.15, 0.05])


def test_a_value_that_is_not_finite_is_a_gap(tmp_path):
    rows = [{"step": 10 * row, "train/loss": None if row == 2 else row, "time/step_s": 1.0} for row in (1, 2, 3)]
    rows[1]["time/step_s"] = None
    folder = write_run(tmp_path / "x")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = read_runs([folder])
    assert curves(runs)[0]["traces"][0]["y"] == [1, None, 3]
    assert course(runs)[0]["training_s"] == 20


def test_each_class_that_was_scored_has_a_line(runs):
    first, _ = class_curves(runs)
    assert [trace["name"] for trace in first["traces"]] == ["sky", "road"]
    assert first["traces"][1]["y"] == [0.1, 0.2, 0.3, 0.4]


def test_what_was_not_logged_has_no_chart(tmp_path):
    runs = read_runs([write_run(tmp_path / "x", steps=10)])
    assert class_curves(runs) == []  # of a single validation
    assert [chart["id"] for chart in curves(runs)] == ["loss", "lr", "speed"]
    (tmp_path / "x/metrics.jsonl").write_text("")
    assert curves(read_runs([tmp_path / "x"])) == []


def test_long_lines_are_thinned_to_means():
    steps = np.arange(1.0, 10001)
    at, means = thinned(steps, steps, most=1000)
    assert len(at) == len(means) == 1000
    assert (at[0], at[-1]) == (10, 10000)
    gaps = np.where((steps <= 20) | (steps == 10000), np.nan, steps)
    assert np.isnan(thinned(steps, gaps, most=1000)[1]).nonzero()[0].tolist() == [0, 1]
    assert means[0] == 5.5
    for count in (1, 5, 1499, 1500, 1501, 2999):
        at, means = thinned(steps[:count], steps[:count])
        assert len(at) == min(count, 1500)
        assert at[-1] == count
        assert count > 1500 or means.tolist() == steps[:count].tolist()


def contrast(color, paper):
    """Contrast ratio of two colours as #rrggbb (WCAG 2.2)."""
    values = np.array([list(bytes.fromhex(each[1:])) for each in (color, paper)]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    lower, higher = sorted(linear @ (0.2126, 0.7152, 0.0722))
    return (higher + 0.05) / (lower + 0.05)


CLASS_COLORS = [(0, 0, 0), (255, 255, 255), (64, 64, 0), (250, 250, 120), (128, 64, 128)]


@pytest.mark.parametrize("style", [*RUN_STYLES, *map(class_style, CLASS_COLORS)], ids=str)
def test_any_line_can_be_seen_on_the_paper_of_the_page(style):
    light, dark = re.search(r"--paper: light-dark\((#\w+), (#\w+)\)", _file("style.css")).groups()
    assert contrast(style.light, light) >= 3
    assert contrast(style.dark, dark) >= 3
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_no_two_runs_look_alike():
    assert len(set(RUN_STYLES)) == len(RUN_STYLES)
