"""The wheel alone, in an environment of its own and an empty folder: README from the first command to the last."""

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import shared_data
from tests.launch.test_install import load
from unetdist.data.shapes import write_shapes

ROOT = Path(__file__).parents[2]
README = """
unetdist init
unetdist shard --images DIR --masks DIR --labels Labels.txt --val-fraction 0.2 --out shards
unetdist doctor --config my_data.yaml
unetdist train --config my_data.yaml
unetdist evaluate --model runs/my_data/best --data shards/val --json metrics.json
unetdist predict --model runs/my_data/best --input FILE_OR_DIR --out DIR --overlay
pip install "unetdist[report]"
unetdist report runs/my_data
"""
SHORT = "--trainer.max_steps 2 --trainer.global_batch_size 2 --augment.crop_size [64,64] " \
        "--optim.warmup_steps 0 --data.num_workers 0"  # fmt: skip

pytestmark = pytest.mark.slow


def run(python: Path, *words: object, cwd: Path) -> str:
    """Run a command where nothing of the checkout and of the tests' settings is seen, and return what it prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "WANDB", "VIRTUAL"))}
    env = {**kept, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "WANDB_MODE": "offline"}
    command = [str(word) for word in words]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(Path(sys.executable), sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT, cwd=folder)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def python(wheel) -> Path:
    """That of a fresh environment with the wheel."""
    folder = wheel.parent
    run(Path(sys.executable), sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-compile"]
    if "+cpu" in version("torch"):
        lines = load("install").CONSTRAINTS.read_text().splitlines()
        lines = [line for line in lines if not line.startswith("torch==")]
        (folder / "constraints.txt").write_text("\n".join([*lines, f"torch==={version('torch')}"]))
        run(python, *pip, "-c", folder / "constraints.txt", wheel, cwd=folder)
    else:  # a second copy of the CUDA libraries would take minutes
        site = run(python, python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
        Path(site, "tests.pth").write_text(sysconfig.get_path("purelib"))
        run(python, *pip, "--no-deps", wheel, cwd=folder)
    return python


def pictures(name: str, folder: Path) -> Path:
    """A folder of images, masks and Labels.txt."""
    if name == "camvid":
        return shared_data.camvid()
    if name == "isbi":
        return shared_data.isbi()
    write_shapes(folder / "shapes", count=6, seed=0, size=(64, 64))
    return folder / "shapes"


def filled_in(line: str, source: Path) -> str:
    """A line of README with the folders of the user, and few steps."""
    split = source / "val" if (source / "val").is_dir() else source
    for option, value in {"--images": split / "images", "--masks": split / "masks", "--out": "predictions"}.items():
        line = line.replace(f"{option} DIR", f"{option} {value}")
    line = line.replace("Labels.txt", str(source / "Labels.txt"))
    line = line.replace("FILE_OR_DIR", str(next((split / "images").iterdir())))
    return f"{line} {SHORT}" if re.match("unetdist (doctor|train) ", line) else line


@pytest.mark.parametrize("name", ["camvid", "isbi", "shapes"])
def test_every_command_of_the_readme_runs(python, name, tmp_path):
    source, home = pictures(name, tmp_path), tmp_path / "home"
    home.mkdir()
    for line in README.strip().splitlines():
        words = shlex.split(filled_in(line, source))
        if words[0] == "pip":
            words[:1] = [sys.executable, "-m", "pip", "--python", str(python)]
        run(python, *words, cwd=home)
    metrics = json.loads((home / "metrics.json").read_text())
    ids = np.asarray(Image.open(next((home / "predictions").glob("*_ids.png"))))
    assert 0 <= metrics["miou"] <= 1
    assert ids.shape == np.asarray(Image.open(next(source.rglob("images/*")))).shape[:2]
    assert "<html" in next((home / "runs" / "my_data").glob("*.html")).read_text(encoding="utf-8")


def test_nothing_comes_from_the_checkout(python, tmp_path):
    found = run(python, python, "-c", "import unetdist; print(unetdist.__file__)", cwd=tmp_path)
    assert Path(found.strip()).is_relative_to(python.parents[1])


def test_the_wheel_has_the_files_of_init_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    starters = {Path(name).name for name in names if name.startswith("unetdist/starter/")}
    assert starters == {"my_data.yaml", "train.sbatch", *(path.name for path in ROOT.glob("configs/accelerate/*"))}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"unetdist"}
