"""Threads over torch's own stores, and real ranks that hang."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

import unetdist.distributed.heartbeat as heartbeat
from tests.distributed.launcher import RankError, run_ranks
from unetdist.distributed.collectives import StopSignal, World, barrier
from unetdist.distributed.heartbeat import Heartbeat, main_frame
from unetdist.distributed.rendezvous import open_store


def wait_until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "did not happen within 20 s"
        time.sleep(0.005)


class Request:
    """A request to stop, without the signals."""

    requested = False
    requested_elsewhere = False

    @property
    def requested_anywhere(self) -> bool:
        return self.requested or self.requested_elsewhere

    def note_elsewhere(self) -> None:
        self.requested_elsewhere = True


@pytest.fixture
def begin():
    """Heartbeats of several ranks in this process, with what they told and how they left."""
    beating = []

    def begin(store, rank: int, world_size: int = 2, limit_s: float = 0.4) -> Heartbeat:
        told, left = [], []
        beat = Heartbeat(
            store,
            World(rank=rank, world_size=world_size),
            limit_s=limit_s,
            stop=Request(),
            record=told.append,
            leave=left.append,
        )
        beat.told, beat.left = told, left
        beating.append(beat)
        return beat

    yield begin
    for beat in beating:
        beat.close()


def move(*beats: Heartbeat) -> threading.Event:
    """Let these move all the time, within their places, until the event is set."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(0.01):
            for beat in beats:
                beat.within("busy")

    threading.Thread(target=run, daemon=True).start()
    return over


def test_all_leave_and_name_the_one_that_stands_still(begin):
    store = dist.HashStore()
    ranks = [begin(store, rank, 3) for rank in range(3)]
    for rank in ranks:
        rank.at("step 5: training")
    for rank in (ranks[0], ranks[2]):
        rank.at("step 6: waiting for data")
    wait_until(lambda: all(rank.left for rank in ranks))
    for rank in ranks:
        assert rank.left == [1]
        assert rank.told[0].startswith(
            f"rank 1 (node {os.uname().nodename}, pid {os.getpid()}) has not moved for"
        )
        assert "s: step 5: training; at " in rank.told[0]
        assert "rank 2" not in rank.told[0]


def test_nobody_leaves_while_the_last_one_moves(begin):
    store = dist.HashStore()
    zero, one = begin(store, 0), begin(store, 1)
    zero.at("validation")
    one.at("validation")
    zero.at("validation: waiting for the others")
    over = move(one)
    time.sleep(1.0)
    assert zero.left == one.left == []
    over.set()
    wait_until(lambda: zero.left and one.left)
    assert zero.told[0].startswith("rank 1 ")


def test_rank_zero_is_known_soon_after_it_comes(begin, monkeypatch):
    """A network that broke within the first second left "node unknown" in the message."""
    monkeypatch.setattr(heartbeat, "EVERY_S", 3600.0)
    store = dist.HashStore()
    one = begin(store, 1, limit_s=0.0)
    begin(store, 0, limit_s=0.0)
    wait_until(lambda: one._zero.node == os.uname().nodename)


def test_one_that_closes_is_not_missed_by_one_that_moves(begin):
    store = dist.HashStore()
    zero, one = begin(store, 0), begin(store, 1)
    one.close()
    over = move(zero)
    time.sleep(1.0)
    assert zero.left == []
    over.set()
    zero.close()


def test_one_that_closes_while_others_wait_for_it_is_named(begin):
    store = dist.HashStore()
    zero, one = begin(store, 0), begin(store, 1)
    zero.at("step 1")
    one.close()
    wait_until(lambda: zero.left)
    assert "rank 1 " in zero.told[0]
    assert "has ended, and the others wait for it: starting" in zero.told[0]


def test_a_rank_zero_that_closes_is_not_missed(begin):
    store = dist.HashStore()
    zero, one = begin(store, 0), begin(store, 1)
    zero.close()
    time.sleep(1.0)
    assert one.left == []


def test_a_silent_rank_zero_is_named_by_the_others(begin):
    one = begin(dist.HashStore(), 1)
    wait_until(lambda: one.left)
    assert one.told[0].startswith("rank 0 (node unknown, pid 0) has not been heard of for")


def test_a_request_to_stop_is_known_to_all(begin):
    store = dist.HashStore()
    ranks = [begin(store, rank, 3, limit_s=0.0) for rank in range(3)]
    ranks[2]._stop.requested = True
    wait_until(lambda: all(rank._stop.requested_elsewhere for rank in ranks[:2]))


class Hanging:
    """A store whose host is stopped: torch's waits for it in spite of any time-out."""

    def __init__(self, store) -> None:
        self.store, self.over = store, threading.Event()
        self.hangs = False

    def __getattr__(self, name: str):
        if self.hangs:
            self.over.wait()
        return getattr(self.store, name)


