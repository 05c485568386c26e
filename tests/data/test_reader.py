import dataclasses
import gc
import multiprocessing
import pickle
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.data.small_shards import numbered_sample, write_small_shards
from tests.faulty_server import serve
from unetdist.data import open_shard as open_shard_module
from unetdist.data import reader as reader_module
from unetdist.data.cache import CacheFullError, ShardCache
from unetdist.data.decode import decode_image, decode_mask
from unetdist.data.manifest import Manifest, Shard
from unetdist.data.open_shard import LocalShard, RangedShard
from unetdist.data.reader import ShardReader
from unetdist.data.shards import index_path, open_shard, save_index
from unetdist.errors import DataError
from unetdist.storage import remote
from unetdist.storage.folders import open_folder
from unetdist.storage.remote import UnreachableError

SIZES = [3, 0, 4, 1]


@pytest.fixture
def folder(tmp_path):
    write_small_shards(tmp_path, SIZES)
    return tmp_path


def open_reader(folder):
    return ShardReader(folder, Manifest.load(folder))


def without_index_hashes(manifest):
    """As of a data set whose manifest does not tell them: what is in an index is then seen when it is used."""
    shards = tuple(dataclasses.replace(shard, index_sha256="") for shard in manifest.shards)
    return dataclasses.replace(manifest, shards=shards)


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
        multiprocessing.get_context("fork").Process(target=assert_reads, args=(reader, number)) for number in range(4)
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
    gc.collect()  # what the tests before have left
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
    with pytest.raises(DataError, match=r"000000.tar.idx: is damaged \(.+\); copy"):
        ShardReader(folder, without_index_hashes(Manifest.load(folder))).read(0)


def test_index_of_another_shard(folder):
    index_path(folder / "000000.tar").write_bytes(index_path(folder / "000002.tar").read_bytes())
    with pytest.raises(DataError, match=r"000000.tar.idx: is int64 \(4, 6\), expected int64 \(3, 6\); copy"):
        ShardReader(folder, without_index_hashes(Manifest.load(folder))).read(0)


def test_index_that_points_beyond_the_shard(folder):
    rows = np.load(index_path(folder / "000000.tar"))
    rows[2, 0] = rows[2, 3] = 10**6
    save_index(folder / "000000.tar", rows)
    reader = ShardReader(folder, without_index_hashes(Manifest.load(folder)))
    with pytest.raises(DataError, match=r"000000.tar: \d+ bytes wanted at 1000000, 0 found: the index does not"):
        reader.read(2)
    with pytest.raises(DataError, match=r"000000.tar: no member at the offset of sample 2; copy"):
        reader.key(2)


def test_an_index_that_the_manifest_does_not_list(folder):
    """The same tar may have been indexed again, with other masks."""
    rows = np.load(index_path(folder / "000000.tar"))
    rows[:, -1] ^= 1
    save_index(folder / "000000.tar", rows)
    with pytest.raises(DataError, match=r"000000.tar.idx: is not the index that the manifest lists; copy"):
        open_reader(folder).read(0)


def test_a_disk_that_fails(folder, monkeypatch):
    reader = open_reader(folder)
    reader.read(0)

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(open_shard_module.os, "pread", fail)
    with pytest.raises(DataError, match=r"000000.tar: cannot be read \(Input/output error\); copy"):
        reader.read(0)


@pytest.fixture
def server(folder, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)
    with serve(folder) as server:
        yield server


@pytest.fixture(params=["file", "http", "whole"])
def location(request, folder, server):
    """Of the folder: with ranges (two protocols), and without."""
    server.has_ranges = request.param != "whole"
    return open_folder(f"file://{folder}" if request.param == "file" else server.url)


@pytest.fixture
def cache(tmp_path_factory):
    return ShardCache(tmp_path_factory.mktemp("cache"), 10**6)


def samples_of(folder):
    return open_reader(folder).read_many(range(8))


def kinds(reader):
    return {type(shard) for shard in reader._opened.values()}


def test_many_at_once_and_errors_in_their_places(folder):
    index_path(folder / "000002.tar").unlink()
    reader = open_reader(folder)
    found = reader.read_many([7, 3, 0, 0])
    assert [found[0], *found[2:]] == [reader.read(7), reader.read(0), reader.read(0)]
    assert isinstance(found[1], DataError)
    assert reader.read_many([]) == []


