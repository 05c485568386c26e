"""The cache gives shards that are whole and right, whoever shares it and whatever is killed."""

import errno
import multiprocessing
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest

from tests.data.small_shards import write_small_shards
from tests.faulty_server import serve
from unetdist.data import cache as cache_module
from unetdist.data.cache import TAR, CacheFullError, ShardCache
from unetdist.data.shards import save_index, sha256_of
from unetdist.errors import ConfigError, DataError
from unetdist.storage import remote
from unetdist.storage.folders import open_folder
from unetdist.storage.remote import UnreachableError


@pytest.fixture
def shards(tmp_path):
    return write_small_shards(tmp_path / "data", [3, 2, 4]).shards


@pytest.fixture
def server(tmp_path, shards, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(remote, "PIECE", 4096)
    with serve(tmp_path / "data") as server:
        yield server


@pytest.fixture
def folder(server):
    return open_folder(server.url)


@pytest.fixture
def cache(tmp_path):
    return ShardCache(tmp_path / "cache", 10**6)


def files_in(cache):
    return sorted(path.name for path in cache.directory.iterdir() if path.is_file())


def age(cache, shard, seconds):
    """As if it had been used so long ago."""
    path = cache.directory / f"{shard.sha256}.tar"
    os.utime(path, (time.time() - seconds,) * 2)


def test_fetched_once_and_kept_by_hash(tmp_path, cache, folder, server, shards):
    assert cache.find(shards[0]) is None
    path = cache.fetch(folder, shards[0])
    assert path.read_bytes() == (tmp_path / "data" / "000000.tar").read_bytes()
    assert path.name == f"{shards[0].sha256}.tar"
    num_requests = len(server.requests)
    again = ShardCache(cache.directory, 10**6)
    assert cache.fetch(folder, shards[0]) == again.find(shards[0]) == path
    assert len(server.requests) == num_requests
    assert files_in(cache) == [path.name]


@pytest.mark.parametrize("has_ranges", [True, False])
def test_interruptions_are_continued(tmp_path, cache, folder, server, shards, has_ranges):
    server.has_ranges = has_ranges
    server.faults.extend([500, "cut", "cut", 503])
    assert cache.fetch(folder, shards[2]).read_bytes() == (tmp_path / "data" / "000002.tar").read_bytes()


def test_bytes_damaged_on_the_way_are_fetched_again(tmp_path, cache, folder, server, shards):
    server.faults.append("damage")
    assert cache.fetch(folder, shards[0]).read_bytes() == (tmp_path / "data" / "000000.tar").read_bytes()


def test_a_changed_shard(tmp_path, cache, folder, shards):
    path = tmp_path / "data" / "000000.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    message = (
        r"^http://.*/000000.tar: the server's file is not the one that the manifest lists: \d+ bytes with sha256 "
        rf"[0-9a-f]{{64}} found, {len(data)} bytes with sha256 {shards[0].sha256} expected; upload the shard that was"
    )
    with pytest.raises(DataError, match=message):
        cache.fetch(folder, shards[0])
    assert files_in(cache) == []


def test_a_truncated_shard(tmp_path, cache, folder, shards):
    os.truncate(tmp_path / "data" / "000000.tar", 1000)
    with pytest.raises(DataError, match="not the one that the manifest lists: 1000 bytes with sha256 .* found"):
        cache.fetch(folder, shards[0])
    assert files_in(cache) == []


def test_a_shard_that_grew_is_not_taken_in_whole(tmp_path, cache, folder, server, shards):
    with open(tmp_path / "data" / "000000.tar", "ab") as file:
        file.write(bytes(10**6))
    with pytest.raises(
        DataError, match=rf"lists: more than {shards[0].num_bytes} bytes found, {shards[0].num_bytes} exp"
    ):
        cache.fetch(folder, shards[0])
    assert len(server.requests) <= 1 + shards[0].num_bytes // 4096
    assert files_in(cache) == []


