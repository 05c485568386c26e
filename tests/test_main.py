"""The command `unetdist`: one word finds each command, also from a script of launch/."""

import subprocess
import sys
from pathlib import Path

import pytest

from unetdist import __main__ as program
from unetdist import __version__
from unetdist.cli.commands import COMMANDS, SCRIPTS, extra, typed
from unetdist.errors import ConfigError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_every_command_is_listed(words, capsys):
    assert program.run(words) == 0
    shown = capsys.readouterr().out
    assert [name for name in COMMANDS if f"\n  {name} " not in shown] == []
    assert max(map(len, shown.splitlines())) <= 80


def test_a_misspelt_command_gets_the_right_name():
    with pytest.raises(ConfigError, match=r"'trian'; did you mean 'train'\?"):
        program.run(["trian"])


def test_python_m_and_the_version():
    done = subprocess.run([sys.executable, "-m", "unetdist", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"unetdist {__version__}\n"


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "init"])
def test_a_script_of_launch_is_the_command(command, monkeypatch, capsys):
    script = ROOT / "launch" / f"{SCRIPTS.get(command, command)}.py"
    asked = []
    monkeypatch.setattr(program, "run", lambda words: asked.append(words))
    monkeypatch.setattr(program, "leave_on_interrupt", lambda: None)  # it would last
    monkeypatch.setattr(sys, "argv", [str(script), "--name", "x"])
    with pytest.raises(SystemExit):
        exec(compile(script.read_text(), str(script), "exec"), {"__name__": "__main__"})
    assert asked == [[command, "--name", "x"]]


def test_messages_name_the_command_that_was_typed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/env/bin/unetdist", "shard"])
    assert (typed("train"), typed("shard")) == ("unetdist train", "unetdist shard")
    monkeypatch.setattr(sys, "argv", ["launch/train.py"])
    assert typed("train") == "accelerate launch launch/train.py"
    assert typed("shard") == "python launch/shard_dataset.py"
    assert extra("report") == 'pip install "unetdist[report]"'
