from collections import Counter

import pytest
from accelerate import PartialState

from tests.tracking.samples import PALETTE, picture, shown
from unetdist.tracking.dashboard import StepRow, TrackedRun
from unetdist.tracking.local_dashboards import TensorBoardRun

event_files = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")


@pytest.fixture(autouse=True)
def state():
    PartialState(cpu=True)


def open_run(folder):
    config = {"optim": {"lr": 0.1}}
    run = TrackedRun(project="p", mode="auto", folder=folder, name="r", config=config, palette=PALETTE, step=0)
    return TensorBoardRun(run)


def events(folder):
    files = sorted(folder.rglob("events.out.tfevents.*"))
    return [
        (event.step, value.tag)
        for file in files
        for event in event_files.EventFileLoader(str(file)).Load()
        for value in event.summary.value
    ]


def test_a_restart_adds_what_is_missing(tmp_path):
    run = open_run(tmp_path)
    run.send(StepRow(10, {"train/loss": 0.5}))
    # As of a process that was killed in the middle of a row: files are flushed, so there is no end to write.
    run.send(StepRow(20, {"train/loss": 0.5}))
    again = open_run(tmp_path)
    rows = [StepRow(step, {"train/loss": 0.5, "train/lr": 0.1}) for step in (10, 20, 30)]
    lacking = [again.lacks(row) for row in rows]
    assert [dict(row.values) for row in lacking] == [{"train/lr": 0.1}] * 2 + [{"train/loss": 0.5, "train/lr": 0.1}]
    for row in lacking:
        again.send(row)
    again.close({}, None)
    found = Counter(events(tmp_path))
    assert set(found.values()) == {1}
    names = ("train/loss", "train/lr")
    assert {key for key in found if key[1] in names} == {(step, name) for step in (10, 20, 30) for name in names}
    assert sum(tag.startswith("settings") for _, tag in found) == 1
    assert open_run(tmp_path).lacks(rows[1]) is None


def test_a_validation_shows_its_confusion_and_its_pictures(tmp_path):
    run = open_run(tmp_path)
    run.send(StepRow(10, {"val/miou": 0.5}, shown(picture("a"), picture("b", 40, 9))))
    run.close({}, None)
    tags = {tag for step, tag in events(tmp_path) if step == 10}
    assert tags == {"val/miou", "val/confusion", "val/pictures/0", "val/pictures/1"}


def test_a_file_that_a_crash_cut_short_is_read_up_to_there(tmp_path):
    run = open_run(tmp_path)
    for step in (10, 20):
        run.send(StepRow(step, {"train/loss": 0.5}))
    run.close({}, None)
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    file.write_bytes(file.read_bytes()[:-7])
    again = open_run(tmp_path)
    assert again.lacks(StepRow(10, {"train/loss": 0.5})) is None
    assert again.lacks(StepRow(20, {"train/loss": 0.5})) is not None
    again.close({}, None)
