"""A run goes on only where the same one was stopped."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from tests.sharding.ingested import contents, write
from tests.sharding.picture_folders import (
    color_mask,
    mask_array,
    write_folders,
)
from unetdist.errors import DataError
from unetdist.sharding import plan
from unetdist.sharding.plan import WorkPartition
from unetdist.sharding.split import LayoutOptions
from unetdist.storage.folders import open_folder


@pytest.fixture
def root(tmp_path) -> Path:
    return write_folders(tmp_path / "data")


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
        with pytest.raises(
            DataError, match=r"out: contains train-0\.tar, which this command did not write; choose"
        ):
            write(root, out, overwrite=overwrite)
    assert (out / "train-0.tar").read_bytes() == b"precious"


def test_two_runs_cannot_write_to_one_folder(root, tmp_path):
    with (
        plan.hold(open_folder(tmp_path / "out"), WorkPartition(), kind=plan.WRITE),
        pytest.raises(DataError, match="another process is writing to this folder; wait"),
    ):
        write(root, tmp_path / "out")


@pytest.mark.parametrize(
    ("first", "second"),
    [(WorkPartition(0, 2), WorkPartition(2, 3)), (WorkPartition(2, 3), WorkPartition(0, 2))],
)
def test_runs_of_different_sizes_cannot_write_to_one_folder_at_once(root, tmp_path, first, second):
    out = open_folder(tmp_path / "out")
    message = (
        rf"out: a run of {first.world_size} processes is writing to this folder \(its process {first.rank} is at "
        rf"work\), and this one has {second.world_size}; wait for it, or stop it.*need the same --world-size"
    )
    with plan.hold(out, first, kind=plan.WRITE):
        for _ in range(2):
            with pytest.raises(DataError, match=message):
                write(root, tmp_path / "out", partition=second)
        with plan.hold(out, WorkPartition(1, first.world_size), kind=plan.WRITE):
            pass
    assert (
        write(root, tmp_path / "out", partition=second) is None
    )  # the lock files of the first are still there
    with plan.hold(out, second, kind=plan.WRITE), pytest.raises(DataError, match="wait for it, or stop it"):
        write(root, tmp_path / "out", partition=first)


def test_a_place_is_held_where_only_writers_may_lock_alone(tmp_path, monkeypatch):
    flock = fcntl.flock

    def flock_of_nfs(descriptor, operation):
        may_write = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        if operation & fcntl.LOCK_EX and not may_write:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_of_nfs)
    out = open_folder(tmp_path / "out")
    for other in (WorkPartition(1, 2), WorkPartition(0, 3)):
        with (
            plan.hold(out, WorkPartition(1, 2), kind=plan.WRITE),
            pytest.raises(DataError, match="wait for it, or stop it"),
            plan.hold(out, other, kind=plan.WRITE),
        ):
            pass
