"""The protocol, by threads over torch's own store; real restarts are in tests/distributed/test_restarts.py."""

import gc
import hashlib
import itertools
import os
import re
import socket
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

import unetdist.distributed.rendezvous as rendezvous
from tests.distributed.launcher import RankError, run_ranks
from tests.distributed.ports import free_port
from unetdist.distributed.rendezvous import connect, first_of_launch, keep_group, meet, open_store
from unetdist.errors import LaunchError

PLACE = "node0:29500"


@pytest.fixture
def store():
    return dist.HashStore()


def wait_until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "did not happen within 20 s"
        time.sleep(0.005)


def come(store, pool, rank: int, world_size: int, wait_s: float = 20.0):
    return pool.submit(meet, store, rank=rank, world_size=world_size, wait_s=wait_s, where=PLACE)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(5) as pool:
        yield pool


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_all_ranks_find_one_fresh_name(store, pool, world_size):
    """The second time among all keys of the first, as after a restart."""
    names = []
    for _ in range(2):
        coming = [come(store, pool, rank, world_size) for rank in range(world_size)]
        (name,) = {each.result() for each in coming}
        names.append(name)
    assert names[0] != names[1]


def test_a_dead_process_is_not_met(store, pool):
    """Rank 1 came and died; the others must wait for its successor."""
    store.set("token/1", "of the dead")
    zero = come(store, pool, 0, 2)
    time.sleep(0.3)
    assert not zero.done()
    assert come(store, pool, 1, 2).result() == zero.result()


def test_a_rank_may_die_and_come_back_while_others_are_awaited(store, pool):
    zero = come(store, pool, 0, 3)
    store.set("token/1", "of the dead")
    store.set("token/2", "of another")
    wait_until(lambda: store.check(["token/0"]))
    group = hashlib.sha256(b" ".join([store.get("token/0"), b"of the dead", b"of another"])).hexdigest()
    store.set(f"{group}/1", "")  # it confirmed before it died
    wait_until(lambda: store.check([f"{group}/0"]))
    one, two = come(store, pool, 1, 3), come(store, pool, 2, 3)
    assert zero.result() == one.result() == two.result()


def test_ranks_that_never_came_are_named_by_all_that_did(store, pool, monkeypatch):
    monkeypatch.setattr(rendezvous, "GRACE_S", 0.1)
    for coming in [come(store, pool, rank, 4, wait_s=0.4) for rank in (0, 1)]:
        text = r"rank 2, 3 \(of 0 to 3\) did not reach node0:29500 within 0 s: its own error.*--main_process_ip"
        with pytest.raises(LaunchError, match=text):
            coming.result()


def test_a_rank_that_died_and_did_not_come_back_is_named(store, pool):
    store.set("token/0", "of the dead")
    with pytest.raises(LaunchError, match=r"rank 0 \(of 0 to 1\) did not reach node0:29500"):
        come(store, pool, 1, 2, wait_s=0.3).result()


@pytest.mark.parametrize("rank", [0, 1])
def test_of_two_processes_of_one_rank_the_later_one_trains(store, pool, rank):
    """Such as one whose launcher was killed while it started, and that of the next launch."""
    first = come(store, pool, rank, 2)
    wait_until(lambda: store.check([f"token/{rank}"]))
    second = come(store, pool, rank, 2)
    time.sleep(0.3)
    other = come(store, pool, 1 - rank, 2)
    with pytest.raises(LaunchError, match=f"another process has come as rank {rank} to node0:29500 .*end one of"):
        first.result()
    assert other.result() == second.result()


@pytest.mark.parametrize("agent", ["True", "False"])
def test_a_store_that_nobody_hosts_is_named_without_a_stack(monkeypatch, capfd, agent):
    port = free_port()
    monkeypatch.setattr(rendezvous, "LAUNCHER_S", 0.2)  # orphans need not look for longer
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", agent)
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(
        LaunchError, match=rf"rank 1 could not reach 127.0.0.1:{port}, .* within 0 s .*refused.*is rank 0's machine up"
    ):
        connect("gloo", timeout_s=5, wait_s=600 if agent == "True" else 0.2)
    assert "frame #" not in capfd.readouterr().err


def test_a_port_that_another_program_has_is_named(monkeypatch):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(LaunchError, match=r"another program uses that port; choose another --main_process_port"):
            connect("gloo", timeout_s=5, wait_s=5)


