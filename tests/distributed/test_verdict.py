import pytest

import unetdist.distributed.verdict as verdict
from unetdist.distributed.verdict import UNHEARD, Beat, Judge, Silence, describe

LIMIT_S = 60.0


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(verdict, "time", clock)
    return clock


def of(rank: int, moves: int, still_s: float, **more) -> Beat:
    return Beat(
        moves=moves, still_s=still_s, place=f"place {moves}", node=f"gpu{rank}", pid=4000 + rank, **more
    )


def hear(clock, *beats: Beat | None, rounds: int = 1, limit_s: float = LIMIT_S) -> str | None:
    """What is said first in `rounds` seconds of these beats; a number below 0 is of one that fell silent."""
    judge = Judge(len(beats), limit_s, every_s=1.0)
    said = {rank: beat for rank, beat in enumerate(beats) if beat is not None}
    for number in range(rounds):
        spoken = {
            rank: Beat(**{**vars(beat), "number": 0 if beat.number < 0 else number + 1})
            for rank, beat in said.items()
        }
        if reason := judge.hear(spoken):
            return reason
        clock.now += 1.0
    return None


def test_nobody_is_named_while_somebody_who_is_waited_for_moves(clock):
    assert hear(clock, of(0, 8, 200.0), of(1, 7, 59.0)) is None
    assert hear(clock, of(0, 7, 200.0), of(1, 7, 1.0)) is None  # within one place, such as a long validation


def test_the_one_that_has_come_least_far_is_named(clock):
    beats = of(0, 8, 70.0), of(1, 7, 71.0, frame="unetdist/data/reader.py:120 in read"), of(2, 8, 70.0)
    assert hear(clock, *beats) == (
        "rank 1 (node gpu1, pid 4001) has not moved for 71 s: place 7; at unetdist/data/reader.py:120 in read"
    )


def test_all_are_named_that_stand_in_the_same_place(clock):
    reason = hear(clock, *(of(rank, 7, 61.0) for rank in range(10)))
    assert reason.count("has not moved for 61 s: place 7") == verdict.MOST_NAMED
    assert reason.startswith("rank 0 (node gpu0")
    assert reason.endswith("; and 2 more")


def test_of_those_the_silent_one_is_named(clock):
    """A stopped process, and those that wait for it, have come equally far."""
    assert hear(clock, of(0, 7, 0.0), of(1, 7, 0.0, number=-1), rounds=62) == (
        "rank 1 (node gpu1, pid 4001) has not been heard of for 60 s (stopped, killed, or its machine or network is "
        "gone), last: place 7"
    )
    reason = hear(clock, of(0, 7, 70.0), of(1, 7, 30.0, number=-1), rounds=62)
    assert reason.startswith("rank 1 (node gpu1, pid 4001) has not been heard of for 30 s")
    assert "rank 0" not in reason


def test_silence_is_found_while_the_others_move(clock):
    assert hear(clock, of(0, 9, 0.0), of(1, 7, 0.0, number=-1), rounds=59) is None
    assert "rank 1 (node gpu1, pid 4001) has not been heard of" in hear(
        clock, of(0, 9, 0.0), of(1, 7, 0.0, number=-1), rounds=62
    )


def test_one_that_never_spoke_is_named_after_the_limit(clock):
    assert hear(clock, of(0, 3, 0.0), None, rounds=50) is None
    assert "rank 1 (node unknown, pid 0) has not been heard of for 60 s" in hear(
        clock, of(0, 3, 0.0), None, rounds=62
    )


def test_one_that_left_is_named_once_all_others_wait(clock):
    gone = of(1, 7, 0.0, left=True, number=-1)
    assert hear(clock, of(0, 8, 59.0), gone, of(2, 8, 70.0), rounds=100) is None
    assert hear(clock, of(0, 8, 61.0), gone, of(2, 8, 70.0)) == (
        "rank 1 (node gpu1, pid 4001) has ended, and the others wait for it: place 7"
    )


def test_nobody_is_named_at_the_end(clock):
    assert hear(clock, of(0, 8, 500.0, left=True), of(1, 8, 500.0, left=True), rounds=100) is None
    assert hear(clock, of(0, 8, 3.0), of(1, 8, 500.0, left=True), rounds=100) is None
    assert hear(clock, of(0, 8, 500.0), of(1, 8, 0.0, left=True)) is None


def test_without_a_limit_nobody_is_named(clock):
    assert hear(clock, of(0, 8, 1e6), of(1, 7, 1e6), limit_s=0.0) is None


def test_a_judge_that_was_stopped_itself_blames_nobody_for_it(clock):
    judge = Judge(2, LIMIT_S, every_s=1.0)
    beats = {0: of(0, 7, 0.0, number=1), 1: of(1, 7, 0.0, number=1)}
    assert judge.hear(beats) is None
    clock.now += 3600
    assert judge.hear(beats) is None


def test_silence_counts_from_the_last_change(clock):
    silence = Silence(every_s=1.0)
    heard = []
    for value in (1, 1, 1, 2, 2):
        heard.append(silence.of(value))
        clock.now += 1.0
    assert heard == [0.0, 1.0, 2.0, 0.0, 1.0]


def test_a_beat_says_whose_it_is():
    assert describe(3, Beat(place="starting"), 0.0, 61.0).startswith(f"rank 3 (node {Beat().node}, pid ")
    assert (Beat().pid, UNHEARD.pid) == (verdict.os.getpid(), 0)
