"""How the processes of a run reach each other, and how fast."""

import os
import platform
import socket
import statistics
import time
from collections.abc import Iterator
from typing import Any

import psutil
import torch

from unetdist.apps.doctor.case import Case
from unetdist.apps.doctor.examination import GO, Check
from unetdist.apps.doctor.findings import Finding, by_rank, duration, ok, problem, size, warning
from unetdist.distributed.collectives import all_reduce_sum, barrier

GROUP = "processes"
VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
DEFAULT_PORT = 29500
"""Of `accelerate launch`, where none is given."""
MOST_SKEW_S = 2.0
"""Between clocks; beyond it logs and files of several machines are hard to read side by side."""
SIZES = (4_000, 64_000, 1_000_000, 16_000_000, 64_000_000)
"""Bytes of the arrays that are summed over all processes."""
SLOW_S = 0.5
"""Of one all-reduce: larger ones are not tried."""
REPEATS = 5


def ways(case: Case) -> dict[str, Any]:
    """Where this rank is, and by which interface it reaches rank 0."""
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    own = own_address(address)
    named = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    return {
        "node": platform.node(),
        "pid": os.getpid(),
        "meeting": f"{address}:{os.environ.get('MASTER_PORT', DEFAULT_PORT)}",
        "own": own,
        "interface": interface_of(own),
        "named": named,
        "unknown": [f"{name}={value}" for name, value in named.items() if not is_interface(value)],
        "interfaces": sorted(psutil.net_if_addrs()),
        "by_name": _resolved(platform.node()),
    }


def own_address(target: str) -> str:
    """The address from which this machine would talk to `target`; empty where it cannot be known."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(where)  # datagrams: nothing is sent
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def interface_of(address: str) -> str:
    """The network interface with an address; empty where there is none."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.split("%")[0] == address for each in addresses):
            return str(name)
    return ""


def is_interface(value: str) -> bool:
    """Whether a value of `VARIABLES`, names or (NCCL) beginnings of names, means an interface of this machine."""
    there = psutil.net_if_addrs()
    if value.startswith("^"):
        return True
    names = [name.split(":")[0].lstrip("=") for name in value.split(",")]
    return any(name in there or any(each.startswith(name) for each in there) for name in names if name)


def _resolved(name: str) -> str:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return ""


def judge_ways(_: Case, ranks: list[dict[str, Any]]) -> Iterator[Finding]:
    """Machines, interfaces, addresses."""
    nodes: dict[str, list[int]] = {}
    for number, rank in enumerate(ranks):
        nodes.setdefault(rank["node"], []).append(number)
    where = ", ".join(f"{node} (rank {', '.join(map(str, numbers))})" for node, numbers in nodes.items())
    yield ok("ranks", f"{len(ranks)} on {len(nodes)} machine{'s' if len(nodes) > 1 else ''}: {where}")
    if len(ranks) > 1:
        texts = [f"{rank['own'] or 'no address'} ({rank['interface'] or 'no interface'})" for rank in ranks]
        yield ok("rendezvous", f"{ranks[0]['meeting']}, from {by_rank(texts)}")
    if any(rank["unknown"] for rank in ranks):
        strangers = [
            f"{', '.join(rank['unknown'])} is none of its interfaces" if rank["unknown"] else None
            for rank in ranks
        ]
        there = next(rank["interfaces"] for rank in ranks if rank["unknown"])
        yield problem("interfaces", by_rank(strangers), f"use one of {', '.join(there)}, or unset it")
    if len(nodes) > 1:
        yield from _between_machines(ranks)


def _between_machines(ranks: list[dict[str, Any]]) -> Iterator[Finding]:
    """Gloo listens where the machine's name leads, unless told otherwise; others must get there."""
    deaf = [
        f"its name leads to {rank['by_name'] or 'no address'}"
        if "GLOO_SOCKET_IFNAME" not in rank["named"] and (rank["by_name"] or "127.").startswith("127.")
        else None
        for rank in ranks
    ]
    if any(deaf):
        name = next((rank["interface"] for rank in ranks if rank["interface"] not in ("", "lo")), "eth0")
        remedy = f"export GLOO_SOCKET_IFNAME={name} NCCL_SOCKET_IFNAME={name} on each machine"
        yield warning("interfaces", by_rank(deaf), remedy)
    else:
        yield ok(
            "interfaces", by_rank([str(rank["named"] or f"by name, {rank['by_name']}") for rank in ranks])
        )


