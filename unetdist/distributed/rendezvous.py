"""How the processes of a run find each other, also after a restart.

A launcher keeps its store of keys and values over the restarts of its processes (`--max_restarts`), with all that the
dead ones wrote there; torch would take the addresses of the dead for those of the living. So each group of processes
writes under a name of its own, which rank 0 draws. The others call with a fresh token and are answered with that name:
a call of the dead is answered too, but never confirmed.
"""

import atexit
import errno
import gc
import ipaddress
import json
import os
import socket
import sys
import time
import uuid
from datetime import timedelta
from functools import partial
from typing import Protocol

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from unetdist.errors import LaunchError

WAIT_S = 600.0
"""How long the first process to come waits for the last."""

GRACE_S = 15.0
"""How much longer the others wait, so that they hear from rank 0 who did not come."""

LAUNCHER_S = 30.0
"""How long a launcher's store, which is older than its processes, is looked for: they are orphans if it is gone."""

LOOK_EVERY_S = 0.1

LOOPBACK = "lo"
"""Linux's name of the network that ends at this machine."""

REMEDY = (
    "its own error stands above or in the log of its machine; if it was never started, start every machine with the "
    "same --main_process_ip, --main_process_port and --num_machines, and a firewall must let that port through."
)

_groups: list[dist.ProcessGroup | None] = []
"""See `keep_group`."""


class Store(Protocol):
    """What is used of torch's stores of keys and values."""

    def set(self, key: str, value: str, /) -> None:
        """Write."""

    def get(self, key: str, /) -> bytes:
        """Read; waits until it is there."""

    def multi_get(self, keys: list[str], /) -> list[bytes]:
        """Read several at once."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all of them are there."""


