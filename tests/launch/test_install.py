"""The choices of launch/install.py; the installation itself is what CI does before it comes here."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, LAUNCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def install() -> ModuleType:
    return load("install")


@pytest.mark.parametrize(
    ("offered", "has_gpu", "system", "requirement"),
    [
        ("2.15.0, 2.13.0+cpu, 2.13.0", True, "Linux", "torch===2.13.0"),
        ("2.15.0, 2.13.0+cpu, 2.13.0", False, "Linux", "torch===2.13.0+cpu"),
        ("2.15.0, 2.13.0, 2.10.0+cpu", False, "Linux", "torch==2.13.0"),
        ("2.13.0", False, "Darwin", "torch==2.13.0"),
    ],
)
def test_torch_fits_the_machine(install, monkeypatch, capsys, offered, has_gpu, system, requirement):
    answer = type("Done", (), {"stdout": f"torch (2.15.0)\nAvailable versions: {offered}\n"})
    monkeypatch.setattr(install.subprocess, "run", lambda *_, **__: answer)
    monkeypatch.setattr(install, "has_nvidia_gpu", lambda: has_gpu)
    monkeypatch.setattr(install.platform, "system", lambda: system)
    monkeypatch.setattr(install, "tested_torch", lambda: "2.13.0")
    assert install.choose_torch(Path("python")) == requirement
    no_cpu_build = system == "Linux" and not has_gpu and "+cpu" not in requirement
    assert ("PIP_EXTRA_INDEX_URL=URL" in capsys.readouterr().out) is no_cpu_build


@pytest.mark.parametrize(
    ("version", "fits"), [("2.11.0", True), ("2.13.0+cpu", True), ("3.0", True), ("2.10.9+cu130", False), (None, False)]
)
def test_installed_torch_in_the_range_is_kept(install, version, fits):
    assert install.fits(version) is fits


def test_constraints_pin_a_torch_in_the_range(install):
    assert install.fits(install.tested_torch())


def test_pip_failure_says_what_to_do(install):
    with pytest.raises(install.SetupError, match=r"GB are free.*PIP_FIND_LINKS=DIR.*--unpinned.*PIP_EXTRA_INDEX_URL"):
        install.run_pip(Path(sys.executable), ["no-such-command"])


def test_python_without_venv_is_told_where_to_get_it(install, monkeypatch, tmp_path):
    broken = type("Done", (), {"returncode": 1, "stdout": "ensurepip is not available\n", "stderr": ""})
    monkeypatch.setattr(install, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(install, "version_in", lambda *_: None)
    monkeypatch.setattr(install.subprocess, "run", lambda *_, **__: broken)
    with pytest.raises(install.SetupError, match=r"(?s)ensurepip is not available.*apt install python3-venv"):
        install.create_venv()


@pytest.mark.parametrize(
    ("torch", "line"),
    [
        ("torch==2.13.0+cpu", "torchvision===0.28.0+cpu"),
        ("torch===2.13.0", "torchvision===0.28.0"),
        ("torch===2.11.1+cu130", "torchvision===0.26.1+cu130"),
    ],
)
def test_torchvision_is_of_the_version_and_build_of_torch(install, torch, line):
    assert install.torchvision_like(torch) == line


@pytest.mark.parametrize(
    ("groups", "torch", "works", "torchvision"),
    [
        (["timm"], "2.12.1+cpu", False, "0.27.1+cpu"),
        (["test"], "2.12.1+cpu", False, None),
        (["timm"], "2.12.0a0+eb65b.nv26.02", True, "0.25.0a0+1e53952"),  # of a container: no index has it
    ],
)
def test_pip_gets_one_torch_and_its_torchvision_only_for_timm(
    install, monkeypatch, tmp_path, groups, torch, works, torchvision
):
    installed = {"torch": torch, "torchvision": "0.25.0a0+1e53952"}
    monkeypatch.setattr(install, "version_in", lambda _, package: installed[package])
    monkeypatch.setattr(install, "imports_torchvision", lambda _: works)
    commands = []
    monkeypatch.setattr(install, "run_pip", lambda _, words: commands.append(words))
    install.packages(Path("python"), tmp_path, groups, unpinned=False)
    (words,) = commands
    assert words[-2:] == ["--group", *groups]
    pins = Path(words[words.index("-c") + 1]).read_text().splitlines()
    expected = [f"torch==={torch}", *([f"torchvision==={torchvision}"] if torchvision else [])]
    assert [line for line in pins if line.startswith("torch")] == expected


def test_second_run_installs_nothing(install, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    calls = []
    monkeypatch.setattr(install, "packages", lambda *_, **__: calls.append("packages"))
    options = {"unpinned": False}
    for groups in (["test"], ["test"], [], ["lint"], ["test", "lint"]):
        assert install.make_environment(groups, **options) == Path(sys.executable)
    assert calls == ["packages", "packages"]  # once for the tests, once more for lint
    for _ in range(2):  # another torch may have broken timm since
        install.make_environment(["timm"], **options)
    assert len(calls) == 4
    monkeypatch.setattr(install, "CONSTRAINTS", LAUNCH / "dev.py")  # as if it had changed
    install.make_environment(["test"], **options)
    assert len(calls) == 5
