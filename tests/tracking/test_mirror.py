import threading

from tests.tracking.samples import CONFUSION, SCORES, picture
from unetdist.tracking import mirror as module
from unetdist.tracking.dashboard import Row, Shown
from unetdist.tracking.mirror import Mirror

SHOWN = Shown(SCORES, CONFUSION, [picture("a")])


class Slow:
    """Takes nothing until it may."""

    def __init__(self):
        self.may, self.rows = threading.Event(), []

    def lacks(self, row):
        return row

    def send(self, row):
        self.may.wait(20)
        self.rows.append(row)

    def close(self, facts, best):
        pass


def test_one_that_hangs_holds_up_nothing(said, monkeypatch):
    monkeypatch.setattr(module, "QUIET_S", 0.05)
    slow = Slow()
    mirror = Mirror("mlflow", lambda: slow)
    for step in range(module.MOST_WAITING + 5):
        mirror.send(Row(step, {"val/miou": 0.5}, SHOWN))  # returns at once
    mirror.close({}, None, wait_s=0.1)
    assert not mirror.has_all
    assert said == [
        "waiting up to 0 s for mlflow to take what is left",
        "mlflow did not take all within 0 s; the rest is sent when the same command is started again",
    ]
    slow.may.set()
    mirror.close({}, None, wait_s=20)
    # Of those that waited too long only the numbers are left: their pictures would fill the memory.
    assert [row.step for row in slow.rows] == list(range(module.MOST_WAITING + 5))
    assert [row.shown is None for row in slow.rows[:3]] == [False] * 3
    assert slow.rows[-1].shown is None


def test_one_that_hangs_while_it_opens_holds_up_nothing(said, monkeypatch):
    monkeypatch.setattr(module, "QUIET_S", 0.05)
    may = threading.Event()
    mirror = Mirror("wandb", lambda: may.wait(20) and Slow())
    mirror.send(Row(1, {"a": 1.0}))
    mirror.close({}, None, wait_s=0.1)
    assert said[-1].startswith("wandb did not take all within 0 s")
    may.set()


def test_what_it_holds_is_not_sent():
    class Half(Slow):
        def lacks(self, row):
            return row.without({"a"})

    half = Half()
    half.may.set()
    mirror = Mirror("x", lambda: half)
    mirror.send(Row(1, {"a": 1.0, "b": 2.0}))
    mirror.send(Row(2, {"a": 1.0}))
    mirror.close({}, None, wait_s=20)
    assert half.rows == [Row(1, {"b": 2.0})]
    assert mirror.has_all