def port(_: Case) -> dict[str, int | str]:
    """Whether the port could be taken where several processes would meet, and one that could."""
    number = int(os.environ.get("MASTER_PORT") or DEFAULT_PORT)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("", number))
            taken = ""
        except OSError as error:
            taken = error.strerror or str(error)
    with socket.socket() as listening:
        listening.bind(("", 0))
        return {"port": number, "taken": taken, "free": int(listening.getsockname()[1])}


def judge_port(_: Case, ranks: list[dict[str, Any]]) -> Iterator[Finding]:
    """A free port to meet at."""
    (rank,) = ranks
    fact = f"port {rank['port']}, where several processes would meet"
    if rank["taken"]:
        remedy = f"accelerate launch --main_process_port {rank['free']} (0: any free one, on one machine)"
        yield warning("port", f"{fact}: {rank['taken'].lower()}", remedy)
    else:
        yield ok("port", f"{fact}, is free")


def _if_alone(case: Case) -> str | None:
    """A launcher of one process may have taken it itself."""
    is_launched = "RANK" in os.environ
    return GO if case.world.world_size == 1 and not is_launched and not case.launch_refused else ""


def _if_several(case: Case) -> str | None:
    return GO if case.world.world_size > 1 else ""


def clock(_: Case) -> float:
    """Collective. The time, read together."""
    barrier()
    return time.time()


def judge_clock(_: Case, ranks: list[float]) -> Iterator[Finding]:
    """Clocks that agree."""
    skew = max(ranks) - min(ranks)
    if skew > MOST_SKEW_S:
        texts = [f"{time - ranks[0]:+.1f} s" for time in ranks]
        yield warning("clocks", f"beside rank 0's: {by_rank(texts)}", "let the machines use NTP (chrony)")
    else:
        yield ok("clocks", f"within {duration(skew)}")


def reduce(case: Case) -> list[tuple[int, float]]:
    """Collective. (bytes, seconds) of an all-reduce, of the slowest rank; larger ones only while they are fast."""
    device = case.world.device
    found = []
    for num_bytes in SIZES:
        tensor = torch.zeros(num_bytes // 4, device=device)
        times = [_timed(tensor, device) for _ in range(1 + REPEATS)][1:]
        slowest = torch.zeros(case.world.world_size, dtype=torch.float64, device=device)
        slowest[case.world.rank] = statistics.median(times)
        seconds = float(all_reduce_sum(slowest).max())
        found.append((num_bytes, seconds))
        if seconds > SLOW_S:
            break
    return found


def _timed(tensor: torch.Tensor, device: torch.device) -> float:
    """Collective. Seconds of one all-reduce that all begin together."""
    barrier()
    began = time.perf_counter()
    all_reduce_sum(tensor)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def judge_reduce(case: Case, ranks: list[list[tuple[int, float]]]) -> Iterator[Finding]:
    """How fast sums are; whether that is fast enough is said once the step is measured."""
    case.measured.reduce = [(num_bytes, seconds) for num_bytes, seconds in ranks[0]]
    texts = [f"{size(num_bytes)} in {duration(seconds)}" for num_bytes, seconds in case.measured.reduce]
    num_bytes, seconds = case.measured.reduce[-1]
    yield ok("all-reduce", f"{', '.join(texts)}: {size(num_bytes / seconds)}/s")


def reduce_seconds(points: list[tuple[int, float]], num_bytes: float) -> float:
    """Seconds to sum `num_bytes`, between and beyond measured points; at least one is needed."""
    larger = [point for point in points if point[0] >= num_bytes]
    if not larger:
        return points[-1][1] * num_bytes / points[-1][0]
    smaller = [point for point in points if point[0] < num_bytes] or [(0, larger[0][1])]
    (low, low_s), (high, high_s) = smaller[-1], larger[0]
    return low_s + (high_s - low_s) * (num_bytes - low) / (high - low)


CHECKS = (
    Check(group=GROUP, what="ranks", measure=ways, judge=judge_ways),
    Check(group=GROUP, what="port", measure=port, judge=judge_port, why_not=_if_alone),
    Check(
        group=GROUP, what="clocks", measure=clock, judge=judge_clock, why_not=_if_several, is_collective=True
    ),
    Check(
        group=GROUP,
        what="all-reduce",
        measure=reduce,
        judge=judge_reduce,
        why_not=_if_several,
        is_collective=True,
    ),
)