def test_a_missing_shard(tmp_path, cache, folder, shards):
    (tmp_path / "data" / "000000.tar").unlink()
    (tmp_path / "data" / "000000.tar.idx").unlink()
    with pytest.raises(DataError, match=r"^http://.*/000000.tar: is not there; copy the data set again, or run"):
        cache.fetch(folder, shards[0])
    with pytest.raises(DataError, match=r"^http://.*/000000.tar.idx: cannot be read \(No such file\); copy"):
        cache.index(folder, shards[0])


def test_a_server_that_stays_away(cache, folder, server, shards, monkeypatch):
    monkeypatch.setattr(remote, "RETRY_S", 0.1)
    server.faults.extend([503] * 99)
    with pytest.raises(UnreachableError, match="/000000.tar: could not be read in .* attempts"):
        cache.fetch(folder, shards[0])
    assert files_in(cache) == []


def test_indexes(tmp_path, cache, folder, server, shards):
    expected = np.load(tmp_path / "data" / "000002.tar.idx")
    for _ in range(2):
        np.testing.assert_array_equal(cache.index(folder, shards[2]), expected)
    assert server.num_requests(".idx") == 1
    (cache.directory / f"{shards[2].index_sha256}.idx").write_bytes(b"damaged")
    np.testing.assert_array_equal(cache.index(folder, shards[2]), expected)
    assert server.num_requests(".idx") == 2
    (tmp_path / "data" / "000000.tar.idx").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"^http://.*/000000.tar.idx: is not the index that the manifest lists; c"):
        cache.index(folder, shards[0])
    with pytest.raises(DataError, match=r"^http://.*/000000.tar.idx: is damaged \(.+\); copy"):
        cache.index(folder, replace(shards[0], index_sha256=""))


def test_the_same_tar_with_another_index_is_another_entry(cache, folder, server, shards):
    """The tars of others may be indexed with one kind of masks, then with another."""
    rows = cache.index(folder, shards[2]).copy()
    rows[:, 4] += 1
    save_index(server.folder / "000002.tar", rows)
    other = replace(shards[2], index_sha256=sha256_of(rows))
    np.testing.assert_array_equal(cache.index(folder, other), rows)
    assert not np.array_equal(cache.index(folder, shards[2]), rows)


def test_an_index_does_not_wait_for_the_download_of_its_shard(cache, folder, shards):
    for is_here in (False, True):
        with cache._lock(cache._path(shards[2], TAR)):
            rows = cache.index(folder, shards[2])
        assert len(rows) == shards[2].num_samples, is_here


def test_what_is_not_the_caches_own_stays(tmp_path, folder, shards):
    """Somebody gave a folder that holds other things."""
    mine = [tmp_path / "cache" / name for name in ("thesis.zip", "download.partial", "000000.tar")]
    mine[0].parent.mkdir()
    for path in mine:
        path.write_bytes(bytes(10**6))
    cache = ShardCache(tmp_path / "cache", shards[2].num_bytes)
    for shard in shards:
        cache.fetch(folder, shard)
    assert all(path.stat().st_size == 10**6 for path in mine)


def test_an_entry_of_another_user_is_used_all_the_same(cache, folder, shards, monkeypatch):
    path = cache.fetch(folder, shards[0])
    monkeypatch.setattr("os.utime", _refuse)
    assert cache.find(shards[0]) == path


def test_a_cache_that_cannot_be_locked(cache, folder, shards, monkeypatch):
    monkeypatch.setattr("filelock.FileLock.acquire", _refuse)
    with pytest.raises(CacheFullError, match=r"cannot be locked \(Permission denied\); free space on its disk, or g"):
        cache.fetch(folder, shards[0])


def _refuse(*_, **__):
    raise PermissionError(13, "Permission denied")


def test_the_least_recently_used_go(tmp_path, folder, shards):
    cache = ShardCache(tmp_path / "cache", shards[0].num_bytes + shards[2].num_bytes)
    for shard, seconds in zip(shards[:2], (200, 100), strict=True):
        cache.fetch(folder, shard)
        age(cache, shard, seconds)
    cache.find(shards[0])  # Used now.
    cache.fetch(folder, shards[2])
    assert [cache.find(shard) is not None for shard in shards] == [True, False, True]


