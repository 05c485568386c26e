"""A run goes on only where the same one was stopped."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.sharding.ingested import contents, write
from tests.sharding.picture_folders import color_mask, mask_array, write_folders
from unetdist.data.manifest import Manifest
from unetdist.errors import ConfigError, DataError
from unetdist.sharding import folder, plan
from unetdist.sharding.plan import WorkPartition, find_partition
from unetdist.sharding.split import LayoutOptions
from unetdist.storage.folders import open_folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": (8, 6)}, r"resize was None, is \[8, 6\]"),
        ({"layout": LayoutOptions(samples_per_shard=4)}, "samples_per_shard was 5, is 4"),
        ({"unknown_colors": "ignore"}, "unknown_colors was error, is ignore"),
    ],
)
def test_other_options_are_refused_unless_overwriting(root, tmp_path, options, message):
    write(root, tmp_path / "out")
    with pytest.raises(DataError, match=message + ".*--overwrite to replace it, another --out"):
        write(root, tmp_path / "out", **options)
    write(root, tmp_path / "out", overwrite=True, **options)
    write(root, tmp_path / "fresh", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


@pytest.mark.parametrize("change", ["labels", "fewer", "renamed", "contents"])
def test_another_source_is_refused_unless_overwriting(root, tmp_path, change):
    write(root, tmp_path / "out")
    message = {
        "labels": r"\(labels changed\)",
        "fewer": "num_samples was 20, is 19",
        "renamed": r"\(samples changed",
        "contents": r"\(contents of the source files changed\)",
    }[change]
    if change == "labels":
        (root / "Labels.txt").write_text((root / "Labels.txt").read_text().replace("tree", "bush"))
    elif change == "contents":
        (root / "masks/day0/00.png").write_bytes(color_mask(mask_array(77)))
    else:
        for name in ("images/day0/00.jpg", "masks/day0/00.png"):
            path = root / name
            path.unlink() if change == "fewer" else path.rename(path.with_stem("99"))
    with pytest.raises(DataError, match=message):
        write(root, tmp_path / "out")
    write(root, tmp_path / "out", overwrite=True)
    write(root, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_folder_with_shards_of_others_is_refused(root, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "train-0.tar").write_bytes(b"precious")
    for overwrite in (False, True):
        with pytest.raises(DataError, match=r"out: contains train-0\.tar, which this command did not write; choose"):
            write(root, out, overwrite=overwrite)
    assert (out / "train-0.tar").read_bytes() == b"precious"


def test_two_runs_cannot_write_to_one_folder(root, tmp_path):
    with (
        plan.hold(open_folder(tmp_path / "out"), WorkPartition(), kind=plan.WRITE),
        pytest.raises(DataError, match="another process is writing to this folder; wait"),
    ):
        write(root, tmp_path / "out")


def test_a_place_is_held_where_only_writers_may_lock_alone(tmp_path, monkeypatch):
    flock = fcntl.flock

    def flock_of_nfs(descriptor, operation):
        may_write = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        if operation & fcntl.LOCK_EX and not may_write:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_of_nfs)
    out = open_folder(tmp_path / "out")
    with (
        plan.hold(out, WorkPartition(1, 2), kind=plan.WRITE),
        pytest.raises(DataError, match="wait for it, or stop it"),
        plan.hold(out, WorkPartition(1, 2), kind=plan.WRITE),
    ):
        pass


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_tasks_in_any_order_give_the_bytes_of_one_process(root, tmp_path, whole, world_size):
    out = tmp_path / "out"
    for rank in (1, *range(2, world_size)):
        assert write(root, out, partition=WorkPartition(rank, world_size)) is None
        with pytest.raises(DataError, match=r"no manifest\.json here"):
            Manifest.load(out)
    assert "20 samples in 4 shards" in write(root, out, partition=WorkPartition(0, world_size))
    assert contents(out) == whole
    assert "20 samples in 4 shards" in write(root, out, partition=WorkPartition(1, world_size))
    assert contents(out) == whole


def test_a_task_that_is_not_last_says_so(root, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(folder.logger, "propagate", True)
    caplog.set_level("INFO")
    write(root, tmp_path / "out", partition=WorkPartition(1, 3))
    assert "the shards of task 1 are done, 1 of 4 are complete; the task that finishes last writes" in caplog.text


def test_all_problems_of_all_tasks_are_told_by_the_last(root, tmp_path, whole):
    (root / "images/day0/00.jpg").write_bytes(b"no image")
    (root / "images/day1/01.jpg").write_bytes(b"none either")
    (root / "masks/day0/02.png").write_bytes(b"no mask")
    for rank in (0, 2):
        assert write(root, tmp_path / "out", partition=WorkPartition(rank, 3)) is None
    with pytest.raises(DataError, match="3 problems in 20 samples") as caught:
        write(root, tmp_path / "out", partition=WorkPartition(1, 3))
    assert all(f"{name}.jpg" in str(caught.value) for name in ("day0/00", "day1/01", "day0/02"))
    write_folders(root)
    for rank in (0, 1, 2):
        account = write(root, tmp_path / "out", partition=WorkPartition(rank, 3))
    assert "20 samples" in account
    assert contents(tmp_path / "out").keys() == whole.keys()


def test_problems_of_the_source_are_told_by_rank_0_and_nothing_is_written(root, tmp_path):
    (root / "masks/day0/04.png").unlink()
    assert write(root, tmp_path / "out", partition=WorkPartition(1, 2)) is None
    with pytest.raises(DataError, match="1 problem in 19 samples"):
        write(root, tmp_path / "out", partition=WorkPartition(0, 2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["000001.tar", "000001.tar.idx"])
@pytest.mark.parametrize("is_lost", [True, False])
def test_a_record_of_what_was_lost_or_cut_is_not_added_up(root, tmp_path, whole, name, is_lost):
    out = tmp_path / "out"
    write(root, out)
    (out / name).unlink() if is_lost else (out / name).write_bytes((out / name).read_bytes()[:-100])
    assert write(root, out, partition=WorkPartition(0, 2)) is None
    assert "20 samples" in write(root, out, partition=WorkPartition(1, 2))
    assert contents(out) == whole


def test_a_launch_has_a_manifest_although_a_shard_was_made_anew_after_rank_0_ended(root, tmp_path, whole):
    out = tmp_path / "out"
    write(root, out)
    damaged = (out / "000001.tar").read_bytes()
    (out / "000001.tar").write_bytes(bytes([damaged[0] ^ 1]) + damaged[1:])
    assert "20 samples" in write(root, out, partition=WorkPartition(0, 2, is_launched=True))
    assert "20 samples" in write(root, out, partition=WorkPartition(1, 2, is_launched=True))
    assert contents(out) == whole


def test_who_may_write_beside_whom(root, tmp_path):
    out = open_folder(tmp_path / "out")
    message = "another process is writing to this folder; wait.*--rank R --world-size N"
    with plan.hold(out, WorkPartition(0, 2), kind=plan.WRITE):
        with plan.hold(out, WorkPartition(1, 2), kind=plan.WRITE):
            pass
        for other in (WorkPartition(0, 2), WorkPartition()):
            with pytest.raises(DataError, match=message), plan.hold(out, other, kind=plan.WRITE):
                pass
    with (
        plan.hold(out, WorkPartition(), kind=plan.WRITE),
        pytest.raises(DataError, match=message),
        plan.hold(out, WorkPartition(1, 2), kind=plan.WRITE),
    ):
        pass


def test_other_options_replace_shards_one_by_one(root, tmp_path):
    out = tmp_path / "out"
    write(root, out)
    write(root, tmp_path / "fresh", resize=(8, 6))
    assert write(root, out, partition=WorkPartition(0, 2), resize=(8, 6), overwrite=True) is None
    assert not (out / "manifest.json").exists()
    assert write(root, out, partition=WorkPartition(1, 2), resize=(8, 6), overwrite=True)
    assert contents(out) == contents(tmp_path / "fresh")


def test_partial_files_of_other_tasks_stay(root, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for number in (0, 1):
        (out / f".00000{number}.tar.99.partial").touch()
    write(root, out, partition=WorkPartition(0, 2))
    assert [path.name for path in out.glob(".*.partial")] == [".000001.tar.99.partial"]


SCRIPT = Path(__file__).parents[2] / "launch" / "shard_dataset.py"


def test_a_launch_of_three_processes_one_of_which_was_killed_before(root, tmp_path, whole):
    command = [sys.executable, SCRIPT, "--images", root / "images", "--masks", root / "masks", "--labels"]
    command += [root / "Labels.txt", "--ignore", "void", "--samples-per-shard", 5, "--out", tmp_path / "out"]
    command = [str(word) for word in [*command, "--workers", 1]]
    environment = os.environ | {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}
    first = subprocess.Popen(command, env=environment | {"RANK": "0"}, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "out" / ".ingest" / "000000.json").is_file() and first.poll() is None:
        pass
    first.kill()
    first.communicate()
    ranks = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(3)
    ]
    told = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0]
    assert "20 samples in 4 shards" in "".join(told)
    assert contents(tmp_path / "out") == whole


ARRAY = {"SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_STEP": "2"}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, WorkPartition()),
        ({"RANK": "0", "WORLD_SIZE": "1"}, WorkPartition()),
        ({"RANK": "2", "WORLD_SIZE": "3"}, WorkPartition(2, 3, is_launched=True)),
        (ARRAY | {"SLURM_ARRAY_TASK_ID": "8"}, WorkPartition(2, 3)),
        ({"SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_ID": "8"}, WorkPartition()),
        (ARRAY | {"SLURM_ARRAY_TASK_ID": "6", "RANK": "1", "WORLD_SIZE": "2"}, WorkPartition(3, 6)),
    ],
)
def test_the_place_is_found_in_the_environment(env, expected):
    assert find_partition(env) == expected
    assert find_partition(env, rank=1, world_size=4) == WorkPartition(1, 4)


def test_places_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="--rank and --world-size go together; give both, or neither"):
        find_partition({}, rank=1)
    with pytest.raises(ConfigError, match=r"rank \(3\) must be from 0 to world_size - 1 \(2\); give each"):
        find_partition({}, rank=3, world_size=3)
    for task in ("10", "2"):
        with pytest.raises(ConfigError, match=r"rank \(-?\d\) must be from 0 to .* --array=0-N"):
            find_partition(ARRAY | {"SLURM_ARRAY_TASK_ID": task})


def test_two_tasks_that_finish_at_once_write_the_same(root, tmp_path, whole):
    for rank in (0, 1):
        write(root, tmp_path / "out", partition=WorkPartition(rank, 2))
    accounts = []
    tasks = [
        threading.Thread(
            target=lambda rank: accounts.append(write(root, tmp_path / "out", partition=WorkPartition(rank, 2))),
            args=[rank],
        )
        for rank in (0, 1)
    ]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(60)
    assert len(accounts) == 2
    assert all("20 samples in 4 shards" in account for account in accounts)
    assert contents(tmp_path / "out") == whole
