"""`launch/dev.py timm` in a fresh environment, with pip and timm themselves; needs a package index."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.launch.test_install import load

ROOT = Path(__file__).parents[2]

TORCHVISION = {
    "__init__.py": "from torchvision import datasets, ops, transforms\n",
    "ops/__init__.py": "",
    "ops/misc.py": "from torch import nn\nclass FrozenBatchNorm2d(nn.Module): pass\n",
    "datasets/__init__.py": "class _Any: pass\ndef __getattr__(name): return _Any\n",
    "transforms/__init__.py": "class _Any: pass\ndef __getattr__(name): return _Any\n",
    "transforms/functional.py": "from enum import Enum\nInterpolationMode = Enum('InterpolationMode', "
    "'NEAREST BILINEAR BICUBIC BOX HAMMING LANCZOS')\n",
}
"""What timm imports of it; nothing of that depends on the build of torch."""


@pytest.fixture
def python(tmp_path) -> Path:
    """That of a new environment, which sees the packages of this one."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    Path(site, "tests.pth").write_text(sysconfig.get_path("purelib"))
    return python


def dev_timm(python: Path, find_links: Path) -> subprocess.CompletedProcess[str]:
    links = f"{find_links} {os.environ.get('PIP_FIND_LINKS', '')}".strip()
    env = {**os.environ, "PIP_FIND_LINKS": links, "PIP_CONSTRAINT": os.devnull}
    command = [python, "launch/dev.py", "timm"]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)


def check_that_accelerate_starts(python: Path) -> None:
    command = [python, "-m", "accelerate.commands.accelerate_cli", "launch", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def version_in(python: Path, package: str) -> str:
    command = [python, "-c", f"from importlib.metadata import version; print(version('{package}'))"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


@pytest.mark.long
def test_with_the_index_of_this_machine_everything_works_afterwards(python, tmp_path):
    done = dev_timm(python, tmp_path)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    check_that_accelerate_starts(python)
    assert version_in(python, "torch") == version("torch")
    if done.returncode == 1:  # the index has no torchvision of this build
        assert "PIP_EXTRA_INDEX_URL=URL" in done.stdout
        assert version_in(python, "timm") == version_in(python, "torchvision") == ""


@pytest.mark.long
def test_the_torchvision_of_torchs_build_is_chosen_and_timm_trains(python, tmp_path):
    number = load("install").torchvision_like(f"torch==={version('torch')}").partition("===")[2]
    with zipfile.ZipFile(tmp_path / f"torchvision-{number}-py3-none-any.whl", "w") as wheel:
        for name, text in TORCHVISION.items():
            wheel.writestr(f"torchvision/{name}", text)
        info = f"torchvision-{number}.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torchvision\nVersion: {number}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    done = dev_timm(python, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert version_in(python, "torchvision") == number
    assert version_in(python, "torch") == version("torch")
    check_that_accelerate_starts(python)
    tests = [python, "-m", "pytest", "tests/model/test_timm_encoder.py", "-k", "the_library_itself"]
    trained = subprocess.run(tests, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert "2 passed" in trained.stdout, trained.stdout
