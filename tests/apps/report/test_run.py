import json

import numpy as np
import pytest

from tests.apps.report.runs import CONFUSION, write_run, write_weights
from tests.synthetic import CLASS_NAMES
from unetdist.apps.report.run import read_runs
from unetdist.errors import CheckpointError, ConfigError


def read(folder, which="best"):
    (run,) = read_runs([folder], which)
    return run


def test_a_run_tells_its_curves_scores_and_settings(tmp_path):
    run = read(write_run(tmp_path / "x"))
    steps, losses = run.series("val/loss")
    assert steps.tolist() == [10, 20, 30, 40]
    assert losses[0] == 0.3
    assert np.isnan(run.series("val/iou/tree")[1]).all()
    assert run.series("never logged")[0].size == 0
    assert (run.latest("train/epoch"), run.latest("val/iou/tree"), run.latest("nothing")) == (4, None, None)
    assert run.class_names == CLASS_NAMES
    assert (run.confusion == CONFUSION).all()
    assert run.training_s == 20
    assert run.status.state == "finished"


def test_a_run_that_has_just_begun_is_read_too(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/config.yaml").write_text("name: x\n")
    run = read(tmp_path / "x")
    assert (run.weights, run.rows, run.confusion, run.training_s, run.status) == (None, [], None, None, None)


def test_the_weights_that_are_not_there_are_replaced_by_those_that_are(tmp_path):
    folder = write_run(tmp_path / "x")
    assert read(folder, "last").weights == folder / "best"
    write_weights(folder / "last")
    assert read(folder, "last").weights == folder / "last"


def test_names_are_as_long_as_it_takes_to_tell_the_runs_apart(tmp_path):
    folders = [write_run(tmp_path / name) for name in ("a/x", "b/x")]
    assert [run.name for run in read_runs(folders)] == ["a/x", "b/x"]
    assert read_runs(folders[:1])[0].name == "x"


def test_a_relative_validation_set_is_found_from_where_the_run_was_started(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "project/runs/x", val="shards/val", settings={"runs_dir": "runs"})
    run = read(folder)
    assert run.validation_data == "shards/val"  # as the settings have it: nowhere to be found
    (tmp_path / "project/shards/val").mkdir(parents=True)
    assert run.validation_data == str(tmp_path / "project/shards/val")
    monkeypatch.chdir(tmp_path / "project")
    assert run.validation_data == "shards/val"


@pytest.mark.parametrize("location", [None, "s3://bucket/val"])
def test_no_validation_set_and_a_remote_one_are_told_as_they_are(tmp_path, location):
    assert read(write_run(tmp_path / "x", val=location)).validation_data == location


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"holds no run \(metrics.jsonl and .+\); give the folder of a run: runs/NAME"
    ):
        read_runs([tmp_path])


def test_the_folder_of_weights_is_refused_with_the_run_around_it(tmp_path):
    folder = write_run(tmp_path / "x")
    with pytest.raises(ConfigError, match=rf"give the folder of a run: {folder}"):
        read_runs([folder / "best"])


def test_a_run_that_is_given_twice_is_refused(tmp_path):
    folder = write_run(tmp_path / "x")
    with pytest.raises(ConfigError, match="is given twice; give each run once"):
        read_runs([folder, folder / "../x"])


def test_a_line_that_is_being_written_is_left_out_and_a_damaged_one_is_named(tmp_path):
    folder = write_run(tmp_path / "x")
    file = folder / "metrics.jsonl"
    whole = file.read_text()
    file.write_text(whole + '{"step": 50, "tra')
    assert len(read(folder).rows) == len(whole.splitlines())
    file.write_text('{"step"\n' + whole)
    with pytest.raises(ConfigError, match=r"metrics.jsonl, line 1 "):
        read(folder)


def test_a_damaged_description_is_named(tmp_path):
    folder = write_run(tmp_path / "x")
    (folder / "best/model.safetensors").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=r"best/model.safetensors is damaged \(.+\); use another"):
        read(folder)
    (folder / "best/model.safetensors").unlink()
    assert read(folder).class_names == ("sky", "road", "tree")
    (folder / "best/config.json").write_text(json.dumps({"format": "x"})[:-3])
    with pytest.raises(CheckpointError, match=r"best/config.json is damaged \(.+\); use another"):
        read(folder)


def test_runs_of_other_classes_are_refused(tmp_path):
    folders = [write_run(tmp_path / name) for name in ("x", "y")]
    (folders[1] / "best/model.safetensors").unlink()
    file = folders[1] / "best/config.json"
    file.write_text(file.read_text().replace('"road"', '"lake"'))
    with pytest.raises(ConfigError, match=r"y has other classes than .+x; write a report of each"):
        read_runs(folders)
