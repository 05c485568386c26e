"""The two ways to read a shard give the same; what is wrong with it is told."""

import os

import numpy as np
import pytest

from tests.data.small_shards import write_small_shards
from tests.faulty_server import serve
from unetdist.data.open_shard import LocalShard, RangedShard, check_size, read_rows
from unetdist.errors import DataError
from unetdist.storage.folders import open_folder


@pytest.fixture
def shard(tmp_path):
    return write_small_shards(tmp_path, [3]).shards[0]


def rows_of(folder, shard):
    return lambda: read_rows(open_folder(folder), shard)


@pytest.fixture(params=["file", "http"])
def ranged(request, tmp_path, shard):
    if request.param == "file":
        yield RangedShard(open_folder(f"file://{tmp_path}"), shard, rows_of(tmp_path, shard))
    else:
        with serve(tmp_path) as server:
            yield RangedShard(open_folder(server.url), shard, rows_of(tmp_path, shard))


def test_requests_give_what_the_file_gives(tmp_path, shard, ranged):
    local = LocalShard(tmp_path / shard.name, shard, rows_of(tmp_path, shard))
    for row in range(3):
        assert ranged.sample(row) == local.sample(row)
        assert ranged.key(row) == local.key(row) == f"scene.0/frame {row}"


def test_an_open_file_outlives_its_name(tmp_path, shard):
    path = tmp_path / shard.name
    local = LocalShard(path, shard, rows_of(tmp_path, shard))
    expected = local.sample(1)
    assert local.is_at(path)
    path.rename(tmp_path / "aside")
    path.write_bytes(b"another file")
    assert not local.is_at(path)
    path.unlink()
    assert not local.is_at(path)
    assert local.sample(1) == expected


def test_a_lost_shard_on_a_server(tmp_path, shard):
    folder = open_folder(f"file://{tmp_path}")
    opened = RangedShard(folder, shard, rows_of(tmp_path, shard))
    (tmp_path / shard.name).unlink()
    with pytest.raises(DataError, match=r"^file://.*000000.tar: is not there; copy the data set again"):
        opened.sample(0)


def test_a_shard_that_is_cut_short_meanwhile(tmp_path, ranged, shard):
    os.truncate(tmp_path / shard.name, 600)
    assert ranged.key(0) == "scene.0/frame 0"
    message = r"000000.tar: \d+ bytes wanted at \d+, \d+ found: the index does not belong to the shard; copy"
    for row in range(3):
        with pytest.raises(DataError, match=message):
            ranged.sample(row)
    with pytest.raises(DataError, match="000000.tar: no member at the offset of sample 2; copy"):
        ranged.key(2)


def test_a_file_that_may_not_be_read(tmp_path, shard, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DataError, match=r"000000.tar: cannot be opened \(Permission denied\); copy"):
        LocalShard(tmp_path / shard.name, shard, rows_of(tmp_path, shard))


def test_sizes_of_local_files(tmp_path, shard):
    check_size(tmp_path / shard.name, shard)
    os.truncate(tmp_path / shard.name, 100)
    with pytest.raises(DataError, match=rf"has 100 bytes, the manifest says {shard.num_bytes}; copy"):
        check_size(tmp_path / shard.name, shard)


@pytest.mark.parametrize("column", range(5))
@pytest.mark.parametrize("value", [-1, -(2**63), 2**62, 2**63 - 1])
def test_an_index_asks_for_nothing_outside_of_its_shard(tmp_path, shard, column, value):
    rows = np.load(f"{tmp_path / shard.name}.idx")
    rows[0, column] = value
    shard = LocalShard(tmp_path / shard.name, shard, lambda: rows)
    with pytest.raises(DataError, match="the index does not belong|no member at the offset of sample 0"):
        shard.sample(0) if column else shard.key(0)
