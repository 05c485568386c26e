"""Versions and extras, the processes with their devices and cores, and the folder of the checkpoints."""

import importlib.util
import platform
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.filesize import decimal as size

import unetdist
from unetdist.commands.doctor.examination import Examination, Level, by_rank
from unetdist.distributed.collectives import all_reduce_sum
from unetdist.distributed.hardware import cpu_model, num_cores
from unetdist.errors import ConfigError, UnetdistError
from unetdist.model.timm_encoder import import_timm, version_of
from unetdist.storage.folders import Folder, open_folder
from unetdist.tracking.dashboard import check_installed

SHOWN = ("torch", "accelerate", "webdataset", "numpy", "opencv-python-headless", "wandb")


def check_software(exam: Examination) -> None:
    """Collective. Versions, timm, the GPU driver, and the packages of the dashboards."""
    if (answers := exam.ask("versions", software_facts)) is None:
        return
    versions = [rank["versions"] for rank in answers]
    level: Level = "warning" if len(set(versions)) > 1 else "ok"
    exam.note(level, "versions", by_rank(versions), "install the same on all machines: results may differ")
    if timm := by_rank([rank["timm"] for rank in answers]):
        exam.note("problem", "timm", timm)
    if gpu := by_rank([rank["gpu"] for rank in answers]):
        remedy = "install a torch for its CUDA version (pytorch.org), or update the driver"
        exam.note("warning", "GPU driver", gpu, remedy)
    cfg = exam.config.tracking
    if cfg.dashboards and exam.ask("dashboards", lambda: check_installed(cfg)):
        exam.note("ok", "dashboards", ", ".join(cfg.dashboards))


def software_facts() -> dict[str, str | None]:
    """Versions of this program and its packages, and what is wrong with timm and the driver (None: nothing)."""
    timm = None
    # A torchvision of another torch breaks timm, and with it `accelerate launch`, which ends in a traceback.
    if importlib.util.find_spec("timm") is not None:
        try:
            import_timm()
        except ConfigError as error:
            timm = str(error)
    shown = ", ".join(f"{name} {version_of(name)}" for name in SHOWN)
    versions = f"unetdist {unetdist.__version__}, Python {platform.python_version()}, {shown}"
    return {"versions": versions, "timm": timm, "gpu": gpu_fault()}


def gpu_fault(driver: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Why torch cannot use the NVIDIA GPUs of this machine; None if it can, or there are none."""
    if torch.cuda.is_available() or not driver.exists():
        return None
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU only"
    return f"there is an NVIDIA driver, but torch ({built}) cannot use it"


def check_launch(exam: Examination) -> None:
    """Collective. Processes, devices, cores, and whether the processes reach each other."""
    if (answers := exam.ask("processes", lambda: process_facts(exam))) is None:
        return
    nodes: dict[str, list[str]] = {}
    for number, rank in enumerate(answers):
        nodes.setdefault(rank["node"], []).append(str(number))
    where = ", ".join(f"{node} (rank {', '.join(ranks)})" for node, ranks in nodes.items())
    exam.note("ok", "processes", f"{len(answers)} on {len(nodes)} machine(s): {where}")
    devices = [rank["device"] for rank in answers]
    level: Level = "warning" if len(set(devices)) > 1 else "ok"
    exam.note(level, "devices", by_rank(devices), "the slowest sets the pace; use equal ones")
    judge_cores(exam, answers[0])  # machines of a run are alike, and rank 0 does the most
    one = torch.ones((), device=exam.world.device)
    if len(answers) > 1 and exam.ask("all-reduce", lambda: float(all_reduce_sum(one)), is_collective=True):
        exam.note("ok", "all-reduce", "the processes reach each other")


def process_facts(exam: Examination) -> dict[str, Any]:
    """Where this process runs, and what it may use."""
    device, text = exam.world.device, cpu_model()
    if device.type == "cuda":
        text = f"{torch.cuda.get_device_name(device)}, {size(torch.cuda.mem_get_info(device)[1])}"
    return {
        "node": platform.node(),
        "device": text,
        "is_cpu": device.type == "cpu",
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "local": exam.world.local_world_size,
    }


def judge_cores(exam: Examination, rank: dict[str, Any]) -> None:
    """Note too few cores, or too many threads on them."""
    cores, local = rank["cores"], rank["local"]
    fact = f"{local} process(es) of {rank['threads']} threads on {cores} cores"
    # Threads that share a core wait for each other in every layer.
    are_too_many = rank["is_cpu"] and rank["threads"] * local > cores
    remedy = f"export OMP_NUM_THREADS={max(1, cores // local)}, or start fewer processes"
    exam.note("warning" if are_too_many or cores < local else "ok", "cores", fact, remedy)


def check_folders(exam: Examination) -> None:
    """Collective. Rank 0 writes a file where checkpoints will be, all ranks read it, and rank 0 removes it."""
    tried = f".doctor-{secrets.token_hex(8)}"
    try:
        if answers := exam.ask("checkpoints", lambda: _write(exam, tried) if exam.world.is_main else None):
            where, name = answers[0]
            judge_shared(exam, where, exam.ask("checkpoints", lambda: _is_seen(where, name)) or [])
    finally:
        if exam.world.is_main:
            with suppress(OSError, UnetdistError):  # it may never have been made
                checkpoint_folder(exam).remove(tried)


def checkpoint_folder(exam: Examination) -> Folder:
    """Where checkpoints will be written, or its nearest parent that exists."""
    folder = exam.config.checkpoint.folder_of(exam.run_dir)
    if not folder.is_local:
        return folder
    path = folder.path("").absolute()
    while not (path.exists() or path.is_symlink()) and path != path.parent:
        path = path.parent
    return open_folder(path)


def _write(exam: Examination, name: str) -> tuple[str, str]:
    folder = checkpoint_folder(exam)
    try:
        folder.write(name, name.encode())
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written to ({error.strerror or error}); give --runs_dir or --checkpoint.folder a "
            "folder that you may write to, with free space."
        ) from None
    return str(folder), name


def _is_seen(where: str, name: str) -> bool:
    with suppress(OSError, UnetdistError):
        return open_folder(where).read(name) == name.encode()
    return False


def judge_shared(exam: Examination, where: str, is_seen: list[bool]) -> None:
    """Note ranks that do not see what rank 0 wrote."""
    blind = [str(rank) for rank, sees in enumerate(is_seen) if not sees]
    if blind:
        remedy = "give --checkpoint.folder, or --runs_dir, a place that all machines share"
        fact = f"rank {', '.join(blind)} does not see what rank 0 writes to {where}"
        exam.note("problem", "checkpoints", fact, remedy)
    else:
        exam.note("ok", "checkpoints", f"{where} can be written to, and is seen by {len(is_seen)} process(es)")
