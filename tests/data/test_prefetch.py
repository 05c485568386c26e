"""The prefetch process keeps ahead of the training, and out of its way."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.data.small_shards import write_small_shards
from tests.faulty_server import serve
from unetdist.cli.logs import logger
from unetdist.data.cache import ShardCache
from unetdist.data.prefetch import POLL_S, Prefetcher, _ahead, _fetch_ahead
from unetdist.storage import remote
from unetdist.storage.folders import open_folder

NUM_SHARDS = 8


@pytest.fixture
def manifest(tmp_path):
    return write_small_shards(tmp_path / "data", [2] * NUM_SHARDS)


@pytest.fixture
def server(tmp_path, manifest, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)
    with serve(tmp_path / "data") as server:
        yield server


@pytest.fixture
def cache(tmp_path):
    return ShardCache(tmp_path / "cache", 10**6)


def in_turn(first_position):
    """Two samples of each shard, again and again."""
    for position in itertools.count(first_position, 2):
        yield position, position // 2 % NUM_SHARDS


def one_pass(first_position):
    return itertools.islice(in_turn(first_position), NUM_SHARDS)


def start_prefetching(url, manifest, cache, upcoming, **options):
    return Prefetcher(open_folder(url), manifest, cache, upcoming, **{"ahead_bytes": 10**6 // 2, **options})


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def cached(cache, manifest):
    return [number for number, shard in enumerate(manifest.shards) if cache.find(shard)]


def test_keeps_so_far_ahead_and_follows_the_position(server, manifest, cache):
    ahead = sum(shard.num_bytes for shard in manifest.shards[:3])
    prefetcher = start_prefetching(server.url, manifest, cache, in_turn, ahead_bytes=ahead)
    try:
        # The one that is needed now is not ahead.
        until(lambda: cached(cache, manifest) == [0, 1, 2, 3])
        prefetcher.position.value = 4
        until(lambda: cached(cache, manifest) == [0, 1, 2, 3, 4, 5])
        assert prefetcher._process.is_alive()
    finally:
        prefetcher.close()
    assert not prefetcher._process.is_alive()
    assert server.num_requests(".idx") == server.num_requests(".tar") == 6


def test_begins_at_a_position(server, manifest, cache):
    prefetcher = start_prefetching(server.url, manifest, cache, one_pass, first_position=6)
    until(lambda: cached(cache, manifest) == list(range(NUM_SHARDS)))
    begun = [path for _, path, _ in server.requests if path.endswith(".tar")]
    assert begun[0] in {f"/{number:06d}.tar" for number in (3, 4, 5, 6)}  # Four begin side by side.
    prefetcher.close()


def test_what_was_evicted_between_two_validations_is_fetched_again(server, manifest, cache):
    prefetcher = start_prefetching(server.url, manifest, cache, one_pass)
    until(lambda: cached(cache, manifest) == list(range(NUM_SHARDS)))
    prefetcher.position.value = 2 * NUM_SHARDS
    for number in (0, 3):
        cache.drop(manifest.shards[number], is_it=lambda _: True)

    def next_validation():
        """The end of the last may be seen a moment later."""
        prefetcher.position.value = 2 * NUM_SHARDS
        time.sleep(2 * POLL_S)
        prefetcher.position.value = 0
        return cached(cache, manifest) == list(range(NUM_SHARDS))

    until(next_validation)
    assert server.num_requests(".tar") == NUM_SHARDS + 2
    prefetcher.close()


@pytest.mark.parametrize("ahead_bytes", [3500, 10**6])
def test_the_list_is_asked_for_again_when_the_position_goes_back(manifest, ahead_bytes):
    """At its end, and while it waits for room."""
    position = SimpleNamespace(value=0)
    ahead = (number for _ in itertools.count() for number in _ahead(one_pass, manifest, position, ahead_bytes))

    def given():
        return list(itertools.takewhile(lambda number: number is not None, ahead))

    first = given()
    assert first[0] == 0
    position.value = 3
    given()
    position.value = 0
    assert given() == first


def test_a_small_data_set_is_not_gone_through_again_and_again(server, manifest, cache):
    given = []

    def upcoming(first):
        for item in in_turn(first):
            given.append(item)
            (cache.directory / "given").write_text(str(len(given)))
            yield item

    prefetcher = start_prefetching(server.url, manifest, cache, upcoming)
    until(lambda: len(cached(cache, manifest)) == NUM_SHARDS)
    prefetcher.close()
    assert int((cache.directory / "given").read_text()) <= NUM_SHARDS + 2


def test_local_shards_are_left_alone(tmp_path, manifest, cache):
    _fetch_ahead(open_folder(tmp_path / "data"), manifest, cache, range(NUM_SHARDS))
    assert cached(cache, manifest) == []


def test_failures_are_told_once_and_the_rest_is_fetched(tmp_path, server, manifest, cache):
    for number in (1, 4):
        (tmp_path / "data" / f"{number:06d}.tar").unlink()
    log = tmp_path / "log"
    with log_to(log):
        prefetcher = start_prefetching(server.url, manifest, cache, one_pass)
    until(lambda: cached(cache, manifest) == [0, 2, 3, 5, 6, 7] and log.read_text())
    prefetcher.close()
    assert log.read_text().count("could not be fetched ahead (logged once): http") == 1
    assert "is not there" in log.read_text()


def test_a_cache_that_is_too_small_ends_it(tmp_path, server, manifest):
    log = tmp_path / "log"
    with log_to(log):
        prefetcher = start_prefetching(server.url, manifest, ShardCache(tmp_path / "cache", 4000), in_turn)
    until(lambda: not prefetcher._process.is_alive())
    [line] = log.read_text().splitlines()
    assert line.startswith("no more shards are fetched ahead, samples are read one by one: 00000")
    assert "do not fit into the cache" in line


def test_stop_signals_are_the_trainers(server, manifest, cache):
    prefetcher = start_prefetching(server.url, manifest, cache, in_turn)
    until(lambda: len(cached(cache, manifest)) == NUM_SHARDS)
    for number in (signal.SIGINT, signal.SIGUSR1):
        os.kill(prefetcher._process.pid, number)
    assert not prefetcher._process.join(0.5)
    assert prefetcher._process.is_alive()
    prefetcher.close()


SCRIPT = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.data.test_prefetch import in_turn, start_prefetching
from unetdist.data.cache import ShardCache
from unetdist.data.manifest import Manifest

if __name__ == "__main__":
    prefetcher = start_prefetching({url!r}, Manifest.load({url!r}), ShardCache(Path({cache!r}), 10**6), in_turn)
    print(prefetcher._process.pid, flush=True)
    if {stays}:
        time.sleep(600)
"""


def is_running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("stays", [True, False])
def test_ends_with_its_parent_even_in_a_download(tmp_path, server, manifest, cache, stays):
    """Killed, or at its end: neither waits for the other."""
    server.only = ".tar"
    server.faults.extend(["stall"] * 9)
    root = str(Path(__file__).parents[2])
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=root, url=server.url, cache=str(cache.directory), stays=stays))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        if stays:
            until(lambda: server.num_requests(".tar") >= 1)
            parent.kill()
        parent.wait(60)
    until(lambda: not is_running(pid))

    def is_clean():
        ShardCache(cache.directory, 10**6)
        return not list(cache.directory.glob("*.partial"))

    until(is_clean)  # The kernel may take a moment to let go of a dead process's locks.


class log_to:  # noqa: N801
    """Records of the package's logger in a file, which forked processes write to too."""

    def __init__(self, path):
        import logging

        self.handler = logging.FileHandler(path)

    def __enter__(self):
        logger.addHandler(self.handler)

    def __exit__(self, *_):
        logger.removeHandler(self.handler)
        self.handler.close()
