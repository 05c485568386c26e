"""Software and launch: versions and extras, then the processes, their devices and their memory."""

import importlib.metadata
import importlib.util
import platform
from contextlib import suppress
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

SHOWN = ("torch", "accelerate", "webdataset", "numpy", "opencv-python-headless", "wandb")
DRIVER = Path("/proc/driver/nvidia/version")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")

# Free bytes for each process before it loads anything.
NEEDED_MEMORY = 1e9


def check_software(exam: Examination) -> None:
    """Collective. Versions, the GPU driver, and the packages of the dashboards."""
    if (answers := exam.ask("versions", software_facts)) is None:
        return
    differ = len({rank["versions"] for rank in answers}) > 1
    text = by_rank([rank["versions"] for rank in answers])
    exam.note("warning" if differ else "ok", "versions", text, "install the same on all machines: results may differ")
    if unmet := by_rank([rank["unmet"] for rank in answers]):
        exam.note("problem", "packages", f"needed: {unmet}", "pip install -e . in the checkout")
    if timm := by_rank([rank["timm"] for rank in answers]):
        exam.note("problem", "timm", timm)
    if gpu := by_rank([rank["gpu"] for rank in answers]):
        exam.note(
            "warning", "GPU driver", gpu, "install a torch for its CUDA version (pytorch.org), or update the driver"
        )
    cfg = exam.config.tracking
    if cfg.dashboards and exam.ask("dashboards", lambda: check_installed(cfg)):
        exam.note("ok", "dashboards", ", ".join(cfg.dashboards))


def software_facts() -> dict[str, str | None]:
    """Versions of this program and its packages, and what is wrong with them (None: nothing)."""
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
        "unmet": ", ".join(unmet()) or None,
        "timm": timm,
        "gpu": gpu_fault(),
    }


def unmet() -> list[str]:
    """Requirements of this program that the installed packages do not meet; none if it is not installed."""
    found = []
    with suppress(importlib.metadata.PackageNotFoundError):
        for requirement in map(Requirement, importlib.metadata.requires("unetdist") or []):
            version = version_of(requirement.name)
            is_needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if is_needed and (version == "missing" or not requirement.specifier.contains(version, prereleases=True)):
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
    if torch.cuda.is_available() or not driver.exists():
        return None
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU only"
    return f"there is an NVIDIA driver, but torch ({built}) cannot use it"


def check_launch(exam: Examination) -> None:
    """Collective. Processes, devices, cores, memory, and whether the processes reach each other."""
    if (answers := exam.ask("processes", lambda: process_facts(exam))) is None:
        return
    nodes: dict[str, list[int]] = {}
    for number, rank in enumerate(answers):
        nodes.setdefault(rank["node"], []).append(number)
    where = ", ".join(f"{node} (rank {', '.join(map(str, ranks))})" for node, ranks in nodes.items())
    exam.note("ok", "processes", f"{len(answers)} on {len(nodes)} machine(s): {where}")
    judge_devices(exam, answers)
    judge_cores(exam, answers[0])  # machines of a run are alike, and rank 0 does the most
    judge_memory(exam, answers)
    device = exam.world.device
    if len(answers) > 1 and exam.ask(
        "all-reduce", lambda: float(all_reduce_sum(torch.ones((), device=device))), is_collective=True
    ):
        exam.note("ok", "all-reduce", "the processes reach each other")


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
        "local": exam.world.local_world_size,
        "free": free_bytes(),
        "total": psutil.virtual_memory().total,
    }


def usable_cores(quota: Path = CPU_QUOTA) -> float:
    """Cores that this process may keep busy: in a container with a quota, fewer than it sees."""
    try:
        limit, period = quota.read_text().split()
        return min(num_cores(), int(limit) / int(period))
    except (OSError, ValueError):  # no container, or "max"
        return num_cores()


def judge_devices(exam: Examination, answers: list[dict[str, Any]]) -> None:
    """Note unequal devices, and those that other programs use."""
    text = by_rank([rank["device"] for rank in answers])
    differ = len({rank["device"] for rank in answers}) > 1
    exam.note("warning" if differ else "ok", "devices", text, "the slowest sets the pace; use equal ones")
    used = [rank["device_used"] for rank in answers]
    if busy := by_rank([f"{100 * part:.0f} % of its memory is taken" if part > 0.1 else None for part in used]):
        exam.note("warning", "device memory", busy, "see in nvidia-smi what runs there")


def judge_cores(exam: Examination, rank: dict[str, Any]) -> None:
    """Note too few cores, or too many threads on them."""
    cores, local = rank["cores"], rank["local"]
    fact = f"{local} process(es) of {rank['threads']} threads on {cores:.3g} cores"
    # Threads that share a core wait for each other in every layer.
    are_too_many = rank["is_cpu"] and rank["threads"] * local > cores
    remedy = f"export OMP_NUM_THREADS={max(1, int(cores) // local)}"
    if cores < local:
        remedy = "start fewer processes, or give the job more cores"
    exam.note("warning" if are_too_many or cores < local else "ok", "cores", fact, remedy)


def judge_memory(exam: Examination, answers: list[dict[str, Any]]) -> None:
    """Note too little memory for the processes of a machine."""
    for rank in {rank["node"]: rank for rank in reversed(answers)}.values():
        fact = f"{size(rank['free'])} of {size(rank['total'])} free on {rank['node']}"
        is_short = rank["free"] < NEEDED_MEMORY * rank["local"]
        remedy = f"end other programs there, or start fewer than {rank['local']} process(es)"
        exam.note("problem" if is_short else "ok", "memory", fact, remedy)
