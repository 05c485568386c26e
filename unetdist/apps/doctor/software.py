"""Versions of what the run is made of."""

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

import unetdist
from unetdist.apps.doctor.case import Case
from unetdist.apps.doctor.examination import Check
from unetdist.apps.doctor.findings import Finding, by_rank, ok, problem, warning
from unetdist.errors import ConfigError
from unetdist.model.timm_encoder import import_timm

GROUP = "software"
SHOWN = ("torch", "accelerate", "webdataset", "numpy", "opencv-python-headless", "wandb")
DRIVER = Path("/proc/driver/nvidia/version")
QUERY = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def versions(_: Case) -> dict[str, Any]:
    """Of Python, this program and its packages, and which of them are too old or missing."""
    return {
        "text": f"unetdist {unetdist.__version__}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version_of(name)}" for name in SHOWN),
        "unmet": unmet(),
    }


def unmet() -> list[str]:
    """Requirements of this program that the installed packages do not satisfy; none where it is not installed."""
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
    """Of an installed package, or `missing`."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def judge_versions(_: Case, ranks: list[dict[str, Any]]) -> Iterator[Finding]:
    """The same on all ranks, and none too old."""
    text = by_rank([rank["text"] for rank in ranks])
    if len({rank["text"] for rank in ranks}) > 1:
        yield warning("versions", text, "install the same on all machines: their results may differ")
    else:
        yield ok("versions", text)
    if any(rank["unmet"] for rank in ranks):
        missing = by_rank([", ".join(rank["unmet"]) or None for rank in ranks])
        yield problem("packages", f"needed: {missing}", "pip install -e . in the checkout")


def timm_fault(_: Case) -> str | None:
    """Why timm cannot be imported; None where it can be, or is not installed."""
    if importlib.util.find_spec("timm") is None:
        return None
    try:
        import_timm()
    except ConfigError as error:
        return str(error)
    return None


def judge_timm(_: Case, ranks: list[str | None]) -> Iterator[Finding]:
    """Whether an installed timm can be imported; where it cannot, `accelerate launch` ends with a traceback."""
    if any(ranks):
        yield problem("timm", by_rank(ranks))


def gpu_software(_: Case) -> dict[str, Any]:
    """Driver, CUDA and NCCL, as far as there are any."""
    is_usable = torch.cuda.is_available()
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if is_usable else ""  # type: ignore[no-untyped-call]
    return {
        "is_usable": is_usable,
        "driver": _driver(),
        "built_for": torch.version.cuda or "",
        "nccl": nccl,
        "arch": is_usable and _arch(),
    }


def _driver() -> str:
    """Version of the NVIDIA driver; empty without one."""
    if shutil.which(QUERY[0]) is None:
        return "of unknown version" if DRIVER.exists() else ""
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.split("\n")[0].strip()


def _arch() -> str:
    """Of this GPU where torch has no code for it; else nothing."""
    major, minor = torch.cuda.get_device_capability()
    known = torch.cuda.get_arch_list()
    fits = any(name.startswith((f"sm_{major}", f"compute_{major}")) for name in known)
    return "" if fits or not known else f"sm_{major}{minor}"


def judge_gpu_software(_: Case, ranks: list[dict[str, Any]]) -> Iterator[Finding]:
    """Whether torch can use the GPUs that there are."""
    for rank in ranks:
        if rank["driver"] and not rank["is_usable"]:
            if rank["built_for"]:
                why = f"torch is built for CUDA {rank['built_for']}, and cannot use it"
                remedy = "update the driver, or see that CUDA_VISIBLE_DEVICES does not hide the GPUs"
            else:
                why, remedy = "this torch is built for the CPU alone", "install torch for CUDA (pytorch.org)"
            yield warning("GPU driver", f"NVIDIA driver {rank['driver']}, but {why}", remedy)
            return
        if rank["arch"]:
            yield problem("GPU driver", f"this torch has no code for {rank['arch']}", "install a newer torch")
            return
    texts = [
        f"driver {rank['driver']}, CUDA {rank['built_for']}, NCCL {rank['nccl']}"
        for rank in ranks
        if rank["is_usable"]
    ]
    if texts:
        yield ok("GPU driver", by_rank(texts))


CHECKS = (
    Check(group=GROUP, what="versions", measure=versions, judge=judge_versions),
    Check(group=GROUP, what="timm", measure=timm_fault, judge=judge_timm),
    Check(group=GROUP, what="GPU driver", measure=gpu_software, judge=judge_gpu_software),
)
