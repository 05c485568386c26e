import json
import shutil

import pytest

from tests.apps.doctor.cases import case_of, findings_of, level_of, only
from unetdist.apps.doctor import folders
from unetdist.cli import settings
from unetdist.storage.files import write_text


def found_in(case):
    return findings_of(case, *folders.CHECKS)


def everything(folder):
    return {
        (path, path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns if path.is_file() else 0)
        for path in folder.rglob("*")
    }


def begun(case, **status):
    """A run with a checkpoint."""
    write_text(case.run_dir / "config.yaml", settings.to_yaml(settings.to_mapping(case.settings)))
    write_text(case.run_dir / "checkpoints" / "latest", "step_00000002")
    values = {"state": "stopped", "step": 2, "reason": "", "is_final": False, "attempts": 1}
    write_text(case.run_dir / "status.json", json.dumps({**values, **status}))


def test_nothing_is_left_where_a_run_is_yet_to_be_made(tmp_path):
    found = found_in(case_of(tmp_path))
    assert {each.level for each in found} == {"ok"}
    assert only(found, "run folder").fact == f"{tmp_path / 'runs' / 'tiny'}: a new run"
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_there_stays_as_it_is(tmp_path):
    case = case_of(tmp_path)
    begun(case)
    before = everything(tmp_path)
    found = only(found_in(case), "run folder")
    assert (found.level, "stopped at step 2), which the same command continues" in found.fact) == ("ok", True)
    assert everything(tmp_path) == before
    begun(case, state="running")
    assert only(found_in(case), "run folder").level == "warning"


def test_a_run_of_other_settings_is_refused_as_training_would(tmp_path):
    begun(case_of(tmp_path))
    found = found_in(case_of(tmp_path, optim={"lr": 0.5}))
    bad = only(found, "run folder")
    assert bad.level == "problem"
    assert "was begun with optim.lr: " in bad.fact
    assert "--checkpoint.allow_changes '[optim.lr]'" in bad.fact


def test_a_file_in_the_place_of_a_folder_is_a_problem(tmp_path):
    (tmp_path / "runs").write_text("a file")
    found = found_in(case_of(tmp_path))
    for what in ("results", "checkpoints"):
        bad = only(found, what)
        assert (bad.level, f"{tmp_path / 'runs'} cannot be written to" in bad.fact) == ("problem", True)
        assert ".partial" not in bad.fact
        assert bad.remedy
    assert "writing" not in {each.what for each in found}
    assert (tmp_path / "runs").read_text() == "a file"


def test_a_folder_that_another_rank_does_not_see_is_a_problem():
    ranks = [{"where": "/x", "problem": "", "is_seen": is_seen} for is_seen in (True, False, True, False)]
    (bad,) = folders.judge_shared(None, ranks)
    assert (bad.level, bad.fact) == ("problem", "what rank 0 writes to /x is not seen by rank 1, 3")
    assert "a place that all machines share" in bad.remedy


@pytest.mark.parametrize(
    ("free", "level"), [(1_000_000, "problem"), (4_000_000, "warning"), (9_000_000, "ok")]
)
def test_a_disk_that_is_too_small_is_found(tmp_path, monkeypatch, free, level):
    case = case_of(tmp_path)
    case.measured.checkpoint_bytes, case.measured.weights_bytes = 1_000_000, 250_000
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    found = only(found_in(case), "disk")
    assert found.level == level
    assert found.fact.startswith("3.5 MB for checkpoints and weights, ")
    assert case.measured.disk_bytes == 3_500_000


def test_checkpoints_elsewhere_are_looked_at_there(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    case = case_of(tmp_path, checkpoint={"folder": str(elsewhere)})
    assert only(found_in(case), "checkpoints").fact == f"{elsewhere} can be written to"
    assert list(elsewhere.iterdir()) == []
    case = case_of(tmp_path, checkpoint={"folder": f"file://{elsewhere}"})
    assert only(found_in(case), "checkpoints").level == "ok"
    assert not [path for path in elsewhere.rglob("*") if path.is_file()]


def test_speed_tells_how_long_a_checkpoint_takes(tmp_path):
    case = case_of(tmp_path)
    case.measured.checkpoint_bytes = 2_000_000
    (found,) = folders.judge_write_speed(case, [[1_000_000, 0.5]])
    assert found.fact == "2.0 MB/s; a checkpoint of 2.0 MB takes 1.0 s"
    assert level_of(folders.judge_results, case, [""]) == ["ok"]
