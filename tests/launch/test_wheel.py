"""The wheel alone, in an environment of its own and an empty folder: README from the first command to the last."""

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image

from tests import shared_data
from tests.launch.test_install import load
from unetdist.data.shapes import write_shapes

ROOT = Path(__file__).parents[2]
SHORT = "--model.widths [4,8] --trainer.max_steps 2 --trainer.global_batch_size 2 --augment.crop_size [64,64] " \
        "--optim.warmup_steps 0 --data.num_workers 0"  # fmt: skip

pytestmark = pytest.mark.slow


def run(python: Path, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command where nothing of the checkout and of the tests' settings is seen."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "WANDB", "VIRTUAL"))}
    env = {**kept, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "WANDB_MODE": "offline"}
    command = [str(word) for word in words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=280)


def output_of(python: Path, *words: object, cwd: Path) -> str:
    done = run(python, *words, cwd=cwd)
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    output_of(
        Path(sys.executable), sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT, cwd=folder
    )
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def python(wheel) -> Path:
    """That of a fresh environment with the wheel."""
    folder = wheel.parent
    output_of(Path(sys.executable), sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    pip = [*pip_of(python), "install", "-q", "--no-compile"]
    if "+cpu" in version("torch"):
        lines = load("install").CONSTRAINTS.read_text().splitlines()
        lines = [line for line in lines if not line.startswith("torch==")]
        (folder / "constraints.txt").write_text("\n".join([*lines, f"torch==={version('torch')}"]))
        output_of(python, *pip, "-c", folder / "constraints.txt", wheel, cwd=folder)
    else:  # a second copy of the CUDA libraries would take minutes
        site = output_of(
            python, python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
        ).strip()
        Path(site, "tests.pth").write_text(sysconfig.get_path("purelib"))
        output_of(python, *pip, "--no-deps", wheel, cwd=folder)
    return python


def pip_of(python: Path) -> list[str]:
    """The newest pip at hand, for another environment."""
    return [sys.executable, "-m", "pip", "--python", str(python)]


def pictures(name: str, folder: Path) -> Path:
    """A folder of twelve images, their masks and Labels.txt: real ones, or drawn ones where these are absent."""
    source = shared_data.ROOT / name
    if not source.is_dir():
        write_shapes(folder, count=12, seed=0, size=(64, 64))
        return folder
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
        for file in sorted(source.rglob(f"{kind}/*"))[:12]:
            (folder / kind / file.name).symlink_to(file)
    (folder / "Labels.txt").symlink_to(source / "Labels.txt")
    return folder


def commands_of_the_readme(source: Path) -> Iterator[str]:
    """Its commands for one's own images, with the folders of the user, and few steps."""
    section = re.search(r"## Train on your own images\n(.*?)\n##+ ", (ROOT / "README.md").read_text(), re.S)[1]
    file = min((source / "images").iterdir())
    for line in "".join(re.findall(r"```bash\n(.*?)```", section, re.S)).splitlines():
        line = line.split("#")[0].replace("Labels.txt", f"{source}/Labels.txt").replace("FILE_OR_DIR", str(file))
        for option, value in {"images": f"{source}/images", "masks": f"{source}/masks", "out": "predictions"}.items():
            line = line.replace(f"--{option} DIR", f"--{option} {value}")
        yield f"{line} {SHORT}" if re.match("unetdist (doctor|train) ", line) else line


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


@pytest.mark.parametrize("name", ["camvid", "isbi2012"])
def test_every_command_of_the_readme_runs_as_it_stands(python, name, tmp_path):
    source, home = pictures(name, tmp_path / "mine"), tmp_path / "home"
    home.mkdir()
    for line in commands_of_the_readme(source):
        words = shlex.split(line)
        done = run(python, *(pip_of(python) if words[0] == "pip" else words[:1]), *words[1:], cwd=home)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    assert 0 <= json.loads((home / "metrics.json").read_text())["miou"] <= 1
    (ids,), (overlay,) = ((home / "predictions").glob(f"*_{kind}.png") for kind in ("ids", "overlay"))
    width, height = size_of(next((source / "images").iterdir()))
    assert size_of(ids) == (width, height)
    assert size_of(overlay)[1] > height  # the legend
    assert "<html" in (home / "runs" / "my_data" / "report.html").read_text(encoding="utf-8")


def test_nothing_comes_from_the_checkout(python, tmp_path):
    found = output_of(python, python, "-c", "import unetdist; print(unetdist.__file__)", cwd=tmp_path)
    assert Path(found.strip()).is_relative_to(python.parents[1])


def test_the_wheel_has_the_files_of_init_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    starters = {Path(name).name for name in names if name.startswith("unetdist/starter/")}
    assert starters == {"my_data.yaml", "train.sbatch", *(path.name for path in ROOT.glob("configs/accelerate/*"))}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"unetdist"}