def test_every_location_gives_the_same_samples(request, folder, location, cache):
    expected = samples_of(folder)
    reader = ShardReader(location, Manifest.load(location), cache=cache)
    assert reader.read_many(range(8)) == expected
    assert [reader.read(number) for number in range(8)] == expected
    assert [reader.key(number) for number in (0, 7)] == ["scene.0/frame 0", "scene.3/frame 7"]
    reader.check()
    assert pickle.loads(pickle.dumps(reader)).read_many([6, 1]) == [expected[6], expected[1]]
    assert kinds(reader) == ({LocalShard} if request.node.callspec.params["location"] == "whole" else {RangedShard})


def test_without_a_cache(folder, server):
    assert ShardReader(server.url, Manifest.load(server.url)).read_many(range(8)) == samples_of(folder)
    server.has_ranges = False
    reader = ShardReader(server.url, Manifest.load(server.url))
    message = r"^http://.*/000002.tar: the server sends whole files only .*data.cache_gb"
    for _ in range(2):
        with pytest.raises(DataError, match=message):
            reader.read(3)


def test_a_cache_that_is_too_small(folder, server, tmp_path_factory):
    """Is no fault where samples can be asked for one by one, and one clear error where they cannot."""
    cache = ShardCache(tmp_path_factory.mktemp("cache"), 4000)
    assert ShardReader(server.url, Manifest.load(server.url), cache=cache).read_many(range(8)) == samples_of(folder)
    server.has_ranges = False
    reader = ShardReader(server.url, Manifest.load(server.url), cache=cache)
    with pytest.raises(CacheFullError, match=r"000002.tar: \d+ bytes do not fit into the cache"):
        reader.read(3)


def test_one_request_per_sample_and_one_per_index(folder, server, cache):
    reader = ShardReader(server.url, Manifest.load(server.url), cache=cache)
    assert len(server.requests) == 1
    reader.check()
    reader.read_many([0, 3, 4, 5])
    assert [server.num_requests(suffix) for suffix in ("000000.tar", "000002.tar")] == [1, 3]
    assert server.num_requests(".idx") == 2
    reader.read_many([0, 3, 4, 5])
    ShardReader(server.url, reader.manifest, cache=cache).read(3)
    assert server.num_requests(".idx") == 2


def test_a_shard_is_read_from_the_cache_as_soon_as_it_is_there(folder, server, cache):
    reader = ShardReader(server.url, Manifest.load(server.url), cache=cache)
    expected = reader.read_many([3, 4])
    assert kinds(reader) == {RangedShard}
    cache.fetch(reader.folder, reader.manifest.shards[2])
    num_requests = len(server.requests)
    assert reader.read_many([3, 4]) == expected
    assert kinds(reader) == {LocalShard}
    assert len(server.requests) == num_requests
    server.vanish()
    try:
        assert reader.read_many([3, 4]) == expected
        assert reader.source(3) == f"{server.url}/000002.tar/scene.2/frame 3"
    finally:
        server.appear()


def test_a_sample_that_is_damaged(folder):
    path = folder / "000000.tar"
    data = bytearray(path.read_bytes())
    data[np.load(index_path(path))[1, 1] + 30] ^= 1
    path.write_bytes(data)
    message = r"000000.tar/scene.0/frame 1: damaged: its bytes are not those that were written; copy the data set again"
    with pytest.raises(DataError, match=message):
        open_reader(folder).read(1)
    message = (
        r"^file://.*/000000.tar, sample 1: the server's file is not the one that the manifest lists: crc32 [0-9a-f]{8} "
        r"found, [0-9a-f]{8} expected; upload"
    )
    with pytest.raises(DataError, match=message):
        open_reader(f"file://{folder}").read(1)


def spoil(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)  # In place: whoever has it open sees it too.


def test_damage_in_the_cache_is_mended(folder, server, cache, caplog):
    manifest = Manifest.load(server.url)
    readers = [ShardReader(server.url, manifest, cache=cache) for _ in range(2)]
    path = cache.fetch(readers[0].folder, manifest.shards[2])
    expected, _ = [reader.read_many(range(8)) for reader in readers]
    rows = np.load(index_path(folder / "000002.tar"))
    for row in rows:
        spoil(path, row[1] + 30)
    for reader in readers:
        assert reader.read_many(range(8)) == expected
    # Of the first reader; the second finds a good file in its place.
    assert sum(record.message.startswith("fetched again into the cache:") for record in caplog.records) == 1
    (cache.directory / f"{manifest.shards[2].sha256}.idx").write_bytes(b"damaged")
    assert ShardReader(server.url, manifest, cache=cache).read_many(range(8)) == expected


