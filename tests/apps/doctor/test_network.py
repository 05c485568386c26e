import socket

import pytest

from tests.apps.doctor.cases import case_of, findings_of, level_of, only
from tests.distributed.launcher import run_ranks
from unetdist.apps.doctor import network
from unetdist.apps.doctor.board import Board
from unetdist.apps.doctor.case import Case
from unetdist.distributed.collectives import World


def rank_of(node, **changed):
    return {
        "node": node,
        "pid": 1,
        "meeting": "10.0.0.1:29500",
        "own": "10.0.0.1",
        "interface": "eth7",
        "named": {},
        "unknown": [],
        "interfaces": ["eth7", "lo"],
        "by_name": "10.0.0.1",
        **changed,
    }


def test_one_process_is_where_it_is(tmp_path, monkeypatch):
    for name in ("RANK", "MASTER_PORT", *network.VARIABLES):
        monkeypatch.delenv(name, raising=False)
    found = findings_of(case_of(tmp_path), *network.CHECKS)
    assert only(found, "ranks").fact.startswith("1 on 1 machine: ")
    assert {each.what for each in found} == {"ranks", "port"}


def test_a_port_in_use_is_told_of_with_one_that_is_free(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with socket.socket() as listening:
        listening.bind(("", 0))
        listening.listen()
        number = listening.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(number))
        found = only(findings_of(case_of(tmp_path), *network.CHECKS), "port")
    assert found.level == "warning"
    assert found.fact == f"port {number}, where several processes would meet: address already in use"
    assert found.remedy.startswith("accelerate launch --main_process_port ")
    assert str(number) not in found.remedy


def test_a_launcher_may_have_taken_the_port_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    assert "port" not in {each.what for each in findings_of(case_of(tmp_path), *network.CHECKS)}


def test_interfaces_that_are_not_there_are_problems(monkeypatch, tmp_path):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    found = only(findings_of(case_of(tmp_path), *network.CHECKS), "interfaces")
    assert found.level == "problem"
    assert found.fact == "GLOO_SOCKET_IFNAME=nowhere0 is none of its interfaces"
    assert found.remedy.startswith("use one of ")
    assert network.is_interface("^docker")
    assert not network.is_interface("=nowhere0")


def test_a_name_that_leads_to_the_machine_itself_is_warned_of_between_machines():
    ranks = [rank_of("a"), rank_of("b", by_name="127.0.1.1")]
    *_, found = network.judge_ways(None, ranks)
    assert (found.level, found.fact) == ("warning", "rank 1: its name leads to 127.0.1.1")
    assert found.remedy == "export GLOO_SOCKET_IFNAME=eth7 NCCL_SOCKET_IFNAME=eth7 on each machine"
    named = [rank_of(name, by_name="127.0.1.1", named={"GLOO_SOCKET_IFNAME": "eth7"}) for name in "ab"]
    assert set(level_of(network.judge_ways, None, named)) == {"ok"}
    assert level_of(network.judge_ways, None, [rank_of("a", by_name="127.0.1.1")] * 2) == ["ok", "ok"]


def test_addresses_are_found():
    assert network.own_address("127.0.0.1") == "127.0.0.1"
    assert network.own_address("no such name.invalid") == ""
    assert network.interface_of("203.0.113.77") == ""


def test_clocks_that_differ_are_warned_of():
    (found,) = network.judge_clock(None, [100.0, 107.5])
    assert (found.level, found.fact) == ("warning", "beside rank 0's: rank 0: +0.0 s; rank 1: +7.5 s")
    assert level_of(network.judge_clock, None, [100.0, 100.1]) == ["ok"]


@pytest.mark.parametrize(("num_bytes", "seconds"), [(0, 1.0), (100, 1.0), (150, 1.5), (200, 2.0), (400, 4.0)])
def test_sums_between_and_beyond_the_measured_sizes(num_bytes, seconds):
    assert network.reduce_seconds([(100, 1.0), (200, 2.0)], num_bytes) == pytest.approx(seconds)


def reduce_together():
    import torch.distributed as dist

    world = World(rank=dist.get_rank(), world_size=dist.get_world_size())
    return network.reduce(Case(config=None, world=world, board=Board(None, world), scratch=None))


def test_all_ranks_measure_the_same(monkeypatch):
    first, second = run_ranks(reduce_together, 2)
    assert first == second
    assert [num_bytes for num_bytes, _ in first][:2] == [4_000, 64_000]
    assert all(seconds > 0 for _, seconds in first)
