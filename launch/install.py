"""Creates the Python environment of this checkout for dev.py, with the standard library only.

If a virtual environment is active, it is used. If this Python has a torch in the supported range, `.venv` is created
over its packages and keeps that torch. Otherwise `.venv` gets the torch that fits the machine.
"""

from __future__ import annotations

import hashlib
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
# pip 23, which comes with Python 3.11, takes three times as long
MIN_PIP = (26, 0)

INDEX = "PIP_EXTRA_INDEX_URL=URL, an index with such wheels (the installation page of PyTorch names them)"


class SetupError(Exception):
    """The environment could not be created; the message says what to do."""


def say(text: str) -> None:
    """Print a line with a mark that sets it apart from the output of commands."""
    print(f"[dev] {text}", flush=True)


def version_of(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 13, 0) for "2.13.0+cpu"."""
    return tuple(int(number) for number in re.findall(r"\d+", text.split("+")[0])[:3])


def version_in(python: str | Path, package: str) -> str | None:
    """Version of an installed package of `python`, such as "2.13.0+cpu"; None if there is none, or no such Python."""
    code = f"from importlib.metadata import version; print(version('{package}'))"
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def fits(torch: str | None) -> bool:
    """Whether this version of torch is in the range of pyproject.toml."""
    return torch is not None and version_of(torch) >= MIN_TORCH


def has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver reports a GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    done = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return done.returncode == 0 and "GPU" in done.stdout


def tested_torch() -> str:
    """The torch version in constraints.txt."""
    return str(re.findall(r"^torch==(\S+)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)[0])


def choose_torch(python: Path) -> str:
    """The requirement for the tested torch, in the build that fits this machine."""
    tested = tested_torch()
    if has_nvidia_gpu():
        say(f"there is an NVIDIA GPU: torch {tested} with CUDA")
        # three equal signs: two would also match, and prefer, a "+cpu" build of that version
        return f"torch==={tested}"
    listing = [str(python), "-m", "pip", "index", "versions", "torch"]
    offered = subprocess.run(listing, capture_output=True, text=True, check=False).stdout
    if f" {tested}+cpu" in offered:
        say(f"no NVIDIA GPU: torch {tested} for CPU")
        return f"torch==={tested}+cpu"
    if platform.system() == "Linux":
        say(
            f"no NVIDIA GPU, but pip is offered no torch {tested}+cpu: taking the default build, which brings about 3 "
            f"GB of CUDA libraries that stay unused. To avoid them stop now (Ctrl-C) and run again with {INDEX}"
        )
    return f"torch=={tested}"


def run_pip(python: Path, arguments: list[str]) -> None:
    """Run pip; a failure becomes advice."""
    # a terminal shows the progress of the long wait; in a log only errors are useful
    quiet = [] if sys.stdout.isatty() else ["-qq"]
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *quiet, *arguments]
    say("$ " + " ".join(command).replace(f"{ROOT}{os.sep}", ""))
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        raise SetupError(
            f"pip failed; its own message is above. Disk full: {shutil.disk_usage(ROOT).free / 2**30:.1f} GB are free "
            "here. Without a network: point pip at local wheels (PIP_FIND_LINKS=DIR). A pinned version that does not "
            f"exist for this Python ({platform.python_version()}): run again with --unpinned. A torchvision that does "
            f"not exist for this torch: run again with {INDEX}."
        )


def make_environment(groups: list[str], *, unpinned: bool) -> Path:
    """Create or update the environment and return its Python; takes no time if nothing has changed.

    `groups` are dependency groups of pyproject.toml; `unpinned` ignores constraints.txt.
    """
    active = sys.prefix != sys.base_prefix
    here = Path(sys.prefix) if active else VENV
    python = Path(sys.executable) if active else VENV / ("Scripts" if os.name == "nt" else "bin") / "python"
    stamp = here / "unetdist.stamp"
    inputs = [f"{ROOT} {platform.python_version()}".encode(), CONSTRAINTS.read_bytes()]
    wanted = hashlib.sha256(b"".join([*inputs, (ROOT / "pyproject.toml").read_bytes()])).hexdigest()
    done = stamp.read_text(encoding="utf-8").split() if stamp.is_file() and python.exists() else []
    is_current = done[:1] == [wanted]
    # timm is always installed again: another torch may have broken it since
    if is_current and set(groups) <= set(done[1:]) and "timm" not in groups:
        return python
    began = time.monotonic()
    say(f"installing into {here}: a minute or two with a good network, once")
    if not active and not version_in(python, "pip"):  # also where the base of its Python was removed
        create_venv()
    if version_of(version_in(python, "pip") or "") < MIN_PIP:
        run_pip(python, ["install", "--no-compile", "--upgrade", "pip>=26"])
    packages(python, here, groups, unpinned=unpinned)
    stamp.write_text(" ".join([wanted, *sorted({*groups, *(done[1:] if is_current else [])})]), "utf-8")
    say(f"installed torch {version_in(python, 'torch')} and the rest in {time.monotonic() - began:.0f} s")
    return python


def create_venv() -> None:
    """Create `.venv`, over the packages of this Python if its torch is in the supported range."""
    own = version_in(sys.executable, "torch")
    options = ["--system-site-packages"] if fits(own) else []
    if options:
        say(f"keeping torch {own} of this Python")
    command = [sys.executable, "-m", "venv", "--clear", *options, str(VENV)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        raise SetupError(
            f"{sys.executable} cannot create a virtual environment:\n{done.stdout}{done.stderr}"
            "On Debian and Ubuntu: `sudo apt install python3-venv`. Elsewhere get Python from your package manager, "
            "conda or uv, and run `THAT_PYTHON launch/dev.py ...`."
        )


def packages(python: Path, here: Path, groups: list[str], *, unpinned: bool) -> None:
    """Install the project with its dependencies, and torch if there is none in the supported range."""
    present = version_in(python, "torch")
    torch = f"torch==={present}" if fits(present) else choose_torch(python)
    pins = [] if unpinned else CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    lines = [*(line for line in pins if not line.startswith("torch==")), torch]
    if "timm" in groups:
        own = version_in(python, "torchvision") if fits(present) and imports_torchvision(python) else None
        lines.append(f"torchvision==={own}" if own else torchvision_like(torch))
    constraints = here / "unetdist-constraints.txt"
    constraints.write_text("\n".join(lines) + "\n", encoding="utf-8")
    chosen = [word for group in groups for word in ("--group", group)]
    run_pip(python, ["install", "--no-compile", "-c", str(constraints), "-e", ".", *chosen])


def imports_torchvision(python: Path) -> bool:
    """Whether there is a torchvision that fits the installed torch; no index has those of containers and nightlies."""
    return subprocess.run([str(python), "-c", "import torchvision"], capture_output=True, check=False).returncode == 0


def torchvision_like(torch: str) -> str:
    """The torchvision of torch's version and build, which timm imports."""
    # torch 2.N.P goes with torchvision 0.(N + 15).P (README of pytorch/vision). pip itself compares only numbers: for
    # torch 2.13.0+cpu it chooses the torchvision 0.28.0 that needs CUDA, with which `import timm` fails, and so does
    # every `accelerate` command, because Accelerate imports timm.
    _, minor, patch = version_of(torch)
    return "+".join([f"torchvision===0.{minor + 15}.{patch}", *torch.split("+")[1:]])
