"""A torchvision that was built for another torch: `accelerate` imports it by way of timm, and fails."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.launch.test_install import load
from tests.synthetic import settings_of
from unetdist.cli import settings
from unetdist.commands.doctor.environment import check_software
from unetdist.commands.doctor.examination import Examination
from unetdist.distributed.collectives import World
from unetdist.errors import ConfigError
from unetdist.model.timm_encoder import TimmEncoder, install_line
from unetdist.train.config import Config

ROOT = Path(__file__).parents[2]
FAULT = "operator torchvision::nms does not exist"
PACKAGES = {"timm": ("1.0.31", "import torchvision"), "torchvision": ("0.28.0", f"raise RuntimeError('{FAULT}')")}


@pytest.fixture(autouse=True)
def broken_torchvision(tmp_path, monkeypatch):
    site = tmp_path / "site"
    for name, (number, code) in PACKAGES.items():
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text(code)
        info = site / f"{name}-{number}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(site))
    yield
    for name in PACKAGES:
        sys.modules.pop(name, None)


def check_words(text: str) -> None:
    """Fault, versions, and both ways out: the torchvision that launch/dev.py would install, or none."""
    assert FAULT in text
    assert f"torchvision 0.28.0, torch {version('torch')}" in text
    assert f"`pip install timm {load('install').torchvision_like(version('torch'))}`" in text
    assert ("PIP_EXTRA_INDEX_URL" in text) is ("+" in version("torch"))
    assert "`pip uninstall timm torchvision`" in text


def doctor_on_timm():
    config = settings.from_mapping(Config, settings_of(Path("train"), None, Path("runs")))
    exam = Examination(config=config, world=World())
    check_software(exam)
    return [finding for finding in exam.findings if finding.what == "timm"]


def test_the_doctor_names_it():
    (found,) = doctor_on_timm()
    assert found.level == "problem"
    check_words(found.fact)


def test_a_network_of_timm_names_it():
    with pytest.raises(ConfigError, match=r"model\.encoder \(resnet18\)") as caught:
        TimmEncoder("resnet18", in_channels=3, pretrained=False)
    check_words(str(caught.value))


def test_a_sound_environment_has_nothing_to_tell(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", sys)
    assert doctor_on_timm() == []


def test_where_torchvision_works_it_stays(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", sys)
    assert install_line() == "`pip install timm`"


@pytest.mark.slow
@pytest.mark.parametrize(("module", "breaks"), [("launch", False), ("accelerate_cli", True)])
def test_of_accelerate_only_its_command_needs_timm(tmp_path, module, breaks):
    """So the project's commands start, and can start processes, where `accelerate launch` cannot."""
    command = [sys.executable, "-c", f"import accelerate.commands.{module}, unetdist.train.build"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}, capture_output=True)
    assert (FAULT in done.stderr.decode()) is breaks, done.stderr
    assert done.returncode == breaks
