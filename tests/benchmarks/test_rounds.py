from itertools import pairwise

import pytest

from tests.benchmarks.contenders import VoidError
from tests.benchmarks.rounds import Measured, Spread, run_rounds, spread, turn


class Fake:
    """A contender whose speed is known, and who writes down when it ran."""

    def __init__(self, name, speeds, order):
        self.name, self.speeds, self.order = name, list(speeds), order

    def ask(self, do, *, seconds):
        assert do == "time"
        self.order.append(self.name)
        speed = self.speeds.pop(0)
        if speed is None:
            raise VoidError("worn out")
        return {"samples": speed * seconds, "seconds": seconds, "cpu_seconds": seconds}


def test_ratios_are_taken_round_by_round():
    order = []
    # The machine is ten times as slow in the second round: the ratio does not see it.
    fakes = {"a": Fake("a", [1, 300, 30, 330], order), "b": Fake("b", [1, 100, 10, 100], order)}
    measured = run_rounds(fakes, num_rounds=3, seconds=2.0, label="test")
    assert measured.rates("a") == [300, 30, 330]
    assert measured.ratio("a", "b") == Spread(3.0, 3.0, pytest.approx(3.15))
    assert measured.void == {}


def test_everybody_runs_once_per_round_in_changing_order():
    order = []
    fakes = {name: Fake(name, [1] * 7, order) for name in "abc"}
    run_rounds(fakes, num_rounds=6, seconds=1.0, label="test", warm_up=1)
    rounds = [order[at : at + 3] for at in range(0, len(order), 3)]
    assert len(rounds) == 7
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert {one[0] for one in rounds} == {"a", "b", "c"}
    followers = {pair for one in rounds for pair in pairwise(one)}
    assert len(followers) == 6


def test_turns_rotate_and_go_backwards():
    assert [turn("abc", number) for number in range(4)] == [
        ["a", "b", "c"],
        ["a", "c", "b"],
        ["c", "a", "b"],
        ["c", "b", "a"],
    ]


def test_who_fails_is_void_and_the_others_go_on():
    order = []
    fakes = {"a": Fake("a", [1, 2, 2], order), "b": Fake("b", [1, 2, None], order)}
    measured = run_rounds(fakes, num_rounds=2, seconds=1.0, label="test")
    assert measured.void == {"b": "worn out"}
    assert [list(one) for one in measured.rounds] == [["a"], ["a"]]


def test_spread():
    assert spread([5.0]) == Spread(5.0, 5.0, 5.0)
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0)


def test_rates_are_samples_by_seconds():
    rounds = [{"a": {"samples": 32, "seconds": 2.0, "cpu_seconds": 1.0}}]
    assert Measured(rounds).rates("a") == [16]
