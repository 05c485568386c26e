"""Makes the Python environment of this checkout; standard library only, called by dev.py.

Three cases. Python runs in a virtual environment: it is used as it is. Its torch fits: `.venv` is laid over it and
that torch is kept. Else: `.venv` gets the torch that fits the machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "launch" / "constraints.txt"
VENV = ROOT / ".venv"

MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 11)
MIN_PIP = (26, 0)  # pip 23, which Python 3.11 brings, takes three times as long
DISK_GB = {"cpu": 3, "default": 9}
"""Free space that an installation needs; the default torch for Linux brings the CUDA libraries."""


class SetupError(Exception):
    """The environment could not be made; the text says what to do."""


def say(text: str) -> None:
    """Print a line of our own, marked so that it stands out from the output of the commands."""
    print(f"[dev] {text}", flush=True)


def version_of(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 13, 0) for "2.13.0+cpu"."""
    return tuple(int(number) for number in re.findall(r"\d+", text.split("+")[0])[:3])


def newer_python() -> str | None:
    """Another Python on PATH that is new enough, if this one is not."""
    for minor in (14, 13, 12, 11):
        found = shutil.which(f"python3.{minor}")
        # a pyenv shim exists also for versions that cannot run
        if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return found
    return None


def version_in(python: str | Path, package: str) -> str | None:
    """Version of a package that `python` has installed, such as "2.13.0+cpu", without importing it."""
    code = f"from importlib.metadata import version; print(version('{package}'))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def torch_of(python: str | Path) -> str | None:
    """Version of its torch."""
    return version_in(python, "torch")


def fits(torch: str | None) -> bool:
    """Whether an installed torch satisfies the range in pyproject.toml."""
    return torch is not None and version_of(torch) >= MIN_TORCH


def has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver reports a GPU."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return done.returncode == 0 and "GPU" in done.stdout


def tested_torch() -> str:
    """The torch version in constraints.txt."""
    found = re.search(r"^torch==(\S+)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, f"{CONSTRAINTS} names no torch"
    return found[1]


def choose_torch(offered: list[str], *, has_gpu: bool, system: str, tested: str) -> tuple[str, str]:
    """What pip is to install, and why.

    Args:
        offered: versions that pip finds for this Python, such as "2.13.0" and "2.13.0+cpu".
        has_gpu: whether there is an NVIDIA GPU.
        system: `platform.system()`.
        tested: the version in constraints.txt.
    """
    if has_gpu:
        # three equal signs: two would also match, and prefer, a "+cpu" build of that version
        return f"torch==={tested}", "there is an NVIDIA GPU: torch with CUDA"
    if system != "Linux":
        return f"torch=={tested}", "the default torch of this system"
    cpu = [version for version in offered if version.endswith("+cpu") and fits(version)]
    if f"{tested}+cpu" in cpu:
        return f"torch=={tested}+cpu", "no NVIDIA GPU: torch for CPU"
    if cpu:
        best = max(cpu, key=version_of)
        return f"torch=={best}", f"no NVIDIA GPU: torch for CPU, at a version other than the tested {tested}"
    return (
        f"torch=={tested}",
        "no NVIDIA GPU, but pip is offered no CPU build of torch: taking the default one, which brings about 3 GB "
        "of CUDA libraries that stay unused. To avoid them stop now (Ctrl-C) and run again with --torch-index URL, "
        "the address of an index with CPU wheels (the installation page of PyTorch names it)",
    )


def run_pip(python: Path, arguments: list[str]) -> None:
    """Run pip, and turn its failure into advice."""
    # in a terminal the long wait shows its progress; in a log only errors are of use
    quiet = [] if sys.stdout.isatty() else ["-qq"]
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *quiet, *arguments]
    say("$ " + " ".join(command).replace(f"{ROOT}{os.sep}", ""))
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        free = shutil.disk_usage(ROOT).free / 2**30
        raise SetupError(
            "pip failed; its own message is above. Without a network: point pip at local wheels (PIP_FIND_LINKS=DIR). "
            f"Disk full: {free:.1f} GB are free here. A pinned version that does not exist for this Python "
            f"({platform.python_version()}): run again with --unpinned."
        )


def make_environment(groups: list[str], *, torch_index: str | None, unpinned: bool) -> Path:
    """Make or update the environment and return its Python; returns at once if nothing has changed.

    Args:
        groups: dependency groups of pyproject.toml to install, beside the project itself.
        torch_index: address of an index where pip is to look for torch too.
        unpinned: ignore constraints.txt.

    Raises:
        SetupError: with what to do.
    """
    active = sys.prefix != sys.base_prefix
    here = Path(sys.prefix) if active else VENV
    python = Path(sys.executable) if active else VENV / ("Scripts" if os.name == "nt" else "bin") / "python"
    stamp = here / f"unetdist-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]}.stamp"
    wanted = fingerprint()
    done = stamp.read_text(encoding="utf-8").split() if stamp.is_file() and python.exists() else []
    if done[:1] == [wanted] and set(groups) <= set(done[1:]) and "timm" not in groups:
        return python  # timm may have been broken since, by another torch
    began = time.monotonic()
    say(f"installing into {here}: a minute or two with a good network, once")
    if not active and not is_sound(python):
        create_venv()
    if version_of(pip_version(python)) < MIN_PIP:
        run_pip(python, ["install", "--no-compile", "--upgrade", "pip>=26"])
    packages(python, here, groups, torch_index=torch_index, unpinned=unpinned)
    if "timm" in groups:
        check_timm(python)
    stamp.write_text(
        " ".join([wanted, *sorted({*groups, *(done[1:] if done[:1] == [wanted] else [])})]), "utf-8"
    )
    say(f"installed torch {torch_of(python)} and the rest in {time.monotonic() - began:.0f} s")
    return python


