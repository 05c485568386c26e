"""Software and launch: versions and extras, then the processes, their devices and their memory."""

import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
from pathlib import Path
from typing import Any

import psutil
import torch
from packaging.requirements import Requirement
from rich.filesize import decimal as size

import unetdist
from unetdist.apps.doctor.examination import Examination, by_rank
from unetdist.distributed.collectives import all_reduce_sum
from unetdist.distributed.hardware import cpu_model, free_bytes, num_cores
from unetdist.errors import ConfigError
from unetdist.model.timm_encoder import import_timm
from unetdist.tracking.dashboard import check_installed
from unetdist.tracking.wandb_run import wandb_mode

SHOWN = ("torch", "accelerate", "webdataset", "numpy", "opencv-python-headless", "wandb")
DRIVER = Path("/proc/driver/nvidia/version")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
SHM = Path("/dev/shm")

# Two descriptors for each of 128 open shards, and some for workers and libraries.
NEEDED_FILES = 1024
# Bytes that NCCL and torch's loader take; our batches have memory of their own.
NEEDED_SHM = 64e6
# Free bytes for each process before it loads anything.
NEEDED_MEMORY = 1e9


def check_software(exam: Examination) -> None:
    """Collective. Versions, the GPU driver, and the packages of the dashboards."""
    if (answers := exam.ask("versions", software_facts)) is None:
        return
    text = by_rank([rank["versions"] for rank in answers])
    if len({rank["versions"] for rank in answers}) > 1:
        exam.warn("versions", text, "install the same on all machines: results may differ")
    else:
        exam.ok("versions", text)
    if any(rank["unmet"] for rank in answers):
        missing = by_rank([", ".join(rank["unmet"]) or None for rank in answers])
        exam.problem("packages", f"needed: {missing}", "pip install -e . in the checkout")
    if any(rank["timm"] for rank in answers):
        exam.problem("timm", by_rank([rank["timm"] for rank in answers]))
    if any(rank["gpu"] for rank in answers):
        remedy = "install a torch for CUDA that fits the driver (pytorch.org), or update the driver"
        exam.warn("GPU driver", by_rank([rank["gpu"] for rank in answers]), remedy)
    if exam.config is not None and exam.config.tracking.dashboards:
        cfg = exam.config.tracking
        if exam.ask("dashboards", lambda: check_installed(cfg)):
            mode = f" (wandb {wandb_mode(cfg.mode)})" if "wandb" in cfg.dashboards else ""
            exam.ok("dashboards", ", ".join(cfg.dashboards) + mode)


def software_facts() -> dict[str, Any]:
    """Versions of this program and its packages, and what is wrong with them."""
    shown = ", ".join(f"{name} {version_of(name)}" for name in SHOWN)
    timm = None
    # A torchvision of another torch breaks timm, and with it `accelerate launch`, which ends in a traceback.
    if importlib.util.find_spec("timm") is not None:
        try:
            import_timm()
        except ConfigError as error:
            timm = str(error)
    return {
        "versions": f"unetdist {unetdist.__version__}, Python {platform.python_version()}, {shown}",
        "unmet": unmet(),
        "timm": timm,
        "gpu": gpu_fault(),
    }


def unmet() -> list[str]:
    """Requirements of this program that the installed packages do not meet; none if it is not installed."""
    try:
        required = importlib.metadata.requires("unetdist") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for requirement in map(Requirement, required):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = version_of(requirement.name)
        if version == "missing" or not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement.name}{requirement.specifier} (has: {version})")
    return found


