import json
import re

import numpy as np
import pytest

from tests.apps.report.runs import write_run
from unetdist.apps.report import charts
from unetdist.apps.report.charts import class_curves, curves, thinned
from unetdist.apps.report.page import _file
from unetdist.apps.report.run import read_runs


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


def test_each_class_has_a_line_and_an_absent_one_gaps(runs):
    first, _ = class_curves(runs)
    assert [trace["name"] for trace in first["traces"]] == ["sky", "road", "tree"]
    assert first["traces"][2]["y"] == [None] * 4


def test_what_was_not_logged_has_no_chart(tmp_path):
    runs = read_runs([write_run(tmp_path / "x", steps=10)])
    assert class_curves(runs) == []  # of a single validation
    assert [chart["id"] for chart in curves(runs)] == ["loss", "lr", "speed"]
    (tmp_path / "x/metrics.jsonl").write_text("")
    assert curves(read_runs([tmp_path / "x"])) == []


def test_long_lines_are_thinned_to_means():
    steps, values = np.arange(1.0, 10001), np.ones(10000)
    values[:5], values[5:10] = np.nan, 3
    at, means = thinned(steps, values, most=1000)
    assert len(at) == len(means) == 1000
    assert (at[0], at[-1]) == (10, 10000)
    assert means[0] == 3  # of those that are there
    assert np.isnan(thinned(steps, values, most=2000)[1][0])
    assert thinned(steps[:5], values[:5])[0].tolist() == steps[:5].tolist()


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (64, 64, 0), (250, 250, 120), (128, 64, 128)])
@pytest.mark.parametrize("paper", [charts.LIGHT_PAPER, charts.DARK_PAPER])
def test_any_class_colour_can_be_seen_as_a_line(color, paper):
    assert charts.contrast(charts.legible(color, paper), paper) >= charts.MIN_CONTRAST


def test_a_colour_that_can_be_seen_stays_as_it_is():
    assert charts.class_color([128, 0, 0])[0] == "#800000"
    assert charts.class_color([0, 200, 255])[1] == "#00c8ff"


def test_the_colours_of_runs_can_be_read_on_their_paper():
    for number in range(8):
        for color, paper in zip(charts.run_color(number), (charts.LIGHT_PAPER, charts.DARK_PAPER), strict=True):
            rgb = tuple(bytes.fromhex(color[1:]))
            assert charts.contrast(rgb, paper) >= 4.5


def test_contrast_is_that_of_the_standard():
    assert charts.contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert charts.contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)


def test_the_paper_is_that_of_the_page():
    light, dark = re.search(r"--paper: light-dark\((#\w+), (#\w+)\)", _file("style.css")).groups()
    assert (light, dark) == (charts.to_hex(charts.LIGHT_PAPER), charts.to_hex(charts.DARK_PAPER))
