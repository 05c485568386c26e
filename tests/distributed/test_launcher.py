import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.distributed.launcher import RankError, run_ranks


def rank_and_sum(offset: int) -> tuple[str, torch.Tensor]:
    value = torch.tensor([dist.get_rank() + offset])
    dist.all_reduce(value)
    return os.environ["RANK"], value


def fail_on_rank_one() -> None:
    if dist.get_rank() == 1:
        raise ValueError("the reason")
    dist.barrier()


def die_on_rank_one() -> None:
    if dist.get_rank() == 1:
        os._exit(3)


def hang_on_rank_zero() -> None:
    if dist.get_rank() == 0:
        time.sleep(60)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_rank_returns_its_result_in_order(world_size):
    results = run_ranks(rank_and_sum, world_size, 10)
    assert [rank for rank, _ in results] == [str(rank) for rank in range(world_size)]
    assert {int(total) for _, total in results} == {sum(range(world_size)) + 10 * world_size}


def test_traceback_of_the_failing_rank_is_shown():
    with pytest.raises(RankError, match=r"(?s)--- rank 1.*fail_on_rank_one.*ValueError: the reason"):
        run_ranks(fail_on_rank_one, 2)


def test_rank_that_dies_is_named():
    with pytest.raises(RankError, match=r"(?s)1 of 2 ranks succeeded.*rank 1\ndied without a traceback"):
        run_ranks(die_on_rank_one, 2)


def test_rank_that_hangs_is_killed_and_named():
    began = time.monotonic()
    with pytest.raises(RankError, match=r"(?s)unfinished when .*: rank \[0\].*in hang_on_rank_zero"):
        run_ranks(hang_on_rank_zero, 2, timeout_s=1.0)
    assert time.monotonic() - began < 10
