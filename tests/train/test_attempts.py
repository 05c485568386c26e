import json
import os

import pytest

from unetdist.errors import TrainingError
from unetdist.train.run_status import STATUS_FILE, STEP_FILE, Attempt, Status, read_status


def die_in(run_dir, step, *, begun_at=40, reason=None):
    """An attempt that is killed (or, with a reason, fails) in `step`; None: before any."""
    attempt = Attempt(run_dir, is_main=True)
    attempt.begin(begun_at)
    if step is not None:
        for number in range(begun_at + 1, step + 1):
            attempt.at(number)
    if reason:
        attempt.fail(reason)


def test_a_run_that_finishes(tmp_path):
    attempt = Attempt(tmp_path, is_main=True, machine="2 cores of it", performance="compiled")
    attempt.begin(0)
    status = read_status(tmp_path)
    assert (status.machine, status.performance) == ("2 cores of it", "compiled")
    attempt.fell_back("not compiled: no kernel")
    assert read_status(tmp_path).performance == "not compiled: no kernel"
    assert read_status(tmp_path) == Status(state="running", step=0, attempts=1)
    attempt.at(1)
    attempt.end("finished", 1)
    assert read_status(tmp_path) == Status(state="finished", step=1, attempts=1)


def test_a_run_that_is_stopped_and_continued(tmp_path):
    for step in (3, 3, 3, 3, 3):
        attempt = Attempt(tmp_path, is_main=True)
        attempt.begin(step)
        attempt.at(step + 1)
        attempt.end("stopped", step)
    assert read_status(tmp_path) == Status(state="stopped", step=3, attempts=5)


def test_a_run_that_dies_in_the_same_step_is_ended_and_may_be_tried_again(tmp_path):
    die_in(tmp_path, 42)
    die_in(tmp_path, 42)
    die_in(tmp_path, 42, reason="rank 1 hangs")
    with pytest.raises(
        TrainingError,
        match=r"^the run died in step 42 3 times in a row \(the last time: rank 1 hangs\), and would do so again; look "
        r"at the log, .* type the same command once more\. What was reached by step 40 is kept\.$",
    ):
        die_in(tmp_path, 42)
    die_in(tmp_path, 42)
    die_in(tmp_path, 42)


def test_the_reason_to_end_the_loop_is_kept(tmp_path):
    for _ in range(3):
        die_in(tmp_path, 42)
    with pytest.raises(TrainingError):
        Attempt(tmp_path, is_main=True).begin(40)
    status = read_status(tmp_path)
    assert (status.state, status.is_final, status.attempts, status.deaths) == ("failed", True, 4, ())
    assert "3 times in a row" in status.reason


@pytest.mark.parametrize(
    "steps",
    [(42, 42, 43, 42, 42, 43), (42, None, 43, None, 42, None, 43), (None,) * 5],
    ids=["elsewhere", "before any step between", "before any step"],
)
def test_other_deaths_end_nothing(tmp_path, steps):
    for step in steps:
        die_in(tmp_path, step)
    die_in(tmp_path, 44)


def test_deaths_before_a_step_do_not_hide_those_in_one(tmp_path):
    for step in (42, None, 42, None, 42):
        die_in(tmp_path, step)
    with pytest.raises(TrainingError, match="died in step 42 3 times in a row"):
        die_in(tmp_path, 42)


def test_a_failure_before_it_begins_keeps_what_was_counted(tmp_path):
    die_in(tmp_path, 42)
    die_in(tmp_path, 42)
    Attempt(tmp_path, is_main=True).fail("data.train is not there", is_final=True)
    assert read_status(tmp_path) == Status(
        state="failed", step=40, reason="data.train is not there", is_final=True, attempts=2, deaths=(42, 42)
    )
    die_in(tmp_path, 42)
    assert read_status(tmp_path).deaths == (42, 42)


def test_a_failure_makes_no_folder(tmp_path):
    Attempt(tmp_path / "mistyped", is_main=True).fail("no such setting")
    assert not (tmp_path / "mistyped").exists()


def test_other_ranks_write_nothing(tmp_path):
    attempt = Attempt(tmp_path, is_main=False)
    attempt.begin(0)
    attempt.at(1)
    attempt.fail("gone")
    attempt.end("finished", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "[" * 10**5, '{"step": -1}', '{"step": "1"}', json.dumps({"other": 1, "deaths": []})],
)
def test_an_unreadable_status_is_none(tmp_path, text):
    (tmp_path / STATUS_FILE).write_text(text)
    (tmp_path / STEP_FILE).write_text("no number")
    assert read_status(tmp_path) is None
    die_in(tmp_path, 42)
    assert read_status(tmp_path).attempts == 1


def test_a_full_disk_is_left_to_the_checkpoint(tmp_path):
    attempt = Attempt(tmp_path, is_main=True)
    attempt.begin(0)
    os.close(attempt._file)
    attempt.at(1)
    (tmp_path / STATUS_FILE).unlink()
    (tmp_path / STATUS_FILE).mkdir()
    attempt.fail("anything")


def test_the_reason_tells_no_password(tmp_path):
    attempt = Attempt(tmp_path, is_main=True)
    attempt.begin(0)
    attempt.fail("https://me:secret@host/a: gone")
    assert read_status(tmp_path).reason == "https://***@host/a: gone"


def test_a_status_that_an_older_version_wrote_is_read(tmp_path):
    attempt = Attempt(tmp_path, is_main=True)
    attempt.begin(7)
    values = json.loads((tmp_path / STATUS_FILE).read_text())
    del values["performance"]
    (tmp_path / STATUS_FILE).write_text(json.dumps(values))
    assert read_status(tmp_path) == Status(state="running", step=7, attempts=1)
