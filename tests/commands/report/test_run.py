import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.commands.report.runs import CONFUSION, validation_set, write_run, write_weights
from tests.synthetic import CLASS_NAMES
from unetdist.commands.report.run import class_intervals, extremes, read_runs, score_run
from unetdist.errors import CheckpointError, ConfigError
from unetdist.evaluation.metrics import PoissonBootstrap, confusion_matrix


def read(folder, which="best"):
    (run,) = read_runs([folder], which)
    return run


def test_a_run_tells_its_curves_scores_and_settings(tmp_path):
    run = read(write_run(tmp_path / "x"))
    steps, losses = run.series("val/loss")
    assert steps.tolist() == [10, 20, 30, 40]
    assert losses[0] == 0.3
    assert run.series("val/iou/tree")[1].size == 0  # absent from the validation set
    assert run.series("never logged")[0].size == 0
    assert run.class_names == CLASS_NAMES
    assert run.report["confusion"] == CONFUSION.tolist()
    assert run.status.state == "finished"


def test_a_run_that_has_just_begun_is_read_too(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/config.yaml").write_text("name: x\n")
    run = read(tmp_path / "x")
    assert (run.weights, run.rows, run.report, run.status) == (None, {}, {}, None)


def test_the_weights_that_are_not_there_are_replaced_by_those_that_are(tmp_path):
    folder = write_run(tmp_path / "x")
    assert read(folder, "last").weights == folder / "best"
    write_weights(folder / "last")
    assert read(folder, "last").weights == folder / "last"


def test_names_are_as_long_as_it_takes_to_tell_the_runs_apart(tmp_path):
    folders = [write_run(tmp_path / name) for name in ("a/x", "b/x")]
    assert [run.name for run in read_runs(folders)] == ["a/x", "b/x"]
    assert read_runs(folders[:1])[0].name == "x"


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"holds no run \(metrics.jsonl and .+\); give the folder of a run: runs/NAME"
    ):
        read_runs([tmp_path])
    write_run(tmp_path / "x")
    with pytest.raises(ConfigError, match=f"give the folder of a run: {tmp_path}/x"):
        read_runs([tmp_path])


def test_the_folder_of_weights_is_refused_with_the_run_around_it(tmp_path):
    folder = write_run(tmp_path / "x")
    with pytest.raises(ConfigError, match=rf"give the folder of a run: {folder}"):
        read_runs([folder / "best"])


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    folder = write_run(tmp_path / "x")
    before = read(folder).rows
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 50, "tra')
    assert read(folder).rows == before


def test_a_damaged_line_in_the_middle_is_named(tmp_path, caplog):
    folder = write_run(tmp_path / "x")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    lines[2] = lines[2][:20] + "\n"
    (folder / "metrics.jsonl").write_text("".join(lines))
    assert 20 in read(folder).rows  # from its validation
    assert f"{folder}/metrics.jsonl, line 3 is damaged" in caplog.text


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


@pytest.fixture
def run(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "x", val=validation_set(tmp_path))])
    return run


def test_each_picture_shown_is_the_one_that_was_counted(run):
    scored = score_run(run, num_workers=0)
    assert len(scored.keys) == len(scored.per_image) == 7
    for sample_id, (image, mask, pred) in zip((3, 0), scored.predict([3, 0]), strict=True):
        counted = confusion_matrix(torch.from_numpy(pred), torch.from_numpy(mask.copy()), 3)
        assert (counted.numpy() == scored.per_image[sample_id]).all()
        assert image.shape == (*mask.shape, 3)


def test_the_validation_set_may_be_another(run, tmp_path):
    elsewhere = validation_set(tmp_path / "other", 3)
    assert len(score_run(run, str(elsewhere), num_workers=0).keys) == 3


def test_the_validation_set_is_found_from_where_the_run_was_started(tmp_path):
    validation_set(tmp_path)
    folder = write_run(tmp_path / "runs/x", val="val", settings={"runs_dir": "runs"})
    assert len(score_run(read(folder), num_workers=0).keys) == 7


def test_a_run_without_weights_or_validation_set_cannot_be_scored(run):
    with pytest.raises(ConfigError, match="has no weights yet; wait for its first validation"):
        score_run(dataclasses.replace(run, weights=None))
    with pytest.raises(ConfigError, match=r"name no data.val; give --data SHARDS"):
        score_run(dataclasses.replace(run, settings={}))


def test_intervals_of_classes_are_those_of_the_bootstrap():
    rng = np.random.default_rng(0)
    per_image = rng.integers(0, 50, (20, 2, 2))
    two = np.array(class_intervals(per_image))
    assert ((two[:, 0] < two[:, 1]) & (two > 0).all(1) & (two < 1).all(1)).all()
    iou = np.diag(per_image.sum(0)) / (per_image.sum((0, 1)) + per_image.sum((0, 2)) - np.diag(per_image.sum(0)))
    assert ((two[:, 0] < iou) & (iou < two[:, 1])).all()
    padded = np.zeros((20, 3, 3), np.int64)
    padded[:, :1, :1] = per_image[:, :1, :1]
    padded[:, 0, 1] = 5
    bootstrap = PoissonBootstrap(3)
    for sample_id, each in enumerate(padded):
        bootstrap.add(sample_id, each)
    first, _, third = class_intervals(padded)
    assert 2 * bootstrap.interval()[0] == pytest.approx(first[0])  # the second class has IoU 0, the third is absent
    assert third is None


def test_worst_and_best_do_not_overlap_and_ignored_images_are_left_out(run):
    scored = score_run(run, num_workers=0)
    shares = [0.5, 0.9, 0.1, 0.0, 0.7]
    per_image = np.array([[[int(100 * s), 100 - int(100 * s), 0], [0] * 3, [0] * 3] for s in shares])
    per_image[3] = 0
    ranked = dataclasses.replace(scored, per_image=per_image)
    assert np.isnan(ranked.image_mious[3])
    assert extremes([ranked], 1) == ([2], [1])
    assert extremes([ranked], 4) == ([2, 0], [1, 4])
    worst, best = extremes([ranked, ranked], 2)
    assert not set(worst) & set(best)
