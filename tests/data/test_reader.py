import dataclasses
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.data.small_shards import numbered_sample, write_small_shards
from unetdist.data import open_shard as open_shard_module
from unetdist.data import reader as reader_module
from unetdist.data.decode import decode_image, decode_mask
from unetdist.data.manifest import Manifest
from unetdist.data.reader import ShardReader
from unetdist.data.shards import index_path, open_shard, save_index
from unetdist.errors import DataError

SIZES = [3, 0, 4, 1]


@pytest.fixture
def folder(tmp_path):
    write_small_shards(tmp_path, SIZES)
    return tmp_path


def open_reader(folder):
    return ShardReader(folder, Manifest.load(folder))


def assert_reads(reader, sample_id):
    image, mask = reader.read(sample_id)
    expected_image, expected_mask = numbered_sample(sample_id)
    np.testing.assert_array_equal(decode_image(image, 3), expected_image)
    np.testing.assert_array_equal(decode_mask(mask), expected_mask)


def test_every_sample_in_any_order(folder):
    reader = open_reader(folder)
    for sample_id in [7, 0, 3, 2, 6, 1, 5, 4, 0]:
        assert_reads(reader, sample_id)


def test_keys_and_sources(folder):
    reader = open_reader(folder)
    assert [reader.key(number) for number in range(8)] == [
        *("scene.0/frame 0", "scene.0/frame 1", "scene.0/frame 2"),
        *("scene.2/frame 3", "scene.2/frame 4", "scene.2/frame 5", "scene.2/frame 6", "scene.3/frame 7"),
    ]
    assert reader.source(4) == f"{folder}/000002.tar/scene.2/frame 4"


def test_long_keys(tmp_path):
    key = "deep/" * 30 + "x" * 120 + ".y é"
    with open_shard(tmp_path / "000000.tar") as writer:
        writer.add(key, b"image", "png", b"mask", {})
    manifest = write_small_shards(tmp_path / "other", [1])
    manifest = dataclasses.replace(manifest, shards=(writer.shard,))
    assert ShardReader(tmp_path, manifest).key(0) == key
    assert ShardReader(tmp_path, manifest).read(0) == (b"image", b"mask")


def test_survives_pickle_and_fork(folder):
    reader = open_reader(folder)
    assert_reads(reader, 0)
    assert_reads(pickle.loads(pickle.dumps(reader)), 5)
    children = [
        multiprocessing.get_context("fork").Process(target=assert_reads, args=(reader, number))
        for number in range(4)
    ]
    for child in children:
        child.start()
        assert_reads(reader, 6)
    for child in children:
        child.join()
        assert child.exitcode == 0


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_descriptors_are_few_and_closed_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(reader_module, "MAX_OPEN_SHARDS", 3)
    write_small_shards(tmp_path, [1] * 12)
    before = open_files()
    reader = open_reader(tmp_path)
    for number in range(12):
        assert_reads(reader, number)
    assert open_files() <= before + 2 * 3  # The tar and its index.
    del reader
    assert open_files() == before


def test_lost_shard(folder):
    (folder / "000002.tar").unlink()
    reader = open_reader(folder)
    assert_reads(reader, 0)
    message = r"000002.tar: cannot be opened \(No such file or directory\); copy the data set again, or run"
    with pytest.raises(DataError, match=message):
        reader.read(3)
    with pytest.raises(DataError, match=message):
        reader.check()
    reader.check(rank=1, world_size=2)
    assert reader.source(4) == f"{folder / '000002.tar'}, sample 1"


def test_shard_of_another_size(folder):
    with open(folder / "000000.tar", "ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"000000.tar: has 1\d+ bytes, the manifest says 1\d+; copy"):
        open_reader(folder).read(0)


def test_lost_index(folder):
    index_path(folder / "000000.tar").unlink()
    with pytest.raises(DataError, match=r"000000.tar.idx: cannot be read \(.*No such file.*\); copy"):
        open_reader(folder).read(0)


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_damaged_index(folder, content):
    path = index_path(folder / "000000.tar")
    path.write_bytes(path.read_bytes()[:-8] if content is None else content)
    with pytest.raises(DataError, match=r"000000.tar.idx: cannot be read \(.+\); copy"):
        open_reader(folder).read(0)


def test_index_of_another_shard(folder):
    index_path(folder / "000000.tar").write_bytes(index_path(folder / "000002.tar").read_bytes())
    with pytest.raises(DataError, match=r"000000.tar.idx: is int64 \(4, 6\), expected int64 \(3, 6\); copy"):
        open_reader(folder).read(0)


def test_index_that_points_beyond_the_shard(folder):
    rows = np.load(index_path(folder / "000000.tar"))
    rows[2, 0] = rows[2, 3] = 10**6
    save_index(folder / "000000.tar", rows)
    reader = open_reader(folder)
    with pytest.raises(
        DataError, match=r"000000.tar: \d+ bytes wanted at 1000000, 0 found: the index does not"
    ):
        reader.read(2)
    with pytest.raises(DataError, match=r"000000.tar: no member at the offset of sample 2; copy"):
        reader.key(2)


def test_a_disk_that_fails(folder, monkeypatch):
    reader = open_reader(folder)
    reader.read(0)

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(open_shard_module.os, "pread", fail)
    with pytest.raises(DataError, match=r"000000.tar: cannot be read \(Input/output error\); copy"):
        reader.read(0)
