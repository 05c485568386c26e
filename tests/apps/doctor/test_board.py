import pytest

from tests.distributed.launcher import run_ranks
from unetdist.apps.doctor.board import Board
from unetdist.distributed.collectives import World
from unetdist.distributed.rendezvous import open_store
from unetdist.errors import LaunchError


def talk():
    import torch.distributed as dist

    world = World(rank=dist.get_rank(), world_size=dist.get_world_size())
    board = Board(open_store("test"), world)
    told = [board.tell({"from": world.rank, "round": number}) for number in range(2)]
    return told, board.gather(world.rank * 10), board.tell(None)


def test_rank_0_tells_all_and_hears_all():
    told = [{"from": 0, "round": 0}, {"from": 0, "round": 1}]
    first, second = run_ranks(talk, 2)
    assert first == (told, [0, 10], None)
    assert second == (told, [], None)


def test_one_process_talks_to_itself():
    board = Board(None, World())
    assert board.tell("a") == "a"
    assert board.gather("b") == ["b"]


class Silent:
    def check(self, keys):
        return False

    def set(self, key, value):
        pass


def test_a_rank_that_does_not_answer_is_named():
    board = Board(Silent(), World(rank=0, world_size=2), wait_s=0.05)
    with pytest.raises(LaunchError, match=r"rank 1 has not answered for 0 s: it hangs .+; look at the log"):
        board.gather(1)