def version_of(name: str) -> str:
    """Version of an installed package, or `missing`."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def gpu_fault(driver: Path = DRIVER) -> str | None:
    """Why torch cannot use the NVIDIA GPUs of this machine; None if it can, or there are none."""
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU only"
        return f"there is an NVIDIA driver, but torch ({built}) cannot use it" if driver.exists() else None
    major, minor = torch.cuda.get_device_capability()
    known = torch.cuda.get_arch_list()
    if known and not any(name.startswith((f"sm_{major}", f"compute_{major}")) for name in known):
        return f"this torch has no code for the GPU (sm_{major}{minor})"
    return None


def check_launch(exam: Examination) -> None:
    """Collective. Processes, devices, cores, memory, and whether the processes reach each other."""
    if (answers := exam.ask("processes", lambda: process_facts(exam))) is None:
        return
    nodes: dict[str, list[int]] = {}
    for number, rank in enumerate(answers):
        nodes.setdefault(rank["node"], []).append(number)
    where = ", ".join(f"{node} (rank {', '.join(map(str, ranks))})" for node, ranks in nodes.items())
    exam.ok("processes", f"{len(answers)} on {len(nodes)} machine{'s' if len(nodes) > 1 else ''}: {where}")
    judge_devices(exam, answers)
    judge_cores(exam, answers[0])  # machines of a run are alike, and rank 0 does the most
    judge_memory(exam, answers)
    if len(answers) > 1 and exam.ask("all-reduce", lambda: _sum_ones(exam), is_collective=True):
        exam.ok("all-reduce", "the processes reach each other")


def process_facts(exam: Examination) -> dict[str, Any]:
    """Where this process runs, and what it may use."""
    device, text, used = exam.world.device, cpu_model(), 0.0
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        text, used = f"{torch.cuda.get_device_name(device)}, {size(total)}", 1 - free / total
    return {
        "node": platform.node(),
        "device": text,
        "device_used": used,
        "is_cpu": device.type == "cpu",
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "local": exam.world.local_world_size,
        "free": free_bytes(),
        "total": psutil.virtual_memory().total,
        "shm": shutil.disk_usage(SHM).free if SHM.is_dir() else 0,
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


def usable_cores(quota: Path = CPU_QUOTA) -> float:
    """Cores that this process may keep busy: in a container with a quota, fewer than it sees."""
    try:
        limit, period = quota.read_text().split()
        return min(num_cores(), int(limit) / int(period))
    except (OSError, ValueError):  # no container, or "max"
        return num_cores()


def _sum_ones(exam: Examination) -> float:
    """Collective. The number of processes, summed by all of them."""
    return float(all_reduce_sum(torch.ones((), device=exam.world.device)))


def judge_devices(exam: Examination, answers: list[dict[str, Any]]) -> None:
    """Note unequal devices, and those that other programs use."""
    text = by_rank([rank["device"] for rank in answers])
    if len({rank["device"] for rank in answers}) > 1:
        exam.warn("devices", text, "the slowest sets the pace; use equal ones")
    else:
        exam.ok("devices", f"{len(answers)} x {text}" if len(answers) > 1 else text)
    used = [rank["device_used"] for rank in answers]
    busy = [f"{100 * part:.0f} % of its memory is taken" if part > 0.1 else None for part in used]
    if any(busy):
        exam.warn("device memory", by_rank(busy), "see in nvidia-smi what runs there")


def judge_cores(exam: Examination, rank: dict[str, Any]) -> None:
    """Note too few cores, or too many threads on them."""
    cores, local = rank["cores"], rank["local"]
    fact = f"{local} process(es) of {rank['threads']} threads on {cores:.3g} cores"
    if cores < local:
        exam.warn("cores", fact, "start fewer processes, or give the job more cores")
    elif rank["is_cpu"] and rank["threads"] * local > cores:
        # Threads that share a core wait for each other in every layer.
        exam.warn("cores", fact, f"export OMP_NUM_THREADS={max(1, int(cores) // local)}")
    else:
        exam.ok("cores", fact)
    if rank["load"] > 0.5 * cores + 1:
        fact = f"other programs keep {rank['load']:.1f} cores busy, so the times below are too long"
        exam.warn("load", fact, "try again when the machine is idle")


def judge_memory(exam: Examination, answers: list[dict[str, Any]]) -> None:
    """Note too little memory for the processes of a machine, and limits of its containers."""
    for rank in {rank["node"]: rank for rank in reversed(answers)}.values():
        fact = f"{size(rank['free'])} of {size(rank['total'])} free on {rank['node']}"
        if rank["free"] < NEEDED_MEMORY * rank["local"]:
            remedy = f"end other programs there, or start fewer than {rank['local']} process(es)"
            exam.problem("memory", fact, remedy)
        else:
            exam.ok("memory", fact)
    if min(rank["shm"] for rank in answers) < NEEDED_SHM:
        texts = by_rank([f"{size(rank['shm'])} free in {SHM}" for rank in answers])
        exam.warn("shared memory", texts, "start the container with --shm-size=1g (or --ipc=host)")
    if any(0 <= rank["files"] < NEEDED_FILES for rank in answers):
        fact = by_rank([f"{rank['files']:,} at a time" for rank in answers])
        exam.warn("open files", fact, f"ulimit -n {4 * NEEDED_FILES}")
