"""Real ranks that hang, and requests to stop that need no collective."""

import ctypes
import os
import signal
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.distributed.launcher import RankError, run_ranks
from unetdist.distributed.collectives import World, barrier
from unetdist.distributed.rendezvous import open_store
from unetdist.distributed.signals import StopSignal
from unetdist.distributed.watchdog import Watchdog


def watched(stop: StopSignal, folder: str, limit_s: float) -> Watchdog:
    rank = dist.get_rank()
    os.environ["TORCHELASTIC_ERROR_FILE"] = str(Path(folder, f"told_{rank}"))
    return Watchdog(
        open_store("watchdog"),
        World(rank=rank, world_size=dist.get_world_size()),
        limit_s=limit_s,
        folder=Path(folder),
        stop=stop,
        record=Path(folder, f"status_{rank}").write_text,
    )


def fall_asleep_on_rank_one(how: str, folder: str) -> None:
    with StopSignal() as stop:
        watchdog = watched(stop, folder, 1.0)
        for step in range(3):
            watchdog.at(f"step {step}")
            if dist.get_rank() == 1 and step == 2:
                fall_asleep(how)
            barrier()


def fall_asleep(how: str) -> None:
    if how == "SIGSTOP":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "holding the GIL":
        ctypes.PyDLL(None).sleep(50)
    time.sleep(50)


@pytest.mark.parametrize("how", ["sleep", "holding the GIL", "SIGSTOP"])
def test_when_one_rank_hangs_all_exit_and_their_stacks_show_who_slept(how, tmp_path):
    with pytest.raises(RankError, match="0 of 2 ranks succeeded"):
        run_ranks(fall_asleep_on_rank_one, 2, how, str(tmp_path), timeout_s=40.0)
    awake = (tmp_path / "stacks" / "rank_0.txt").read_text()
    assert f"node {os.uname().nodename}, process " in awake
    assert "in step 2:" in awake
    assert "in barrier" in awake
    status = (tmp_path / "status_0").read_text()
    assert "no progress for 1 s (trainer.heartbeat_s) in step 2" in status
    assert str(tmp_path / "stacks") in status
    assert status in (tmp_path / "told_0").read_text()
    slept = (tmp_path / "stacks" / "rank_1.txt").read_text()
    assert ("in fall_asleep" in slept) is (how != "SIGSTOP")
    assert "in barrier" not in slept


def make_progress(folder: str) -> None:
    with StopSignal() as stop:
        watchdog = watched(stop, folder, 0.4)
        for _ in range(12):
            watchdog.at("busy")
            time.sleep(0.1)
        barrier()
        watchdog.close()
        time.sleep(1.0)  # what follows the end may take long


def test_ranks_that_move_or_have_closed_are_left_alone_and_leave_no_files(tmp_path):
    run_ranks(make_progress, 2, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def stop_on_rank_two(folder: str) -> bool:
    with StopSignal() as stop:
        watchdog = watched(stop, folder, 0.0)
        if dist.get_rank() == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        end = time.monotonic() + 20
        while not stop.requested_anywhere:
            assert time.monotonic() < end
            time.sleep(0.01)
        barrier()
        watchdog.close()
        return stop.requested


def test_a_signal_on_one_rank_is_known_on_all_without_a_collective(tmp_path):
    assert run_ranks(stop_on_rank_two, 3, str(tmp_path)) == [False, False, True]
    assert list(tmp_path.iterdir()) == []


def lose_the_store(folder: str) -> None:
    class Gone:
        def check(self, *_) -> None:
            raise RuntimeError("Broken pipe")

    with StopSignal() as stop:
        world = World(rank=dist.get_rank(), world_size=2)
        watchdog = Watchdog(Gone(), world, limit_s=0.8, folder=Path(folder), stop=stop)
        time.sleep(20)
        watchdog.close()


def test_a_store_that_is_gone_does_not_blind_the_watchdog(tmp_path):
    with pytest.raises(RankError, match="0 of 2 ranks succeeded"):
        run_ranks(lose_the_store, 2, str(tmp_path), timeout_s=15.0)
    assert "in lose_the_store" in (tmp_path / "stacks" / "rank_0.txt").read_text()


@pytest.mark.parametrize(("store", "world_size"), [(None, 2), (dist.HashStore(), 1)])
def test_a_single_process_is_not_watched(store, world_size, tmp_path):
    watchdog = Watchdog(store, World(world_size=world_size), limit_s=0.1, folder=tmp_path, stop=None)
    watchdog.at("step 1")
    time.sleep(0.5)
    watchdog.close()
    assert list(tmp_path.iterdir()) == []
