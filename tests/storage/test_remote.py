"""Files behind URLs, from servers of every kind of mood."""

import io
import multiprocessing
import os
import sys
import threading

import pytest

from tests.faulty_server import serve
from unetdist.errors import ConfigError, DataError
from unetdist.storage import remote
from unetdist.storage.remote import RangesUnsupportedError, UnreachableError

DATA = bytes(range(256)) * 400


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(remote, "PIECE", 10_000)
    monkeypatch.setattr(remote, "_file_systems", {})
    (tmp_path / "a b.tar").write_bytes(DATA)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with serve(tmp_path) as server:
        yield server


@pytest.fixture(params=["http", "file"])
def url(request, server, tmp_path):
    """Of a folder, as each protocol has it."""
    return server.url if request.param == "http" else f"file://{tmp_path}"


def downloaded(url, **options):
    """What a download leaves in a file that held something longer."""
    file = io.BytesIO(bytes(2 * len(DATA)))
    remote.download(url, file, **options)
    assert file.tell() == len(file.getvalue())
    return file.getvalue()


def test_reading(url):
    file = remote.join(url, "a b.tar")
    assert remote.read(file) == DATA
    assert remote.size_of(file) == len(DATA)
    assert remote.read_range(file, 5, 10) == DATA[5:15]
    assert remote.read_range(file, len(DATA) - 3, 10) == DATA[-3:]
    assert remote.read_range(file, len(DATA), 10) == b""
    assert remote.read_range(file, len(DATA) + 5, 10) == b""
    assert remote.read_range(file, 5, 0) == b""
    assert downloaded(file) == DATA
    assert downloaded(file, most=50_001) == DATA[:50_001]
    assert downloaded(remote.join(url, "empty")) == b""
    assert remote.names_in(url) == ["a b.tar", "empty"] if url.startswith("file") else ["a b.tar", "empty", "folder"]


def test_names_that_would_mean_something_in_a_link(tmp_path):
    (tmp_path / "names").mkdir()
    names = ["50%25.tar", "a#1.tar", "b?c.tar"]
    for name in names:
        (tmp_path / "names" / name).write_bytes(DATA)
    url = f"file://{tmp_path}/names"
    assert remote.names_in(url) == names
    assert remote.read(remote.join(url, "a#1.tar")) == DATA


def test_what_is_missing(url):
    file = remote.join(url, "missing")
    for action in (remote.read, remote.size_of, lambda url: remote.read_range(url, 0, 1), downloaded):
        with pytest.raises(FileNotFoundError, match="No such file.*missing"):
            action(file)
    assert remote.names_in(file) == []


def test_writing(tmp_path):
    url = f"file://{tmp_path}/new"
    remote.write(remote.join(url, "a"), b"abc")
    remote.upload(remote.join(url, "b"), tmp_path / "new" / "a")
    assert remote.read(remote.join(url, "b")) == b"abc"
    remote.remove(remote.join(url, "b"))
    remote.remove(remote.join(url, "b"))
    assert remote.names_in(url) == ["a"]


def test_web_servers_are_not_written_to(server):
    with pytest.raises(DataError, match="a: cannot be written .*501.*check the address and your permission"):
        remote.write(remote.join(server.url, "a"), b"abc")


@pytest.mark.parametrize("fault", [500, 503, 429, "cut"])
def test_faults_that_pass(server, fault):
    file = remote.join(server.url, "a b.tar")
    for action, expected in (
        (lambda: remote.read(file), DATA),
        (lambda: remote.read_range(file, 7, 100), DATA[7:107]),
        (lambda: downloaded(file), DATA),
    ):
        server.faults.extend([fault] * 3)
        assert action() == expected
        assert not server.faults


def test_a_download_goes_on_where_it_broke_off(server):
    server.faults.extend([500, "cut"])
    assert downloaded(remote.join(server.url, "a b.tar")) == DATA
    begins = [int(wanted.split("=")[1].split("-")[0]) for _, _, wanted in server.requests]
    assert begins == [0, 0, *range(0, len(DATA), 10_000)]


def test_a_server_that_stalls(server, monkeypatch):
    monkeypatch.setattr(remote, "STALL_S", 0.2)
    file = remote.join(server.url, "a b.tar")
    server.faults.extend(["stall"] * 2)
    assert remote.read(file) == DATA
    server.faults.extend(["stall"] * 2)
    assert remote.read_range(file, 7, 100) == DATA[7:107]


