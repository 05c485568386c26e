"""The commands of launch/dev.py; the quickstart itself is run by hand and timed in the README."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.launch.test_install import LAUNCH, load


@pytest.fixture
def dev(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(LAUNCH))
    module = load("dev")
    monkeypatch.setattr(module, "make_environment", lambda *_, **__: Path(sys.executable))
    return module


@pytest.mark.parametrize(("gpus", "options"), [(0, ["--processes", "2"]), (1, []), (8, [])])
def test_the_quickstart_uses_the_machine(dev, monkeypatch, gpus, options):
    answer = type("Done", (), {"stdout": f"{gpus}\n"})
    monkeypatch.setattr(dev.subprocess, "run", lambda *_, **__: answer)
    assert dev.processes(Path(sys.executable)) == options


def test_a_command_is_shown_before_it_runs_and_its_failure_ends_the_work(dev, capfd):
    with pytest.raises(subprocess.CalledProcessError, match="status 3"):
        dev.run(sys.executable, "-c", "print('ran'); raise SystemExit(3)")
    shown, ran, took = [line for line in capfd.readouterr().out.splitlines() if line]
    assert shown.startswith("[dev] $ ")
    assert ran == "ran"
    assert took.endswith("exit code 3")


def test_exit_code_is_that_of_the_tests(dev, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dev.py", "test", "--no-such-option-of-pytest"])
    assert dev.main() == pytest.ExitCode.USAGE_ERROR
    assert "ended with exit code 4" in capsys.readouterr().out


def test_setup_errors_are_told_without_a_traceback(dev, monkeypatch, capsys):
    def fail(*_, **__):
        raise dev.SetupError("make room")

    monkeypatch.setattr(dev, "make_environment", fail)
    monkeypatch.setattr(sys, "argv", ["dev.py", "quickstart"])
    assert dev.main() == 1
    assert capsys.readouterr().out == "[dev] error: make room\n"


def test_options_are_refused_where_nobody_takes_them(dev, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dev.py", "quickstart", "--fast"])
    with pytest.raises(SystemExit):
        dev.main()
    assert "unknown: --fast" in capsys.readouterr().err


def test_an_old_python_is_refused_with_where_to_get_a_newer_one(dev, monkeypatch, capsys):
    monkeypatch.setattr(dev, "MIN_PYTHON", (99, 0))
    assert dev.main() == 1
    assert "Python 3.11 or later is needed" in capsys.readouterr().out


def test_set_up_needs_nothing_but_python():
    """Isolated, without site-packages: what a fresh machine has."""
    done = subprocess.run(
        [sys.executable, "-S", "-E", str(LAUNCH / "dev.py"), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout
