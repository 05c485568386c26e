"""status.json through the life of a run."""

import json

import pytest

from unetdist.train.run_status import STATUS_FILE, RunStatus, Status, read_status


def begun(run_dir, step=0):
    status = RunStatus(run_dir, is_main=True)
    status.begin(step)
    return status


def test_the_status_follows_a_run_to_its_end(tmp_path):
    status = RunStatus(tmp_path, is_main=True, machine="2 cores", performance="compiled")
    status.begin(0)
    read = read_status(tmp_path)
    assert (read.machine, read.performance) == ("2 cores", "compiled")
    status.fell_back("not compiled: no kernel")
    assert read_status(tmp_path).performance == "not compiled: no kernel"
    assert read_status(tmp_path) == Status(state="running", step=0, attempts=1)
    status.end("finished", 1)
    assert read_status(tmp_path) == Status(state="finished", step=1, attempts=1)


def test_attempts_are_counted_over_stops_kills_and_failures(tmp_path):
    begun(tmp_path, 3).end("stopped", 5)
    assert read_status(tmp_path) == Status(state="stopped", step=5, attempts=1)
    begun(tmp_path, 5)
    assert read_status(tmp_path) == Status(state="running", step=5, attempts=2)
    begun(tmp_path, 7).fail("rank 1 hangs")
    assert read_status(tmp_path) == Status(state="failed", step=7, reason="rank 1 hangs", attempts=3)


def test_a_failure_before_the_first_step_keeps_what_was_reached(tmp_path):
    begun(tmp_path, 40)
    RunStatus(tmp_path, is_main=True).fail("data.train is not there", is_final=True)
    assert read_status(tmp_path) == Status(
        state="failed", step=40, reason="data.train is not there", is_final=True, attempts=1
    )


def test_a_failure_creates_no_folder(tmp_path):
    RunStatus(tmp_path / "mistyped", is_main=True).fail("no such setting")
    assert not (tmp_path / "mistyped").exists()


def test_other_ranks_write_nothing(tmp_path):
    status = RunStatus(tmp_path, is_main=False)
    status.begin(0)
    status.fail("gone")
    status.end("finished", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 10**5, '{"step": -1}', '{"step": "1"}', '{"other": 1}'])
def test_an_unreadable_status_is_none_and_is_replaced(tmp_path, text):
    (tmp_path / STATUS_FILE).write_text(text)
    assert read_status(tmp_path) is None
    begun(tmp_path)
    assert read_status(tmp_path).attempts == 1


def test_a_status_that_cannot_be_written_does_not_hide_the_error(tmp_path):
    status = begun(tmp_path)
    (tmp_path / STATUS_FILE).unlink()
    (tmp_path / STATUS_FILE).mkdir()
    status.fail("anything")


def test_the_reason_contains_no_password(tmp_path):
    begun(tmp_path).fail("https://me:secret@host/a: gone")
    assert read_status(tmp_path).reason == "https://***@host/a: gone"


def test_a_status_of_an_older_version_is_read(tmp_path):
    begun(tmp_path, 7)
    values = json.loads((tmp_path / STATUS_FILE).read_text()) | {"deaths": [7, 7]}
    del values["performance"]
    (tmp_path / STATUS_FILE).write_text(json.dumps(values))
    assert read_status(tmp_path) == Status(state="running", step=7, attempts=1)