def test_an_open_entry_outlives_its_eviction(tmp_path, folder, shards):
    cache = ShardCache(tmp_path / "cache", shards[2].num_bytes)
    with open(cache.fetch(folder, shards[0]), "rb") as file:
        cache.fetch(folder, shards[2])
        assert cache.find(shards[0]) is None
        assert len(file.read()) == shards[0].num_bytes


def test_a_shard_beyond_the_limit(tmp_path, folder, shards):
    cache = ShardCache(tmp_path / "cache", 5000)
    message = r"^000000.tar: \d+ bytes do not fit into the cache .*/cache, whose limit is 5000; raise the limit above a"
    with pytest.raises(CacheFullError, match=message):
        cache.fetch(folder, shards[0])


def fill_disk(monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module.os, "fsync", fail)


def test_a_full_disk(cache, folder, shards, monkeypatch):
    fill_disk(monkeypatch)
    message = r"^000000.tar: cannot be kept in the cache .*/cache \(No space left on device\); free \d+ bytes on its"
    with pytest.raises(CacheFullError, match=message):
        cache.fetch(folder, shards[0])
    assert files_in(cache) == []
    assert len(cache.index(folder, shards[0])) == 3  # Not kept, but given.


def test_what_somebody_has_mended_meanwhile_is_not_dropped(cache, folder, shards):
    path = cache.fetch(folder, shards[0])
    damaged = path.stat().st_ino
    assert not cache.drop(shards[0], is_it=lambda tar: tar.stat().st_ino != damaged)
    assert cache.find(shards[0]) == path
    assert cache.drop(shards[0], is_it=lambda tar: tar.stat().st_ino == damaged)
    assert files_in(cache) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"the cache .*file/cache cannot be made \(Not a directory\); give a"):
        ShardCache(tmp_path / "file" / "cache", 1)


def test_a_hash_that_is_none(cache, folder, shards):
    shard = cache_module.Shard("a.tar", 1, 1, "../../escape")
    with pytest.raises(DataError, match=r"^a.tar: sha256 is '../../escape' in the manifest; copy"):
        cache.find(shard)


def fetch_all(directory, url, shards, queue):
    cache = ShardCache(directory, 10**6)
    queue.put([cache.fetch(open_folder(url), shard).stat().st_size for shard in shards])


def test_two_jobs_share_a_cache(tmp_path, server, shards):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    jobs = [context.Process(target=fetch_all, args=(tmp_path / "cache", server.url, shards, queue)) for _ in range(4)]
    for job in jobs:
        job.start()
    for _ in jobs:
        assert queue.get(timeout=60) == [shard.num_bytes for shard in shards]
    for job in jobs:
        job.join(30)
        assert job.exitcode == 0
    begun = [path for _, path, wanted in server.requests if wanted.startswith("bytes=0-")]
    assert sorted(begun) == ["/000000.tar", "/000001.tar", "/000002.tar"]


def test_killed_in_the_middle_of_a_download(tmp_path, server, shards):
    """Its half is never trusted, and removed by whoever comes next."""
    cache = ShardCache(tmp_path / "cache", 10**6)
    server.faults.extend(["stall"] * 9)
    context = multiprocessing.get_context("fork")
    job = context.Process(target=fetch_all, args=(cache.directory, server.url, shards, context.Queue()))
    job.start()
    deadline = time.monotonic() + 30
    while not server.requests and time.monotonic() < deadline:
        time.sleep(0.01)
    partial = f"{shards[0].sha256}.tar.partial"
    assert files_in(cache) == [partial]
    assert cache.find(shards[0]) is None
    ShardCache(cache.directory, 10**6)
    assert files_in(cache) == [partial]  # Its owner is alive.
    os.kill(job.pid, signal.SIGKILL)
    job.join(30)
    server.faults.clear()
    ShardCache(cache.directory, 10**6)
    assert files_in(cache) == []
    (cache.directory / partial).write_bytes(b"half")
    assert cache.fetch(open_folder(server.url), shards[0]).stat().st_size == shards[0].num_bytes
    assert files_in(cache) == [partial.removesuffix(".partial")]