def test_an_index_that_lies_is_an_error_after_one_more_fetch(folder, server, cache):
    rows = np.load(index_path(folder / "000002.tar"))
    rows[0, -1] ^= 1
    save_index(folder / "000002.tar", rows)
    reader = ShardReader(server.url, without_index_hashes(Manifest.load(server.url)), cache=cache)
    cache.fetch(reader.folder, reader.manifest.shards[2])
    with pytest.raises(
        DataError, match="000002.tar/scene.2/frame 3: damaged: its bytes are not those that were written"
    ):
        reader.read(3)
    assert server.num_requests("000002.tar") == 2


def test_an_entry_that_is_evicted_between_finding_and_opening(folder, server, cache, monkeypatch):
    reader = ShardReader(server.url, Manifest.load(server.url), cache=cache)
    for shard in reader.manifest.shards:
        cache.fetch(reader.folder, shard)
    expected = samples_of(folder)
    find, evictions = ShardCache.find, [True] * 3

    def find_and_lose(self, *args):
        path = find(self, *args)
        if path and evictions and evictions.pop():
            path.unlink()
        return path

    monkeypatch.setattr(ShardCache, "find", find_and_lose)
    assert reader.read_many(range(8)) == expected
    server.has_ranges = False
    for name in ("read", "key"):
        evictions.extend([True] * 7)
        again = ShardReader(server.url, reader.manifest, cache=cache)
        assert getattr(again, name)(3) == getattr(open_reader(folder), name)(3)
    evictions.extend([True] * 99)
    again = ShardReader(server.url, reader.manifest, cache=cache)
    with pytest.raises(DataError, match=r"000002.tar: the server sends whole files only .*data.cache_gb"):
        again.read(3)


def test_a_server_that_stays_away_is_no_fault_of_samples(server, monkeypatch):
    reader = ShardReader(server.url, Manifest.load(server.url))
    monkeypatch.setattr(remote, "RETRY_S", 0.1)
    server.faults.extend([503] * 999)
    with pytest.raises(UnreachableError, match="could not be read in"):
        reader.read_many(range(8))
    assert reader.source(3) == f"{server.url}/000002.tar, sample 0"


def test_a_server_that_is_away_for_a_while(folder, server):
    reader = ShardReader(server.url, Manifest.load(server.url))
    reader.read(0)
    server.vanish()
    threading.Timer(0.5, server.appear).start()
    assert reader.read_many(range(8)) == samples_of(folder)


def test_shards_that_lie_elsewhere(folder, server, tmp_path_factory, cache):
    """The manifest and the indexes here, the tars at URLs."""
    here = tmp_path_factory.mktemp("here")
    manifest = Manifest.load(folder)
    shards = tuple(dataclasses.replace(shard, name=f"{server.url}/{shard.name}") for shard in manifest.shards)
    for shard, original in zip(shards, manifest.shards, strict=True):
        (here / shard.index_name).write_bytes(index_path(folder / original.name).read_bytes())
    dataclasses.replace(manifest, shards=shards).save(here)
    expected = samples_of(folder)
    for given in (None, cache):
        for location in (here, f"file://{here}"):
            reader = ShardReader(location, Manifest.load(location), cache=given)
            reader.check()
            assert reader.read_many(range(8)) == expected
            assert reader.source(3) == f"{server.url}/000002.tar, sample 0"
    assert server.num_requests(".idx") == 0


def test_reads_after_a_fork(folder, server, cache):
    reader = ShardReader(server.url, Manifest.load(server.url), cache=cache)
    assert_reads(reader, 0)
    children = [
        multiprocessing.get_context("fork").Process(target=assert_reads, args=(reader, number)) for number in range(4)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0


def test_a_hundred_thousand_shards_cost_little(folder):
    """Of the reader: per shard one number, and no file touched."""
    shards = tuple(Shard(f"{number:06d}.tar", 1000, 10**8, f"{number:064x}") for number in range(100_000))
    manifest = dataclasses.replace(Manifest.load(folder), shards=shards, num_samples=10**8)
    tracemalloc.start()
    reader = ShardReader("s3://bucket/data", manifest)
    reader.check()
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()
    assert reader.source(99_999_999) == "s3://bucket/data/099999.tar, sample 999"
