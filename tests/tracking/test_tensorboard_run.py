from collections import Counter

import pytest
from accelerate import PartialState

from tests.tracking.samples import PALETTE, picture, shown
from unetdist.tracking.config import TrackingConfig
from unetdist.tracking.dashboard import StepRow, TrackedRun
from unetdist.tracking.local_dashboards import TensorBoardRun

event_files = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")


@pytest.fixture(autouse=True)
def state():
    PartialState(cpu=True)


def open_run(folder):
    config = {"optim": {"lr": 0.1}}
    run = TrackedRun(TrackingConfig(project="p"), folder, "r", config, PALETTE, step=0)
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
    # Not closed, as by a process that was killed: each row is flushed.
    run.send(StepRow(20, {"train/loss": 0.5}))
    again = open_run(tmp_path)
    assert again.last_step == 20
    again.send(StepRow(30, {"train/loss": 0.5}))
    again.close({}, None)
    found = Counter(events(tmp_path))
    assert set(found.values()) == {1}
    assert {step for step, tag in found if tag == "train/loss"} == {10, 20, 30}
    assert sum(tag.startswith("settings") for _, tag in found) == 1
    assert open_run(tmp_path).last_step == 30


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
    assert again.last_step == 10
    again.close({}, None)