def test_a_store_that_does_not_answer_is_named_with_its_machine(begin):
    store = dist.HashStore()
    hanging = Hanging(store)
    zero, one = begin(store, 0), begin(hanging, 1)
    over = move(zero, one)
    wait_until(lambda: one._zero.pid)
    hanging.hangs = True
    wait_until(lambda: one.left)
    over.set()
    node = os.uname().nodename
    text = f"the store in which the processes meet, on the machine of rank 0 (node {node}), has not answered"
    assert one.told[0].startswith(text)
    hanging.over.set()


class Broken:
    def set(self, *_) -> None:
        raise RuntimeError("Broken pipe")


def test_a_store_that_is_gone_is_named(begin):
    one = begin(Broken(), 1)
    wait_until(lambda: one.left)
    assert "has not answered for" in one.told[0]
    assert "that machine, its launcher or the network is gone" in one.told[0]


def test_a_process_that_closes_in_time_does_not_mind(begin):
    one = begin(Broken(), 1, limit_s=30.0)
    one.close()
    assert one.left == []


@pytest.mark.parametrize(("store", "world_size"), [(None, 2), (dist.HashStore(), 1)])
def test_one_process_alone_has_no_threads(begin, store, world_size):
    alone = begin(store, 0, world_size)
    alone.at("step 1")
    assert alone._threads == []


def test_the_reason_is_logged_and_told_to_the_launcher(begin, caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(heartbeat.logger, "propagate", True)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    one = begin(dist.HashStore(), 1)
    wait_until(lambda: one.left)
    text = caplog.messages[-1]
    assert text == f"{one.told[0]}; this process ends so that the job can be restarted"
    assert text in (tmp_path / "error.json").read_text()


def test_last_words_that_hang_keep_nobody(begin, monkeypatch):
    monkeypatch.setattr(heartbeat, "TELL_WITHIN_S", 0.1)
    over = threading.Event()
    one = begin(dist.HashStore(), 1)
    one._record = lambda _: over.wait()
    wait_until(lambda: one.left)
    over.set()


def test_the_frame_is_the_innermost_of_this_project():
    found = []
    beat = Heartbeat(None, World(), limit_s=0, stop=Request())
    beat._threads = [threading.Thread(target=lambda: (time.sleep(0.2), found.append(main_frame())))]
    beat._threads[0].start()
    beat.close()
    assert found[0].startswith("unetdist/distributed/heartbeat.py:")
    assert found[0].endswith(" in close")


def hang_on_rank_one(how: str, folder: str) -> None:
    rank, world = dist.get_rank(), World(rank=dist.get_rank(), world_size=dist.get_world_size())
    with StopSignal() as stop:
        beat = Heartbeat(
            open_store("heartbeat"),
            world,
            limit_s=1.0,
            stop=stop,
            record=Path(folder, f"{rank}").write_text,
        )
        for step in range(3):
            beat.at(f"step {step}: waiting for data")
            if rank == 1 and step == 2:
                hang(beat, how)
            beat.at(f"step {step}: training")
            barrier()


def hang(beat: Heartbeat, how: str) -> None:
    said = beat._beats
    wait_until(lambda: beat._beats >= said + 2)
    if how == "SIGSTOP":
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(50)


@pytest.mark.parametrize("how", ["sleep", "SIGSTOP"])
def test_a_rank_that_hangs_is_found_and_ends_all(how, tmp_path):
    with pytest.raises(RankError, match="0 of 3 ranks succeeded"):
        run_ranks(hang_on_rank_one, 3, how, str(tmp_path), timeout_s=40.0)
    what = {"sleep": "has not moved for", "SIGSTOP": "has not been heard of for"}[how]
    told = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert "0" in told  # and the others, unless they come to it after the first have ended
    assert ("1" in told) <= (how == "sleep")
    for text in told.values():
        assert text.startswith("rank 1 (node ")
        assert what in text
        assert "step 2: waiting for data" in text
        assert "rank 0" not in text
    if how == "sleep":
        assert f"; at {__file__}:" in told["0"]


def stop_on_rank_two() -> bool:
    rank, world = dist.get_rank(), World(rank=dist.get_rank(), world_size=dist.get_world_size())
    with StopSignal() as stop:
        beat = Heartbeat(open_store("heartbeat"), world, limit_s=0.0, stop=stop)
        if rank == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        wait_until(lambda: stop.requested_anywhere)
        beat.at("end")
        barrier()
        beat.close()
        return stop.requested


def test_a_signal_on_one_rank_is_known_on_all_without_a_collective():
    assert run_ranks(stop_on_rank_two, 3) == [False, False, True]
