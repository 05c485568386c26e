"""The same bytes whatever happens on the way: workers, kills, interruptions, full disks."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sharding.ingested import contents, samples_of, write
from tests.sharding.picture_folders import palette
from unetdist.data import shards
from unetdist.data.decode import decode_mask
from unetdist.data.manifest import Manifest
from unetdist.errors import DataError
from unetdist.sharding import folder
from unetdist.sharding import shard_job as records
from unetdist.sharding.sources import from_list
from unetdist.sharding.split import LayoutOptions


def test_the_manifest_says_what_the_shards_hold(root, tmp_path):
    write(root, tmp_path / "out")
    manifest = Manifest.load(tmp_path / "out")
    masks = [decode_mask(mask) for _, mask, _ in samples_of(tmp_path / "out").values()]
    assert manifest.class_pixels == tuple(sum((mask == index).sum() for mask in masks) for index in range(3))
    assert manifest.ignored_pixels == sum((mask == 255).sum() for mask in masks)
    assert manifest.palette_records == tuple(palette(root).to_records())
    for shard in manifest.shards:
        data = (tmp_path / "out" / shard.name).read_bytes()
        assert (shard.num_bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_bytes_do_not_depend_on_workers_or_place(root, tmp_path):
    write(root, tmp_path / "one")
    write(root, tmp_path / "two", workers=2)
    root.rename(tmp_path / "moved")
    write(tmp_path / "moved", tmp_path / "three")
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "three")


def test_samples_are_shuffled_unless_their_order_is_to_be_kept(root, tmp_path):
    write(root, tmp_path / "shuffled")
    write(root, tmp_path / "kept", layout=LayoutOptions(keep_order=True))
    kept, shuffled = list(samples_of(tmp_path / "kept")), list(samples_of(tmp_path / "shuffled"))
    assert kept == sorted(kept)
    assert shuffled != kept
    assert sorted(shuffled) == kept


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from tests.sharding import ingested
from unetdist.sharding import shard_job
make, wait = shard_job.WriteJob.make, int(sys.argv[3])
def kill_at(job):
    if job.number == wait:
        with shard_job.open_shard(job.folder.path(job.name)) as writer:  # in the middle of a shard
            writer._file.write(b"half")
            writer._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    return make(job)
shard_job.WriteJob.make = kill_at
ingested.write(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_run_goes_on_to_the_same_bytes(root, tmp_path):
    write(root, tmp_path / "whole")
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED_RUN, str(root), str(out), "2"]
    killed = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list(out.glob("*.tar"))) == 2
    assert list(out.glob(".*.partial"))
    with pytest.raises(DataError, match=r"no manifest\.json here"):
        Manifest.load(out)
    assert "2 of them kept" in write(root, out)
    assert contents(out) == contents(tmp_path / "whole")
    assert not list(out.glob(".*.partial"))


def test_an_interruption_says_what_stays_and_how_to_go_on(root, tmp_path, monkeypatch, caplog):
    def interrupted(job):
        if job.number == 2:
            raise KeyboardInterrupt
        return records.finish(job)

    monkeypatch.setattr(folder.logger, "propagate", True)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(root, tmp_path / "out")
    assert f"stopped: 2 of 4 shards are complete in {tmp_path / 'out'}; run the same command again" in caplog.text
    assert "2 of them kept" in write(root, tmp_path / "out")


def test_ctrl_c_in_a_terminal_is_told_once_and_not_by_each_worker(tmp_path):
    options = ["--shapes", "2000", "--samples-per-shard", "10", "--workers", "2", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "unetdist", "shard", *options],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while not list(tmp_path.glob("*.tar")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = told.splitlines()
    assert (len(lines), lines[-1]) == (3, "interrupted")
    assert "200 shards are complete" in lines[1]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, r"the disk is full: 2 of 4 shards are complete; free some space and run the same command again"),
        (errno.EACCES, r"cannot be written \(.*denied.*\): 2 of 4 shards are complete; fix that and run"),
    ],
)
def test_a_disk_that_does_not_take_more_keeps_what_is_complete(root, tmp_path, monkeypatch, number, message):
    def full(self, data):
        if self._name == "000002.tar":
            raise OSError(number, os.strerror(number))
        self._file.write(data)
        self._sha256.update(data)
        self._offset += len(data)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(shards.ShardWriter, "_write", full)
        with pytest.raises(DataError, match=message):
            write(root, out)
    assert sorted(path.name for path in out.glob("*.tar*")) == [
        f"00000{n}.tar{e}" for n in (0, 1) for e in ("", ".idx")
    ]
    assert not list(out.glob(".*.partial"))
    assert "2 of them kept" in write(root, out)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_disk_that_is_really_full(root, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount")
    try:
        with pytest.raises(DataError, match="the disk is full: [123] of 4 shards are complete"):
            write(root, small / "out")
        subprocess.run(["mount", "-o", "remount,size=10m", str(small)], check=True)
        assert "of them kept" in write(root, small / "out")
        write(root, tmp_path / "whole")
        assert contents(small / "out") == contents(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_source_without_a_whole_sample_is_refused_with_all_that_is_wrong(root, tmp_path, skip_bad):
    (root / "list.txt").write_text("a.jpg b.png\n")
    source = from_list(root / "list.txt")
    message = (
        "none of 0 samples is left.*run it without --skip-bad to see why"
        if skip_bad
        else r"2 problems in 0 samples(.|\n)*a\.jpg: listed in .*list\.txt, line 1"
    )
    with pytest.raises(DataError, match=message):
        write(root, tmp_path / "out", source=source, skip_bad=skip_bad)


ORPHANS = """
import sys, time
from tests.sharding.test_folder import nap
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