def connect(backend: str, *, timeout_s: float, wait_s: float = WAIT_S) -> None:
    """Collective. Make the default process group out of the processes that are alive now.

    Reads RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as every launcher sets them. The store is the launcher's
    where it hosts one, else rank 0's.

    Args:
        backend: "gloo" or "nccl".
        timeout_s: seconds after which a collective that some rank does not join fails.
        wait_s: seconds to wait for the other processes.

    Raises:
        LaunchError: some did not come; it names them, on every rank that did.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    has_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    hosts = rank == 0 and not has_launcher
    where = f"{address}:{port}"
    if not hosts:
        _wait_for_store(rank, address, port, min(wait_s, LAUNCHER_S) if has_launcher else wait_s)
    is_one_machine = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) == world_size
    if is_one_machine and sys.platform == "linux" and backend == "gloo":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
    try:
        store = TCPStore(
            address,
            port,
            is_master=hosts,
            timeout=timedelta(seconds=wait_s),
            wait_for_workers=False,  # `gather` waits for them, and can say who is missing
            multi_tenant=True,
            master_listen_fd=_listen_on_loopback(address, port) if hosts and is_one_machine else None,
        )
        own = PrefixStore("unetdist", store)
        meet = gather if rank == 0 else partial(call, rank=rank)
        group = meet(own, world_size=world_size, wait_s=wait_s, where=where)
    except dist.DistError as error:
        raise _lost(rank, where, error) from None
    dist.init_process_group(
        backend,
        store=PrefixStore(group, store),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )


def _listen_on_loopback(address: str, port: int) -> int | None:
    """A socket for a store that other machines cannot reach, where `address` is loopback; torch would listen on all.

    Anybody who reaches a store may read and write it: it asks for no password.
    """
    family, kind, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    if not ipaddress.ip_address(where[0]).is_loopback:
        return None
    listening = socket.socket(family, kind)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(where)
        listening.listen()
    except OSError as error:
        listening.close()
        raise dist.DistNetworkError(f"{error} ({errno.errorcode[error.errno or 0]})") from None
    return listening.detach()  # the store closes it


def keep_group() -> None:
    """Hold the process group until the program has ended, so that no DDP is the last to hold it.

    Who frees a DDP frees its reducer, and with the GIL held, the process group if nothing else holds it: that waits for
    gloo's threads, one of which may wait for the GIL to free the tensor of the last collective, and so for ever (torch
    2.13; seen once in 30 short runs on a busy machine). Freed by Python the group gives up the GIL first.
    """
    if dist.is_initialized() and dist.group.WORLD not in _groups:
        _groups.append(dist.group.WORLD)


@atexit.register
def _end_threads() -> None:
    """Free the group while Python still runs, which ends gloo's threads.

    A thread that frees the tensor of the last collective later than that is ended by Python 3.11 where it asks for the
    GIL, and the process with it: "terminate called without an active exception" (torch 2.13; seen in 3 of 50 short
    runs on a busy machine). Of a group that is not yet destroyed something failed: its threads may wait for others.
    """
    if _groups and not dist.is_initialized():
        gc.collect()  # DDP modules in cycles, first
        _groups.clear()


def open_store(name: str) -> Store | None:
    """A connection to the store that the processes share, for one thread; None where nothing is shared.

    Args:
        name: what is written under one name is not seen under another.
    """
    if not dist.is_initialized():
        return None
    shared = dist.distributed_c10d._get_default_store()
    store: Store = PrefixStore(name, shared.clone())  # type: ignore[attr-defined]
    return store


def gather(store: Store, *, world_size: int, wait_s: float, where: str) -> str:
    """Rank 0: answer every call until each rank has confirmed; returns the name of the group."""
    group, others = uuid.uuid4().hex, set(range(1, world_size))
    calls: dict[int, str] = {}
    here: set[int] = set()
    deadline = time.monotonic() + wait_s
    store.set("leader", group)
    while here != others and time.monotonic() < deadline:
        if _read(store, "leader") != group:
            raise _displaced(0, where)
        for rank in others:  # also those that are here: one may die, and call anew, while others are awaited
            token = _read(store, f"call/{rank}")
            if token != calls.get(rank, ""):
                calls[rank] = token
                store.set(f"answer/{token}", group)
            if token and token == _read(store, f"confirmed/{group}/{rank}"):
                here.add(rank)
            else:
                here.discard(rank)
        time.sleep(LOOK_EVERY_S)
    missing = sorted(others - here)
    store.set(
        f"complete/{group}", json.dumps({"missing": missing, "tokens": {rank: calls[rank] for rank in here}})
    )
    if missing:
        time.sleep(10 * LOOK_EVERY_S)  # for the others to read it: the store may end with this process
    _check_complete(missing, world_size, wait_s, where)
    return group


def call(store: Store, *, rank: int, world_size: int, wait_s: float, where: str) -> str:
    """Other ranks: ask for the name of the group, confirm it, and wait until all have; returns it.

    Rank 0 may die and come back meanwhile: then the answer changes.
    """
    token, group = uuid.uuid4().hex, ""
    store.set(f"call/{rank}", token)
    deadline = time.monotonic() + wait_s + GRACE_S
    while time.monotonic() < deadline:
        answer = _read(store, f"answer/{token}")
        if answer and answer != group:
            group = answer
            store.set(f"confirmed/{group}/{rank}", token)
        if group and (complete := _read(store, f"complete/{group}")):
            told = json.loads(complete)
            _check_complete(told["missing"], world_size, wait_s, where)
            if told["tokens"][str(rank)] != token:
                raise _displaced(rank, where)
            return group
        time.sleep(LOOK_EVERY_S)
    raise LaunchError(f"rank 0 did not come to {where} within {wait_s:.0f} s: {REMEDY}")


def _check_complete(missing: list[int], world_size: int, wait_s: float, where: str) -> None:
    if missing:
        ranks = ", ".join(map(str, missing))
        raise LaunchError(
            f"rank {ranks} (of 0 to {world_size - 1}) did not come to {where} within {wait_s:.0f} s: {REMEDY}"
        )


def _displaced(rank: int, where: str) -> LaunchError:
    return LaunchError(
        f"another process has come as rank {rank} to {where} since this one was started: end one of the two launches, "
        "or give one of them another --main_process_port."
    )


def _lost(rank: int, where: str, error: Exception) -> LaunchError:
    cause = (
        "another program has that port; give another --main_process_port."
        if "EADDRINUSE" in str(error)
        else "rank 0 or its launcher has ended; its own error stands above or in the log of its machine. Start "
        "again: the same command continues."
    )
    first_line = str(error).splitlines()[0]
    return LaunchError(f"rank {rank} lost {where}, where the processes meet ({first_line}): {cause}")


def _read(store: Store, key: str) -> str:
    """What is written there, or nothing: `get` alone would wait."""
    return store.get(key).decode() if store.check([key]) else ""


def _wait_for_store(rank: int, address: str, port: int, wait_s: float) -> None:
    """Wait until somebody listens: torch would wait too, but up to three times as long, and print its stack."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            socket.create_connection((address, port), timeout=10).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"rank {rank} could not reach {address}:{port}, where the processes meet, within {wait_s:.0f} s "
                    f"({error}): is rank 0's machine up, and its launch? {REMEDY[0].upper()}{REMEDY[1:]}"
                ) from None
        time.sleep(LOOK_EVERY_S)
