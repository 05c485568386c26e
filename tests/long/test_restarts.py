"""Restarts by the launcher alone: random ranks die at random moments, also while they meet, or hang."""

import psutil
import pytest

from tests.distributed.restarts import run_restarting, start_restarting

pytestmark = pytest.mark.long


@pytest.mark.parametrize("seed", range(4))
def test_ranks_that_are_killed_at_random_moments_always_come_back(seed, tmp_path):
    run_restarting(tmp_path, seed=seed, how="SIGKILL", max_restarts=4, num_processes=2 + seed % 3)


@pytest.mark.parametrize("how", ["sleep", "SIGSTOP"])
def test_ranks_that_hang_leave_their_stacks_and_are_restarted(how, tmp_path):
    output = run_restarting(tmp_path, seed=1, how=how, max_restarts=2, num_processes=3)
    for attempt in range(2):
        rank, step = (tmp_path / f"hung_{attempt}").read_text().split()
        stacks = {path.stem: path.read_text() for path in (tmp_path / f"attempt_{attempt}").rglob("rank_*.txt")}
        assert ("restarting.py" in stacks.pop(f"rank_{rank}")) is (how == "sleep"), output
        assert any("in all_reduce" in text for text in stacks.values()), stacks
        assert f"no progress for 3 s (trainer.heartbeat_s) in step {step}: " in output


def test_a_launcher_that_is_killed_while_its_ranks_load_leaves_none_behind(tmp_path):
    """Those that are further are told by the kernel, but only once they have asked it to."""
    with open(tmp_path / "log", "w") as log:
        launcher = start_restarting(tmp_path, seed=0, how="SIGKILL", max_restarts=0, out=log)
        ranks: list[psutil.Process] = []
        while len(ranks) < 2:
            assert launcher.poll() is None, (tmp_path / "log").read_text()
            ranks = psutil.Process(launcher.pid).children()
        launcher.kill()
        launcher.wait()
        _, left = psutil.wait_procs(ranks, timeout=300)
    for rank in left:
        rank.kill()
    told = (tmp_path / "log").read_text()
    assert not left, told
    assert f"error: the launcher (process {launcher.pid}) that" in told or "where the processes meet" in told
    assert not list(tmp_path.glob("end_*"))
