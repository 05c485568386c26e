"""Workers that end with their parent, and deaths that are told."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sharding.ingested import write
from tests.sharding.picture_folders import (
    write_folders,
)
from unetdist.errors import DataError
from unetdist.sharding import folder


@pytest.fixture
def root(tmp_path) -> Path:
    return write_folders(tmp_path / "data")


ORPHANS = """
import sys, time
from tests.sharding.test_pool import nap
from unetdist.sharding.pool import run_jobs
if __name__ == "__main__":
    run_jobs(nap, [sys.argv[1]] * 2, workers=2, done=print)
"""


def nap(folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_workers_die_with_a_killed_parent(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(ORPHANS)
    pids = tmp_path / "pids"
    pids.mkdir()
    parent = subprocess.Popen(
        [sys.executable, str(script), str(pids)],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    deadline = time.monotonic() + 60
    while len(list(pids.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [int(path.name) for path in pids.iterdir()]
    parent.kill()
    parent.wait()
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) == 2
    assert not any(map(is_running, workers))


def die(job):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_told_of(root, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "finish", die)
    with pytest.raises(DataError, match="worker process was killed.* memory .*with fewer than 2 --workers"):
        write(root, tmp_path / "out", workers=2)
