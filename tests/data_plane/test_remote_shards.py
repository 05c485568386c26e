"""Shards from an object store and from web servers on loopback: the whole way, as a run goes it."""

import getpass
import grp
import itertools
import os
import shutil
import socket
import subprocess
import time

import pytest

from tests.data.small_shards import write_small_shards
from tests.faulty_server import serve
from unetdist.data.cache import ShardCache
from unetdist.data.manifest import MANIFEST_NAME, Manifest
from unetdist.data.open_shard import LocalShard
from unetdist.data.prefetch import Prefetcher
from unetdist.data.reader import ShardReader
from unetdist.errors import DataError
from unetdist.storage import remote
from unetdist.storage.folders import open_folder

boto3 = pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")

SIZES = [3, 0, 40, 1, 7]
IDS = range(sum(SIZES))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_small_shards(folder, SIZES)
    return folder


@pytest.fixture(scope="module")
def object_store():
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    server.stop()


@pytest.fixture
def s3(object_store, shards, monkeypatch):
    """A bucket that holds the shards, reached as any other is: by the settings of AWS."""
    monkeypatch.setattr(remote, "_file_systems", {})
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(remote, "PIECE", 4096)
    for name, value in {
        "AWS_ENDPOINT_URL": object_store,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3").Bucket("data")
    bucket.create()
    for path in shards.iterdir():
        bucket.upload_file(str(path), f"train/{path.name}")
    yield "s3://data/train"
    bucket.objects.all().delete()
    bucket.delete()


def is_listening(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def nginx(shards, tmp_path):
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = tmp_path / "nginx.conf"
    user = f"{getpass.getuser()} {grp.getgrgid(os.getgid()).gr_name}"
    settings.write_text(
        f"user {user}; daemon off; pid {tmp_path}/pid; error_log stderr; events {{}} "
        f"http {{ access_log off; server {{ listen 127.0.0.1:{port}; root {shards}; }} }}"
    )
    with subprocess.Popen(["nginx", "-p", str(tmp_path), "-c", str(settings)], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 30
        while not is_listening(port):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
        process.terminate()


@pytest.fixture
def web(shards, monkeypatch):
    monkeypatch.setattr(remote, "PIECE", 4096)
    with serve(shards) as server:
        yield server.url


@pytest.fixture(params=["s3", "web", "nginx"])
def url(request):
    return request.getfixturevalue(request.param)


def in_turn(first_position):
    return zip(itertools.count(first_position), itertools.cycle(range(len(SIZES))), strict=False)


def test_streamed_then_cached(url, shards, tmp_path):
    manifest = Manifest.load(url)
    assert manifest == Manifest.load(shards)
    expected = ShardReader(shards, manifest).read_many(IDS)
    assert ShardReader(url, manifest).read_many(IDS) == expected
    cache = ShardCache(tmp_path / "cache", 10**7)
    reader = ShardReader(url, manifest, cache=cache)
    assert reader.read_many(IDS) == expected
    prefetcher = Prefetcher(open_folder(url), manifest, cache, in_turn, ahead_bytes=cache.limit_bytes // 2)
    try:
        deadline = time.monotonic() + 60
        while not all(map(cache.find, manifest.shards)):
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)
    finally:
        prefetcher.close()
    assert reader.read_many(IDS) == expected
    assert {type(shard) for shard in reader._opened.values()} == {LocalShard}
    assert sorted(path.suffix for path in cache.directory.iterdir() if path.is_file()) == [".idx"] * 5 + [".tar"] * 5


def test_a_bucket_can_be_written_to(s3):
    folder = open_folder("s3://data/new")
    assert folder.names() == []
    folder.write("deep/a", b"abc")
    folder.write("a.tar", b"abc")
    folder.write("a.tar", bytes(10_000))
    assert folder.names() == ["a.tar"]
    assert folder.size("a.tar") == 10_000
    assert folder.read_range("a.tar", 9_990, 100) == bytes(10)
    assert folder.read_range("a.tar", 10_000, 100) == b""
    folder.remove("a.tar")
    folder.remove("a.tar")
    assert folder.names() == []
    with pytest.raises(FileNotFoundError, match="s3://data/new/a.tar"):
        folder.read("a.tar")
    with pytest.raises(FileNotFoundError, match="s3://data/new/a.tar"):
        folder.size("a.tar")


def test_a_manifest_goes_up_and_comes_down(s3):
    manifest = Manifest.load(s3)
    manifest.save("s3://data/copy")
    assert Manifest.load("s3://data/copy") == manifest
    with pytest.raises(DataError, match=r"^s3://data/nowhere: no manifest\.json here, .*unetdist shard"):
        Manifest.load("s3://data/nowhere")


def test_a_bucket_that_is_not_there(s3):
    with pytest.raises(DataError, match=r"^s3://nowhere/train: no manifest\.json here"):
        Manifest.load("s3://nowhere/train")


def test_a_manifest_is_one_request(shards):
    with serve(shards) as server:
        Manifest.load(server.url)
        assert [path for _, path, _ in server.requests] == [f"/{MANIFEST_NAME}"]