def connected(port: int, agent: str) -> tuple[int, str, bytes]:
    """Meet again, at `port` and without the group of the harness."""
    dist.destroy_process_group()
    os.environ.update(MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE=agent)
    connect("gloo", timeout_s=20, wait_s=20)
    total = torch.ones(())
    dist.all_reduce(total)
    store = open_store("here")
    store.set(f"from/{dist.get_rank()}", "x")
    dist.barrier()
    others = b"".join(store.multi_get([f"from/{rank}" for rank in range(dist.get_world_size())]))
    dist.barrier()
    return int(total), dist.get_backend(), others


def test_rank_zero_hosts_the_store_where_no_launcher_does():
    assert run_ranks(connected, 3, free_port(), "False") == [(3, "gloo", b"xxx")] * 3


def test_a_store_of_the_launcher_is_used_again_and_again():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for _ in range(2):
        assert run_ranks(connected, 2, store.port, "True") == [(2, "gloo", b"xx")] * 2


def test_a_launcher_keeps_what_its_first_start_chose(monkeypatch):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    for number in ("1", "2"):  # the second start
        monkeypatch.setattr(rendezvous, "_calls", itertools.count())
        assert [first_of_launch(f"{run} of start {number}") for run in "ab"] == ["a of start 1", "b of start 1"]
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert first_of_launch("c") == "c"


def listening_at(port: int, local_world_size: str) -> list[str]:
    """Addresses of other networks at which this process can be reached, once it has met the others."""
    dist.destroy_process_group()
    os.environ.update(MASTER_PORT=str(port), LOCAL_WORLD_SIZE=local_world_size)
    os.environ.pop("GLOO_SOCKET_IFNAME", None)
    before = {(c.fd, c.laddr) for c in psutil.Process().net_connections("tcp")}
    connect("gloo", timeout_s=20, wait_s=20)
    dist.all_reduce(torch.ones(()))
    opened = [c for c in psutil.Process().net_connections("tcp") if (c.fd, c.laddr) not in before]
    found = {c.laddr.ip for c in opened if c.status == psutil.CONN_LISTEN}
    dist.barrier()
    return sorted(found)


def test_on_one_machine_nothing_listens_to_other_machines():
    for addresses in run_ranks(listening_at, 2, free_port(), "2"):
        assert addresses == ["127.0.0.1"]


def test_on_several_machines_the_store_listens_to_them():
    """So the address alone does not make the store private."""
    rank_0, _ = run_ranks(listening_at, 2, free_port(), "1")
    assert {"::", "0.0.0.0"} & set(rank_0)


def missing_rank(port: int) -> None:
    if dist.get_rank() == 2:
        return
    dist.destroy_process_group()
    os.environ["MASTER_PORT"] = str(port)
    connect("gloo", timeout_s=20, wait_s=1)


def test_every_rank_that_came_says_who_did_not():
    """Rank 1 may lose the store, which rank 0 takes along, before it has read the names."""
    with pytest.raises(RankError) as told:
        run_ranks(missing_rank, 3, free_port())
    assert re.search(r"rank 2 \(of 0 to 2\) did not reach 127.0.0.1|rank 1 lost 127.0.0.1", str(told.value))


def lost_store(port: int) -> None:
    dist.destroy_process_group()
    os.environ["MASTER_PORT"] = str(port)
    if os.environ["RANK"] == "0":
        store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        store.wait(["unetdist/token/1"])
    else:
        connect("gloo", timeout_s=20, wait_s=20)


def test_a_store_that_ends_meanwhile_is_named():
    text = "rank 1 lost 127.0.0.1:.*, where the processes meet .*: rank 0 or its launcher has ended.*continues"
    with pytest.raises(RankError, match=text):
        run_ranks(lost_store, 2, free_port())


def test_nothing_is_shared_by_one_process_alone():
    assert open_store("here") is None


def end_the_group() -> bool:
    keep_group()
    group = weakref.ref(dist.group.WORLD)
    dist.destroy_process_group()
    gc.collect()
    return group() is not None


def test_a_group_that_ended_is_held_by_python_and_not_by_a_ddp_alone():
    assert run_ranks(end_the_group, 2) == [True, True]


def threads_after_the_end() -> list[int]:
    keep_group()
    dist.all_reduce(torch.ones(()))
    rendezvous._end_threads()
    while_connected = names_of_threads()
    dist.destroy_process_group()
    rendezvous._end_threads()
    return [while_connected.count("pt_gloo_runloop"), names_of_threads().count("pt_gloo_runloop")]


def names_of_threads() -> list[str]:
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads in /proc")
def test_no_thread_of_a_group_that_ended_is_left_to_end_with_python():
    for connected, ended in run_ranks(threads_after_the_end, 2):
        assert connected > 0
        assert ended == 0
