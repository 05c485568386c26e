"""How the processes of a run find each other, also after a restart; everything else is torch's.

A launcher that restarts processes (`--max_restarts`) keeps its key-value store, and torch would take the addresses that
dead processes left there for those of the living. So each start of a group writes under a name of its own.
"""

import atexit
import errno
import gc
import hashlib
import ipaddress
import itertools
import os
import socket
import sys
import time
import uuid
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed import Store as Store  # type: ignore[attr-defined]  # used by watchdog.py

from unetdist.errors import LaunchError

# Seconds that a process waits for the others, whose imports can take minutes on a busy file system. A machine
# that comes back while rank 0's launcher is ending waits the full time for nothing, before the launchers start again.
WAIT_S = 300.0

# Seconds that rank 0 waits longer: the store may end with it, and the others need it to find out who is missing.
GRACE_S = 15.0

# Seconds to look for a launcher's store. It is older than its processes, so if it is gone, they are orphans.
LAUNCHER_S = 30.0

POLL_S = 0.1

# Linux's name for the network interface that ends at this machine.
LOOPBACK = "lo"

REMEDY = (
    "its own error is above or in the log of its machine; if it was never started, start every machine with the same "
    "--main_process_ip, --main_process_port and --num_machines, and let that port through the firewall."
)


def connect(backend: str, *, timeout_s: float, wait_s: float = WAIT_S) -> None:
    """Collective. Create the default process group from the processes that are alive now.

    Reads RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as every launcher sets them. The launcher hosts the store if it
    has one, else rank 0 does. The other processes may come within `wait_s` seconds; a collective of the `backend`
    ("gloo" or "nccl") that some rank does not join fails after `timeout_s`.

    Raises:
        LaunchError: some processes did not come; every rank that did come names them.
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
            wait_for_workers=False,  # `meet` waits for them, and can tell who is missing
            multi_tenant=True,
            master_listen_fd=_listen_on_loopback(address, port) if hosts and is_one_machine else None,
        )
        group = meet(PrefixStore("unetdist", store), rank=rank, world_size=world_size, wait_s=wait_s, where=where)
    except dist.DistError as error:
        raise _lost(rank, where, error) from None
    dist.init_process_group(
        backend, store=PrefixStore(group, store), rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_s)
    )


def meet(store: Store, *, rank: int, world_size: int, wait_s: float, where: str) -> str:
    """Collective. Wait until every rank is here; returns a name that this start of the group alone has.

    The name is the hash of a fresh token of each rank. A rank confirms the name that it sees, and the group is complete
    when all have confirmed the same. Nobody confirms a name for a dead process, and its successor changes the name.
    """
    token = uuid.uuid4().hex
    store.set(f"token/{rank}", token)
    tokens = [f"token/{other}" for other in range(world_size)]
    confirmed: list[str] = []
    deadline = time.monotonic() + wait_s + (GRACE_S if rank == 0 else 0.0)
    while True:
        if store.check(tokens):
            found = store.multi_get(tokens)
            if found[rank].decode() != token:
                raise LaunchError(
                    f"another process has come as rank {rank} to {where} since this one was started: end one of the "
                    "two launches, or give one of them another --main_process_port."
                )
            group = hashlib.sha256(b" ".join(found)).hexdigest()
            confirmed = [f"{group}/{other}" for other in range(world_size)]
            store.set(confirmed[rank], "")
            if store.check(confirmed):
                return group
        if time.monotonic() > deadline:
            break
        # each rank asks for the keys of all others
        time.sleep(max(POLL_S, world_size / 1000))
    missing = [i for i, key in enumerate(tokens) if not store.check([key])]
    missing = missing or [i for i, key in enumerate(confirmed) if not store.check([key])]
    raise LaunchError(
        f"rank {', '.join(map(str, missing))} (of 0 to {world_size - 1}) did not reach {where} within "
        f"{wait_s:.0f} s: {REMEDY}"
    )


def open_store(name: str) -> Store | None:
    """Open a connection to the store that the processes share, to be used by one thread; None for a single process.

    Keys written under one name are not visible under another.
    """
    if not dist.is_initialized():
        return None
    shared = dist.distributed_c10d._get_default_store()
    return PrefixStore(name, shared.clone())  # type: ignore[attr-defined]


def first_of_launch(value: str) -> str:
    """Return `value`, or what the first start returned here if a launcher (`--max_restarts`) restarted this process.

    Calls are counted, so that each call of a process has a value of its own.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return value
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False)
    kept = PrefixStore("unetdist", store).compare_set(f"first/{next(_calls)}", "", value)
    return str(kept.decode())


_calls = itertools.count()


def _listen_on_loopback(address: str, port: int) -> int | None:
    """A socket for the store that other machines cannot reach, if `address` is loopback; torch would listen on all.

    The store asks for no password, so whoever reaches it can read and write it.
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


def _wait_for_store(rank: int, address: str, port: int, wait_s: float) -> None:
    """Wait until the store listens. torch would wait up to three times as long, and print its stack."""
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
        time.sleep(POLL_S)


def _lost(rank: int, where: str, error: Exception) -> LaunchError:
    cause = (
        "another program uses that port; choose another --main_process_port."
        if "EADDRINUSE" in str(error)
        else "rank 0 or its launcher has ended; its own error is above or in the log of its machine. The same command "
        "continues the run."
    )
    first_line = str(error).splitlines()[0]
    return LaunchError(f"rank {rank} lost {where}, where the processes meet ({first_line}): {cause}")


_groups: list[dist.ProcessGroup | None] = []


def keep_group() -> None:
    """Hold the process group until the program ends, so that no DDP is the last to hold it."""
    # Freeing a DDP frees its reducer with the GIL held, and the process group if nothing else holds it. That waits for
    # gloo's threads, one of which may wait for the GIL to free the tensor of the last collective: a deadlock (torch
    # 2.13; seen once in 30 short runs on a busy machine). A group that Python frees releases the GIL first.
    if dist.is_initialized() and dist.group.WORLD not in _groups:
        _groups.append(dist.group.WORLD)


@atexit.register
def _end_threads() -> None:
    """Free the group while Python still runs, which ends gloo's threads."""
    # Python 3.11 ends a thread that asks for the GIL after that, and with it the process: "terminate called without an
    # active exception" (torch 2.13; seen in 3 of 50 short runs on a busy machine). If the group was never destroyed,
    # something failed, and its threads may wait for other processes.
    if _groups and not dist.is_initialized():
        gc.collect()  # DDP modules in cycles, first
        _groups.clear()
