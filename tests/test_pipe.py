"""The output of a command, whole and checked."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from unetdist import pipe, retries
from unetdist.errors import SourceError
from unetdist.retries import UnreachableError


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.0)


def test_what_a_command_prints():
    assert b"".join(pipe.pieces("printf 'a\\0b'; sleep 0.1; printf cd")) == b"a\0bcd"
    assert b"".join(pipe.pieces("printf abcd", start=3)) == b"d"
    assert b"".join(pipe.pieces("true")) == b""


def test_what_breaks_off_is_continued(tmp_path):
    """The first attempt prints half and fails."""
    tried = tmp_path / "tried"
    command = f"printf half; if [ ! -e {tried} ]; then touch {tried}; exit 1; fi; printf more"
    assert b"".join(pipe.pieces(command)) == b"halfmore"


def test_a_command_that_fails_for_a_while(tmp_path):
    """As one does without a network."""
    tried = tmp_path / "tried"
    command = f"printf x >> {tried}; [ $(wc -c < {tried}) -gt 6 ] || exit 255; printf data"
    assert b"".join(pipe.pieces(command)) == b"data"


def test_a_command_that_keeps_failing(monkeypatch):
    monkeypatch.setattr(retries, "RETRY_S", 0.2)
    message = (
        r"^echo why >&2; exit 3: could not be read in \d+ attempts within .* \(last: CommandError: ended with "
        r"exit code 3 \(why\)\); .* data\.retry_s of a run sets how long to wait"
    )
    with pytest.raises(UnreachableError, match=message):
        list(pipe.pieces("echo why >&2; exit 3"))


@pytest.mark.parametrize(("command", "code"), [("no-such-command x", 127), ("/dev/null", 126)])
def test_a_command_that_does_not_exist(tmp_path, command, code):
    tried = tmp_path / "tried"
    message = rf"{command}: the command ended with exit code {code} \(.*\); install it, or correct it\."
    with pytest.raises(SourceError, match=message):
        list(pipe.pieces(f"printf x >> {tried}; {command}"))
    assert tried.read_text() == "x"


def test_a_command_that_stalls(monkeypatch):
    monkeypatch.setattr(retries, "STALL_S", 0.05)
    monkeypatch.setattr(retries, "RETRY_S", 0.0)
    with pytest.raises(
        UnreachableError, match=r"could not be read .*CommandError: printed nothing for 0.05 s"
    ):
        list(pipe.pieces("printf half; sleep 60"))


def test_a_command_that_does_not_end(monkeypatch):
    monkeypatch.setattr(retries, "STALL_S", 0.5)
    monkeypatch.setattr(retries, "RETRY_S", 0.0)
    with pytest.raises(UnreachableError, match="CommandError: did not end within 0.5 s of its last byte"):
        list(pipe.pieces("printf x; exec 1>&-; sleep 60"))


def test_what_a_command_started_ends_with_the_reader():
    output = pipe.pieces("sleep 600 & echo $!; wait")
    pid = int(next(output))
    assert is_running(pid)
    output.close()
    until_it_ended(pid)


SCRIPT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from unetdist import pipe
output = pipe.pieces("sleep 600 & echo $!; wait")
print(int(next(output)), flush=True)
time.sleep(600)
"""


def test_what_a_command_started_ends_with_a_killed_process():
    root = str(Path(__file__).parents[1])
    with subprocess.Popen([sys.executable, "-c", SCRIPT, root], stdout=subprocess.PIPE, text=True) as process:
        pid = int(process.stdout.readline())
        assert is_running(pid)
        process.kill()
    until_it_ended(pid)


def is_running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def until_it_ended(pid):
    deadline = time.monotonic() + 60
    while is_running(pid):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_passwords_are_not_told(monkeypatch):
    monkeypatch.setattr(retries, "RETRY_S", 0.0)
    with pytest.raises(UnreachableError, match=r"^false https://\*\*\*@host/x: could not .*exit code 1\)"):
        list(pipe.pieces("false https://me:secret@host/x"))