def fingerprint() -> str:
    """Changes when an installation would give something else."""
    digest = hashlib.sha256(platform.python_version().encode())
    for path in (ROOT / "pyproject.toml", CONSTRAINTS):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_sound(python: Path) -> bool:
    """Whether the environment's Python starts (its base may have been removed) and has pip."""
    return python.exists() and bool(pip_version(python))


def pip_version(python: Path) -> str:
    """Version of its pip; empty if there is none."""
    code = "from importlib.metadata import version; print(version('pip'))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def create_venv() -> None:
    """Make `.venv`, over the packages of this Python where its torch fits."""
    own = torch_of(sys.executable)
    options = ["--system-site-packages"] if fits(own) else []
    if options:
        say(f"this Python has torch {own}: keeping it")
    command = [sys.executable, "-m", "venv", "--clear", *options, str(VENV)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        raise SetupError(
            f"{sys.executable} cannot make a virtual environment:\n{done.stdout}{done.stderr}"
            "On Debian and Ubuntu: `sudo apt install python3-venv`. Else take a Python from your package manager, "
            "conda or uv, and run `THAT_PYTHON launch/dev.py ...`."
        )


def packages(python: Path, here: Path, groups: list[str], *, torch_index: str | None, unpinned: bool) -> None:
    """Install torch, if none that fits is there, and the project with its dependencies."""
    index = ["--extra-index-url", torch_index] if torch_index else []
    present = torch_of(python)
    if fits(present):
        torch = f"torch==={present}"
    else:
        torch, reason = choose_torch(
            offered(python, "torch", index),
            has_gpu=has_nvidia_gpu(),
            system=platform.system(),
            tested=tested_torch(),
        )
        say(f"{reason} ({torch})")
        needed, free = DISK_GB["cpu" if "+cpu" in torch else "default"], shutil.disk_usage(here).free / 2**30
        if free < needed:
            raise SetupError(f"{here} has {free:.1f} GB free, the installation needs {needed} GB; make room.")
    pins = [
        line
        for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines()
        if not line.startswith("torch==")
    ]
    constraints = here / "unetdist-constraints.txt"
    lines = [*([] if unpinned else pins), torch]
    constraints.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if "timm" in groups:
        lines += torchvision_like_torch(python, index, constraints)
        constraints.write_text("\n".join(lines) + "\n", encoding="utf-8")
    chosen = [word for group in groups for word in ("--group", group)]
    run_pip(python, ["install", "--no-compile", *index, "-c", str(constraints), "-e", ".", *chosen])


def offered(python: Path, package: str, index: list[str]) -> list[str]:
    """All versions of a package that pip finds, such as "2.13.0" and "2.13.0+cpu"."""
    listing = [str(python), "-m", "pip", "index", "versions", package, *index]
    output = subprocess.run(listing, capture_output=True, text=True, check=False).stdout
    return re.findall(r"\d[\w.]*(?:\+\w+)?", output.partition("Available versions:")[2].split("\n")[0])


def torchvision_like_torch(python: Path, index: list[str], constraints: Path) -> list[str]:
    """A constraint for pip that makes it choose the torchvision of torch's build, for timm to import.

    pip itself compares numbers alone: for torch 2.13.0+cpu it chooses the torchvision 0.28.0 that needs CUDA. Where pip
    finds none of this build there is no constraint, and `check_timm` finds out whether another build works.
    """
    plan = [str(python), "-m", "pip", "install", "--dry-run", "-qq", "--report", "-", *index]
    plan += ["-c", str(constraints), "--group", "timm"]
    done = subprocess.run(plan, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return []  # pip tells why when it is to install them
    found = [item["metadata"] for item in json.loads(done.stdout)["install"]]
    planned = {one["name"]: one["version"] for one in found}
    torch = planned.get("torch") or torch_of(python) or ""
    torchvision = planned.get("torchvision") or version_in(python, "torchvision") or ""
    fitting = "+".join([torchvision.split("+")[0], *torch.split("+")[1:]])
    return [f"torchvision==={fitting}"] if fitting in offered(python, "torchvision", index) else []


def timm_fault(python: Path) -> str | None:
    """Why an installed timm cannot be imported, as every `accelerate` command does; None where nothing is wrong."""
    if version_in(python, "timm") is None:
        return None
    command = [str(python), "-W", "ignore", "-c", "import timm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stderr.strip().splitlines() or ["no message"])[-1] if done.returncode else None


def check_timm(python: Path) -> None:
    """Remove timm and torchvision again where they do not work."""
    reason = timm_fault(python)
    if reason is None:
        return
    torch, torchvision = torch_of(python), version_in(python, "torchvision")
    run_pip(python, ["uninstall", "-y", "timm", "torchvision"])
    raise SetupError(
        f"timm cannot be imported, because torchvision {torchvision} was not built for torch {torch} ({reason}). Both "
        "were removed again, so that everything else works. Run again with --torch-index URL, the address of the index "
        f"that this torch came from; or install the default torch ({python} -m pip install torch==="
        f"{str(torch).split('+')[0]}) and run again."
    )