def test_a_stall_that_the_library_does_not_see(server, monkeypatch):
    """Whatever the protocol does, a ranged read is bounded."""
    remote.read(remote.join(server.url, "empty"))  # Its time-outs are set now, and long.
    monkeypatch.setattr(remote, "STALL_S", 0.2)
    server.faults.append("stall")
    assert remote.read_range(remote.join(server.url, "a b.tar"), 7, 100) == DATA[7:107]


def test_no_attempt_outlasts_the_deadline(monkeypatch):
    """But for the time in which the server is seen to stall."""
    limits, now = [], [0.0]

    class Slow:
        async_impl = True

        def cat_file(self, *args, timeout, **kwargs):
            limits.append(timeout)
            now[0] += timeout
            raise TimeoutError

    monkeypatch.setattr(remote, "_file_system", lambda url: Slow())
    monkeypatch.setattr(remote.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(remote, "RETRY_S", 300.0)
    with pytest.raises(UnreachableError, match="in 5 attempts within 310 s"):
        remote.read_range("s3://bucket/a", 0, remote.SLOWEST * 40)
    assert limits == [70, 70, 70, 70, 30]


def test_a_server_that_answers_get_alone(server):
    """As with a URL that is signed for that."""
    server.head_status = 403
    file = remote.join(server.url, "a b.tar")
    assert remote.read_range(file, 5, 10) == DATA[5:15]
    assert downloaded(file) == DATA


def test_a_size_is_not_missing_because_a_server_fails_for_a_while(server):
    server.head_status = 503
    server.faults.extend([503] * 3)
    assert remote.size_of(remote.join(server.url, "a b.tar")) == len(DATA)


def test_a_server_that_is_away_for_a_while(server):
    file = remote.join(server.url, "a b.tar")
    remote.read(file)
    server.vanish()
    threading.Timer(0.5, server.appear).start()
    assert remote.read_range(file, 7, 100) == DATA[7:107]


def test_a_server_that_stays_away(server, monkeypatch):
    monkeypatch.setattr(remote, "RETRY_S", 0.2)
    server.vanish()
    try:
        with pytest.raises(
            UnreachableError, match=rf"^{server.url}/a: could not be read in \d+ attempts within .*Connect"
        ):
            remote.read(remote.join(server.url, "a"))
    finally:
        server.appear()


def test_a_server_without_ranges(server):
    server.has_ranges = False
    file = remote.join(server.url, "a b.tar")
    with pytest.raises(RangesUnsupportedError, match=r"a b.tar: .*data.cache_gb"):
        remote.read_range(file, 5, 10)
    server.faults.extend(["cut", 500])
    assert downloaded(file) == DATA
    assert downloaded(file, most=50_001) == DATA[:50_001]


def test_connections_are_kept(server):
    for start in range(5):
        remote.read_range(remote.join(server.url, "a b.tar"), start, 10)
    assert len(server._connections) == 1


def read_in_child(url, queue):
    queue.put(remote.read_range(url, 7, 100))


def test_works_after_a_fork(server):
    """The thread and the connections that the parent made are gone in the child."""
    file = remote.join(server.url, "a b.tar")
    remote.read(file)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=read_in_child, args=(file, queue))
    child.start()
    assert queue.get(timeout=30) == DATA[7:107]
    child.join(30)
    assert child.exitcode == 0
    assert {process for process, *_ in remote._file_systems} == {os.getpid()}


def test_passwords_are_not_told(server):
    address = server.url.removeprefix("http://")
    with pytest.raises(FileNotFoundError) as caught:
        remote.read(f"http://me:secret@{address}/missing?signature=abc")
    assert "secret" not in str(caught.value)
    assert "abc" not in str(caught.value)
    assert "missing" in str(caught.value)


def test_unknown_protocols():
    with pytest.raises(ConfigError, match=r"^nonsense://x/a: nonsense:// is not supported"):
        remote.read("nonsense://x/a")


def test_a_protocol_whose_package_is_missing(monkeypatch):
    # Not s3fs, which fsspec keeps once another test has used it.
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=r"^gs://no-such/a: .*gcsfs.*install it, or copy the data set"):
        remote.read("gs://no-such/a")


def test_urls():
    assert remote.is_url("s3://bucket/a")
    assert remote.is_url("hf://datasets/a/b")
    assert not remote.is_url("C:/data")
    assert not remote.is_url("data/train")
    assert remote.join("s3://bucket/a/", "b.tar") == "s3://bucket/a/b.tar"
    assert remote.join("https://host/a?sig=x", "b.tar") == "https://host/a/b.tar?sig=x"
    assert remote.join("s3://bucket/a", "http://host/b.tar") == "http://host/b.tar"
