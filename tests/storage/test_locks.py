import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from unetdist.storage.files import HeldError, hold_lock

HOLDER = """
import sys, time
from pathlib import Path
from unetdist.storage.files import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "lock").touch()
    return tmp_path / "lock"


def test_the_error_names_the_process_that_holds_it(file):
    with hold_lock(file), pytest.raises(HeldError) as told, hold_lock(file):
        pass
    assert re.fullmatch(rf"process {os.getpid()} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d", str(told.value))
    with hold_lock(file):
        pass


def test_a_killed_holder_holds_nothing_and_one_that_ends_is_awaited(file):
    with subprocess.Popen([sys.executable, "-c", HOLDER, file], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        told = []

        def kill(holder):
            told.append(holder)
            process.send_signal(signal.SIGKILL)

        with hold_lock(file, wait_s=20, tell=kill):
            pass
    assert [holder.split(" on ")[0] for holder in told] == [f"process {process.pid}"]


def test_a_forked_process_holds_nothing_of_its_parent(file):
    with hold_lock(file):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with hold_lock(file, wait_s=20):  # until the child has run so far
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_shared_holders_keep_out_only_one_that_wants_it_alone(tmp_path):
    with hold_lock(tmp_path, is_shared=True), hold_lock(tmp_path, is_shared=True):
        began = time.monotonic()
        with pytest.raises(HeldError, match="another process"), hold_lock(tmp_path, wait_s=0.2):
            pass
        assert time.monotonic() - began > 0.2


def test_without_locks_in_the_file_system_the_user_keeps_processes_apart(file, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold_lock(file), hold_lock(file):
        pass
