"""The output of a command, whole and checked."""

import pytest

from unetdist import pipe, retries
from unetdist.errors import DataError


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


def test_a_command_that_fails():
    message = r"^echo why >&2; exit 3: the command ended with exit code 3 \(why\) in each of 3 attempts; run it in a"
    with pytest.raises(DataError, match=message):
        list(pipe.pieces("echo why >&2; exit 3"))


def test_a_command_that_stalls(monkeypatch):
    monkeypatch.setattr(retries, "STALL_S", 0.05)
    with pytest.raises(
        DataError, match=r"the command printed nothing for 0.05 s in each of 3 attempts; run it"
    ):
        list(pipe.pieces("printf half; sleep 60"))


def test_a_command_that_does_not_end(monkeypatch):
    monkeypatch.setattr(retries, "STALL_S", 0.5)
    monkeypatch.setattr(pipe, "ATTEMPTS", 1)
    with pytest.raises(DataError, match="did not end within 0.5 s of its last byte in each of 1 attempts"):
        list(pipe.pieces("printf x; exec 1>&-; sleep 60"))


def test_passwords_are_not_told():
    with pytest.raises(
        DataError, match=r"^false https://\*\*\*@host/x: the command ended with exit code 1 in"
    ):
        list(pipe.pieces("false https://me:secret@host/x"))
