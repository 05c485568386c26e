import threading
import time

import pytest

from tests.tracking.samples import picture, shown
from unetdist.tracking import dashboard as module
from unetdist.tracking.dashboard import Mirror, StepRow

SHOWN = shown(picture("a"))


class Slow:
    """Takes nothing until it may."""

    def __init__(self):
        self.may, self.rows, self.last_step = threading.Event(), [], -1

    def send(self, row):
        self.may.wait(20)
        self.rows.append(row)

    def close(self, facts, best):
        pass


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(module, "QUIET_S", 0.05)
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    for name in ("HURRY_S", "CLOSE_S"):
        monkeypatch.setattr(module, name, 20.0)
    return monkeypatch


def close(mirror, in_hurry=False):
    mirror.end({}, None)
    mirror.wait(lambda: in_hurry, since=time.monotonic())


GIVEN_UP = "mlflow did not take everything within 0 s; start the same command again to send the rest"


def test_one_that_hangs_holds_up_nothing(said, impatient):
    impatient.setattr(module, "CLOSE_S", 0.2)
    slow = Slow()
    mirror = Mirror("mlflow", lambda: slow)
    for step in range(module.MOST_WAITING + 5):
        mirror.send(StepRow(step, {"val/miou": 0.5}, SHOWN))  # returns at once
    close(mirror)
    assert not mirror.has_all
    assert said == ["waiting for mlflow to take the rest", GIVEN_UP]
    slow.may.set()
    mirror.wait(lambda: False, since=time.monotonic())
    # Of those that waited too long only the numbers are left: their pictures would fill the memory.
    assert [row.step for row in slow.rows] == list(range(module.MOST_WAITING + 5))
    assert [row.report is None for row in slow.rows[:3]] == [False] * 3
    assert slow.rows[-1].report is None
    assert mirror.has_all


def test_one_that_hangs_while_it_opens_holds_up_nothing(said, impatient):
    impatient.setattr(module, "CLOSE_S", 0.2)
    may = threading.Event()
    mirror = Mirror("mlflow", lambda: may.wait(20) and Slow())
    mirror.send(StepRow(1, {"a": 1.0}))
    close(mirror)
    assert said[-1] == GIVEN_UP
    may.set()


@pytest.mark.parametrize(("in_hurry", "limit"), [(True, "HURRY_S"), (False, "CLOSE_S")])
def test_an_upload_may_take_its_time_unless_the_run_was_asked_to_stop(said, impatient, in_hurry, limit):
    class Uploading(Slow):
        def close(self, facts, best):
            self.may.wait(20)

    impatient.setattr(module, limit, 0.2)
    slow = Uploading()
    close(Mirror("mlflow", lambda: slow), in_hurry)
    assert said == ["waiting for mlflow to take the rest", GIVEN_UP]
    slow.may.set()


def test_it_gets_the_steps_that_it_lacks_under_the_names_of_dashboards():
    half = Slow()
    half.last_step = 1
    half.may.set()
    mirror = Mirror("x", lambda: half)
    for step in (1, 2):
        mirror.send(StepRow(step, {"a": 1.0}))
    mirror.send(StepRow(3, {"val/iou/sky": 1.0, "train/bad_steps": 0}))
    close(mirror)
    assert half.rows == [StepRow(2, {"a": 1.0}), StepRow(3, {"val_iou/sky": 1.0})]
    assert mirror.has_all


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), AssertionError("odd"), OSError("away")])
def test_whatever_a_dashboard_raises_at_its_start_stops_nothing_and_is_logged(said, impatient, error):
    def fail():
        raise error

    mirror = Mirror("mlflow", fail)
    mirror.wait(lambda: False, since=time.monotonic())
    mirror.send(StepRow(1, {"train/loss": 0.5}))
    close(mirror)
    assert not mirror.has_all
    assert [line.split(":")[1].strip() for line in said] == [type(error).__name__]
    assert "Start the same command again" in said[0]
    assert mirror._waiting.qsize() <= 2  # rows do not pile up for nobody
