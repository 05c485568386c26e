"""Behaviour of fsspec, aiohttp and s3fs that the remote folders lean on or work around."""

import inspect
import multiprocessing
import time

import fsspec
import pytest
from fsspec.asyn import sync

from tests.faulty_server import serve

s3fs = pytest.importorskip("s3fs")


def http(**options):
    return fsspec.filesystem("http", skip_instance_cache=True, **options)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "a").write_bytes(b"abcdef")
    with serve(tmp_path) as server:
        yield server


def test_instances_are_shared_unless_told_otherwise():
    """Why one is made per process, past the cache."""
    assert fsspec.filesystem("http") is fsspec.filesystem("http")
    assert http() is not http()


def use_in_child(files, queue):
    try:
        queue.put(str(files.loop))
    except RuntimeError as error:
        queue.put(str(error))


def test_a_file_system_refuses_to_work_after_a_fork():
    """Why there is one per process."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=use_in_child, args=(http(), queue))
    child.start()
    assert queue.get(timeout=30) == "This class is not fork-safe"
    child.join(30)


def test_every_operation_takes_a_time_limit(server):
    """And a coroutine that exceeds it is ended."""
    files = http()
    server.faults.append("stall")
    began = time.monotonic()
    with pytest.raises(fsspec.exceptions.FSTimeoutError):
        files.cat_file(f"{server.url}/a", timeout=0.2)
    assert time.monotonic() - began < 30  # Far below the five minutes of aiohttp.


def test_cat_file_takes_the_whole_body_where_ranges_are_ignored(server):
    """Why ranges are asked for with a request of our own."""
    server.has_ranges = False
    assert http().cat_file(f"{server.url}/a", start=1, end=3) == b"abcdef"


def test_info_calls_every_failure_a_missing_file(server):
    """Why sizes are asked for with a request of our own."""
    server.vanish()
    try:
        with pytest.raises(FileNotFoundError):
            http().info(f"{server.url}/a")
    finally:
        server.appear()


def test_sessions_and_addresses_can_be_had(server):
    async def status(files, url):
        session = await files.set_session()
        async with session.get(files.encode_url(url)) as response:
            return response.status

    files = http()
    assert sync(files.loop, status, files, f"{server.url}/a") == 200


def test_streams_without_blocks(server):
    with http().open(f"{server.url}/a", "rb", block_size=0) as file:
        assert [file.read(4), file.read(4), file.read(4)] == [b"abcd", b"ef", b""]


def test_s3_counts_its_retries_in_an_attribute():
    """Which is set to one attempt: the patience is ours."""
    assert s3fs.S3FileSystem.retries == 5
    assert "range(retries)" in inspect.getsource(s3fs.core._error_wrapper)
