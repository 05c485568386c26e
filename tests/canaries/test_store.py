"""Behaviour of torch's stores and of Accelerate that the rendezvous and the watchdog rely on or work around."""

import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from tests.distributed.launcher import run_ranks
from unetdist.distributed.collectives import make_accelerator
from unetdist.distributed.rendezvous import open_store
from unetdist.storage.files import write_text


def wait_until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "did not happen within 20 s"
        time.sleep(0.005)


def test_keys_outlive_those_who_wrote_them():
    """Why each group of processes meets under a fresh name: a launcher keeps its store over all restarts."""
    host = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    dist.TCPStore("127.0.0.1", host.port, is_master=False, wait_for_workers=False).set("address", "of the dead")
    second = dist.TCPStore("127.0.0.1", host.port, is_master=False, wait_for_workers=False)
    assert second.check(["address"])
    assert not dist.PrefixStore("fresh", second).check(["address"])


def test_errors_of_a_store_are_of_one_kind():
    assert issubclass(dist.DistNetworkError, dist.DistError)
    assert issubclass(dist.DistStoreError, dist.DistError)
    assert issubclass(dist.DistError, RuntimeError)


def test_a_clone_is_a_connection_of_its_own():
    """Why the watchdog's thread need not wait for the main thread, which may wait in the store."""
    host = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = dist.TCPStore("127.0.0.1", host.port, is_master=False, wait_for_workers=False)
    clone = dist.PrefixStore("name", client.clone())
    waiting = threading.Thread(target=client.wait, args=(["end"], timedelta(seconds=60)))
    waiting.start()
    clone.set("key", "value")
    assert clone.multi_get(["key"]) == [b"value"]
    assert waiting.is_alive()
    host.set("end", "")
    waiting.join()


def kept_group() -> tuple[bool, bool]:
    before = dist.group.WORLD
    open_store("here").set(f"key/{dist.get_rank()}", "")
    accelerator = make_accelerator(timeout_s=20)
    return dist.group.WORLD is before, accelerator.num_processes == 2


def test_accelerate_keeps_the_group_that_it_finds():
    """Why `connect` may come before it."""
    assert run_ranks(kept_group, 2) == [(True, True)] * 2


def is_stopped(pid: int) -> bool:
    """Whether all threads of a process are: a signal to stop reaches them one after the other."""
    states = [file.read_text().rsplit(")", 1)[1].split()[0] for file in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


def ask_a_stopped_host(port_file: str) -> bool:
    """Whether a question to a stopped store is still open long after its time-out."""
    over = Path(f"{port_file}.over")
    if dist.get_rank() == 0:
        host = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        host.set("key", "value")
        write_text(port_file, f"{host.port} {os.getpid()}")
        wait_until(lambda: over.exists())
        return True
    wait_until(lambda: Path(port_file).exists())
    port, pid = map(int, Path(port_file).read_text().split())
    store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
    store.set_timeout(timedelta(seconds=0.2))
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(pid))
    asking = threading.Thread(target=lambda: store.check(["key"]), daemon=True)
    asking.start()
    asking.join(2.0)
    is_open = asking.is_alive()
    os.kill(pid, signal.SIGCONT)
    asking.join(20.0)
    write_text(over, "done")
    return is_open and not asking.is_alive()


def test_a_stopped_store_is_waited_for_in_spite_of_the_time_out(tmp_path):
    """Why the watchdog looks into the store in a thread of its own."""
    assert run_ranks(ask_a_stopped_host, 2, str(tmp_path / "port")) == [True, True]
