"""Restarts by the real launcher; more in tests/long/test_restarts.py."""

import pytest

from tests.distributed.restarts import run_restarting


@pytest.mark.slow
def test_a_killed_rank_is_restarted_with_the_others(tmp_path):
    output = run_restarting(tmp_path, seed=2, how="SIGKILL", max_restarts=1)
    assert output.count("rank 1 of 2: node ") >= 1


@pytest.mark.slow
def test_an_automatic_name_outlives_a_restart(tmp_path):
    run_restarting(tmp_path, seed=0, how="sleep", max_restarts=1)
    names = [(tmp_path / f"name_{attempt}_{rank}").read_text() for attempt in range(2) for rank in range(2)]
    assert len({*names}) == 1  # another name would begin another run
