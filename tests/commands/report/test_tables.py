from dataclasses import replace

import numpy as np
import pytest

from tests.commands.report.runs import validation_set, write_run
from unetdist.commands.report import tables
from unetdist.commands.report.run import read_runs, score_run


@pytest.fixture
def run(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "x", state="failed", reason="disk full", attempts=3, deaths=[7])])
    return run


def test_results_are_those_that_the_run_noted_where_it_was_not_scored_anew(run):
    (row,) = tables.results([run])
    assert row["miou_interval_95"] == [0.4, 0.6]
    assert row["miou"] == pytest.approx(run.model["report"]["miou"])
    assert (row["num_samples"], row["step"], row["weights"], row["difference"]) == (7, 30, "best", None)


def test_runs_that_were_scored_anew_are_compared_image_by_image(tmp_path):
    val = validation_set(tmp_path)
    runs = read_runs([write_run(tmp_path / name, val=val) for name in ("x", "y")])
    scored = [replace(run, scored=score_run(run, num_workers=0)) for run in runs]
    first, second = tables.results(scored)
    assert first["difference"] is None
    difference = second["difference"]  # they have the same weights
    assert [difference[name] for name in ("difference", "difference_interval_95", "p_value")] == [0, [0, 0], 1]
    (cell, _) = tables.classes(scored)[0]["runs"]
    assert cell["interval"][0] <= cell["iou"] <= cell["interval"][1]
    other = score_run(runs[1], str(validation_set(tmp_path / "other", 3)), num_workers=0)
    assert tables.results([scored[0], replace(runs[1], scored=other)])[1]["difference"] is None


def test_classes_have_their_share_and_scores(run):
    sky, _, tree = tables.classes([run])
    assert (sky["name"], sky["share"]) == ("sky", pytest.approx(100 / 230))
    assert sky["runs"][0]["recall"] == 0.9
    assert sky["runs"][0]["interval"] is None
    assert tree["runs"][0]["iou"] == 0


def test_confusion_is_given_by_row_with_the_largest_mix_ups_first(run):
    (matrix,) = tables.confusions([run])
    assert (matrix["rows"][1]["counts"], matrix["rows"][1]["total"]) == ([10, 80, 10], 100)
    first = matrix["mix_ups"][0]
    assert (first["target"], first["prediction"], first["share"]) == ("tree", "road", 1)
    assert [round(230 * cell["of_all"]) for cell in matrix["mix_ups"]] == [30, 10, 10, 8, 2]
    assert tables.largest_mix_ups(np.diag([3, 4]), ("sky", "road"), 1) == []


def test_settings_of_runs_are_told_where_they_differ(tmp_path):
    shared = {"seed": 3, "augment": {"cutmix": 0.5}}
    folders = [
        write_run(tmp_path / "x", settings=shared),
        write_run(tmp_path / "y", settings={**shared, "optim": {"lr": 0.01}}),
    ]
    (row,) = tables.changes(read_runs(folders))
    assert (row["name"], row["values"]) == ("optim.lr", [row["default"], 0.01])


def test_settings_of_one_run_are_told_where_they_are_not_the_default(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "x", settings={"seed": 3, "optim": {"lr": 0.001}})])
    rows = {row["name"]: row["values"] for row in tables.changes([run])}
    assert rows == {"seed": [3], "data.train": ["shards/train"], "data.num_workers": [0]}


def test_how_it_went_is_told_from_all_lines(run):
    (row,) = tables.course([run])
    assert (row["state"], row["reason"], row["attempts"]) == ("failed", "disk full", 3)
    assert (row["steps"], row["epochs"]) == (40, 4)
    assert (row["training_s"], row["data_wait"]) == (20, pytest.approx(0.2))
    assert (row["bad_steps"], row["bad_samples"]) == (2, 4)


def test_what_it_ran_on_is_told_where_it_was_noted(tmp_path):
    noted, old = read_runs(
        [write_run(tmp_path / "x", machine="2 cores of Some CPU", performance="compiled"), write_run(tmp_path / "y")]
    )
    assert [row["performance"] for row in tables.course([noted, old])] == ["compiled", ""]
    assert [row["machine"] for row in tables.course([noted, old])] == ["2 cores of Some CPU", ""]
