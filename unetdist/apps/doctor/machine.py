"""What the machines of a run have: cores, devices, memory, shared memory, open files."""

import os
import platform
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from unetdist.apps.doctor.case import Case
from unetdist.apps.doctor.examination import Check
from unetdist.apps.doctor.findings import Finding, by_rank, ok, problem, size, warning
from unetdist.distributed.hardware import cpu_model, num_cores
from unetdist.distributed.malloc import free_bytes

GROUP = "machine"
CGROUP = Path("/sys/fs/cgroup")
SHM = Path("/dev/shm")
NEEDED_FILES = 1024
"""Two descriptors for each of 128 open shards, and what workers and libraries hold."""
NEEDED_SHM = 64e6
"""Batches have memory of their own; NCCL and torch's loader take some."""
NEEDED_MEMORY = 1e9
"""Free, for each process of the run, before anything of it is there."""


def processor(case: Case) -> dict[str, Any]:
    """Cores and who else uses them."""
    return {
        "model": cpu_model(),
        "cores": num_cores(),
        "quota": quota(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "local": case.world.local_world_size,
        "is_cpu": case.world.device.type == "cpu",
        "units": torch.backends.cpu.get_cpu_capability(),
    }


def quota(cgroup: Path = CGROUP) -> float | None:
    """Cores that the container may use at once; None: no limit."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def judge_processor(_: Case, ranks: list[dict[str, Any]]) -> Iterator[Finding]:
    """Enough cores, not too many threads on them, nobody else there."""
    yield ok(
        "processor", by_rank([f"{rank['model']}, {rank['cores']} cores, {rank['units']}" for rank in ranks])
    )
    for rank in ranks:
        cores = min(rank["cores"], rank["quota"] or rank["cores"])
        if cores < rank["cores"]:
            yield warning(
                "cores", f"the container may use {cores:.1f} of {rank['cores']}", "give it more, if you can"
            )
        threads = rank["threads"] * rank["local"]
        if rank["is_cpu"] and threads > max(cores, 1):
            each = max(1, int(cores) // rank["local"])
            fact = f"{rank['local']} processes of {rank['threads']} threads share {cores:.0f} cores"
            yield warning("threads", fact, f"export OMP_NUM_THREADS={each}")
        if rank["load"] > 0.5 * cores + 1:
            fact = f"others keep {rank['load']:.1f} of {rank['cores']} cores busy: what is timed here takes too long"
            yield warning("load", fact, "look again when the machine is idle")
        if rank["cores"] < rank["local"]:
            fact = f"{rank['local']} processes on {rank['cores']} cores"
            yield warning("cores", fact, "start fewer processes, or give the job more cores")
        return  # one line is enough: machines of a run are mostly alike, and rank 0 does the most


def devices(case: Case) -> dict[str, Any]:
    """Where this rank computes."""
    device = case.world.device
    if device.type != "cuda":
        return {"text": "CPU", "name": "CPU", "used": 0.0}
    free, total = torch.cuda.mem_get_info(device)
    name = torch.cuda.get_device_name(device)
    return {"text": f"{name}, {size(total)}", "name": name, "used": 1 - free / total}


def judge_devices(_: Case, ranks: list[dict[str, Any]]) -> Iterator[Finding]:
    """Devices alike, and free."""
    text = by_rank([rank["text"] for rank in ranks])
    if len({rank["name"] for rank in ranks}) > 1:
        yield warning("devices", text, "the slowest sets the pace; use equal ones")
    else:
        yield ok("devices", f"{len(ranks)} x {text}" if len(ranks) > 1 else text)
    busy = [
        f"{100 * rank['used']:.0f} % of its memory is taken" if rank["used"] > 0.1 else None for rank in ranks
    ]
    if any(busy):
        yield warning("device memory", by_rank(busy), "see in nvidia-smi what runs there")


def memory(case: Case) -> dict[str, Any]:
    """What this machine has, or the container."""
    return {
        "node": platform.node(),
        "total": psutil.virtual_memory().total,
        "limit": memory_limit(),
        "free": free_bytes(),
        "local": case.world.local_world_size,
    }


def memory_limit(cgroup: Path = CGROUP) -> int | None:
    """Bytes that the container may use; None: no limit."""
    try:
        text = (cgroup / "memory.max").read_text().strip()
        return None if text == "max" else int(text)
    except (OSError, ValueError):
        return None


def judge_memory(_: Case, ranks: list[dict[str, Any]]) -> Iterator[Finding]:
    """Enough for the processes of each machine to begin; what they need is measured later."""
    for rank in {rank["node"]: rank for rank in reversed(ranks)}.values():
        limit = rank["limit"]
        fact = f"{size(rank['free'])} free of {size(rank['total'])}" + (
            f", the container's limit is {size(limit)}" if limit is not None and limit < rank["total"] else ""
        )
        fact = fact if len({rank["node"] for rank in ranks}) == 1 else f"{rank['node']}: {fact}"
        if rank["free"] < NEEDED_MEMORY * rank["local"]:
            remedy = "end what else runs there, or start fewer processes"
            yield problem("memory", f"{fact}, for {rank['local']} process(es)", remedy)
        else:
            yield ok("memory", fact)


def shared_memory(_: Case) -> dict[str, float] | None:
    """Free bytes and size of /dev/shm; None where there is none."""
    if not SHM.is_dir():
        return None
    usage = shutil.disk_usage(SHM)
    return {"free": usage.free, "total": usage.total}


def judge_shared_memory(_: Case, ranks: list[dict[str, float] | None]) -> Iterator[Finding]:
    """Room in /dev/shm."""
    texts = [f"{size(rank['free'])} free in {SHM}" if rank else f"no {SHM}" for rank in ranks]
    tight = any(rank is None or rank["free"] < NEEDED_SHM for rank in ranks)
    if tight:
        yield warning(
            "shared memory", by_rank(texts), "start the container with --shm-size=1g (or --ipc=host)"
        )
    else:
        yield ok("shared memory", texts[0])


def open_files(_: Case) -> list[int]:
    """Soft and hard limit; -1: none."""
    return list(resource.getrlimit(resource.RLIMIT_NOFILE))


def judge_open_files(_: Case, ranks: list[list[int]]) -> Iterator[Finding]:
    """Enough for all shards that are open at a time."""
    soft = min(soft if soft >= 0 else 1 << 30 for soft, _ in ranks)
    text = by_rank([f"{soft:,} at a time" if soft >= 0 else "any number at a time" for soft, _ in ranks])
    if soft < NEEDED_FILES:
        yield warning("open files", text, f"ulimit -n {4 * NEEDED_FILES}")
    else:
        yield ok("open files", text)


CHECKS = (
    Check(group=GROUP, what="processor", measure=processor, judge=judge_processor),
    Check(group=GROUP, what="devices", measure=devices, judge=judge_devices),
    Check(group=GROUP, what="memory", measure=memory, judge=judge_memory),
    Check(group=GROUP, what="shared memory", measure=shared_memory, judge=judge_shared_memory),
    Check(group=GROUP, what="open files", measure=open_files, judge=judge_open_files),
)
